"""The proof that an object is complete: its size and SHA-256, in extended attributes of the file.

They stand on it before it gets its final name, so an object with a proof that holds was committed by us.
Where the file system has no such attributes, or Python can't set them (macOS), an object simply has no proof.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from attachments.storage.content import Content

_SHA256 = "user.attachments.sha256"
_BYTES = "user.attachments.bytes"
# Of the file's content, if that is ciphertext.
_STORED_SHA256 = "user.attachments.stored-sha256"
_STORED_BYTES = "user.attachments.stored-bytes"
_MIME_TYPE = "user.mime_type"  # freedesktop.org's shared-mime-info names it so

BLOCK = 1024 * 1024
_EPOCH = datetime.fromtimestamp(0, UTC)


def attach_proof(fd: int, content: Content, *, content_type: str | None = None) -> None:
    """Write the proof to an open file, if the file system supports it."""
    if not hasattr(os, "setxattr"):
        return
    # A missing proof costs only a download if the manifest is lost.
    with suppress(OSError):
        os.setxattr(fd, _BYTES, str(content.bytes).encode())
        os.setxattr(fd, _SHA256, content.sha256.encode())
        if content.is_sealed:
            os.setxattr(fd, _STORED_BYTES, str(content.stored_bytes).encode())
            os.setxattr(fd, _STORED_SHA256, content.stored_sha256.encode())
        if content_type:
            os.setxattr(fd, _MIME_TYPE, content_type.encode("utf-8", "replace"))


def claimed(fd: int) -> Content | None:
    """The content that an open file's proof claims; None if it has no readable proof."""
    if not hasattr(os, "getxattr"):
        return None
    try:
        plain = Content.plain(int(os.getxattr(fd, _BYTES)), os.getxattr(fd, _SHA256).decode())
    except (OSError, ValueError):
        return None
    try:
        stored = int(os.getxattr(fd, _STORED_BYTES)), os.getxattr(fd, _STORED_SHA256).decode()
    except (OSError, ValueError):
        return plain
    return Content(plain.bytes, plain.sha256, *stored)


def holds(fd: int, content: Content) -> bool:
    """Whether an open file has exactly this content. Reads all of it if its size matches. Raises OSError."""
    if os.fstat(fd).st_size != content.stored_bytes:
        return False
    digest = hashlib.sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    while block := os.read(fd, BLOCK):
        digest.update(block)
    return digest.hexdigest() == content.stored_sha256


def written_at(fd: int) -> datetime:
    """When an open file was last written to, in UTC."""
    return _EPOCH + timedelta(microseconds=os.fstat(fd).st_mtime_ns // 1000)
