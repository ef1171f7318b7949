"""The attachments of the mail, read with only the standard library, as the reference for the stored files.

Shares no code with the sandbox or the product, so that it detects a mistake in either.
"""

import email
import hashlib
from dataclasses import dataclass
from email import policy
from email.message import EmailMessage
from pathlib import Path


@dataclass(frozen=True)
class File:
    """One attachment; without `bytes` and `sha256` it is a mail, which cannot be downloaded."""

    name: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Original:
    """One message as it was sent."""

    internet_message_id: str
    subject: str
    files: tuple[File, ...]


def read_originals(folder: Path) -> tuple[Original, ...]:
    """Every message of a folder of `.eml` files, in the order of their names."""
    return tuple(_original(path.read_bytes()) for path in sorted(folder.glob("*.eml")))


def _original(content: bytes) -> Original:
    mail = email.message_from_bytes(content, policy=policy.default)
    parts = mail.iter_attachments() if mail.is_multipart() else ()
    return Original(str(mail["Message-ID"]), str(mail["Subject"]), tuple(_file(part) for part in parts))


def _file(part: EmailMessage) -> File:
    if part.get_content_type() == "message/rfc822":
        inner = part.get_content()
        return File(part.get_filename() or str(inner["Subject"]))
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)  # noqa: S101  tells mypy: this is not a multipart
    return File(part.get_filename() or "", len(content), hashlib.sha256(content).hexdigest())
