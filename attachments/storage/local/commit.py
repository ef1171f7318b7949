"""Gives complete files their final names, and handles existing ones. Raises OSError."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from attachments.storage.content import Content
from attachments.storage.errors import AlreadyExists
from attachments.storage.keys import MANIFEST_NAME, is_object_path
from attachments.storage.local.checksums import attach_proof, claimed, holds, written_at
from attachments.storage.local.folders import Folder
from attachments.storage.local.staging import IncomingFile, incoming, sweep
from attachments.storage.manifest import MAX_READ
from attachments.storage.names import shorter_names
from attachments.storage.store import StoredObject

# Errors of link() on file systems without hard links (FAT, exFAT, some FUSE and network mounts).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def commit(root: Folder, key: str, file: IncomingFile, content: Content) -> StoredObject:
    """Give a complete, synced file its final name, unless an object exists. Call it under the lock.

    What stands there is handed back when it holds the same, and raises AlreadyExists when it does not.
    """
    message_key, attachment_key, name = key.split("/")
    with root.made(message_key) as message, message.made(attachment_key) as folder:
        if folder.names():
            committed = _same(folder, content, f"{message_key}/{attachment_key}")
        else:
            name = _give_name(file, name, folder)
            committed = StoredObject.of(f"{message_key}/{attachment_key}/{name}", content, written_at(file.fd))
        # Always sync all three: another writer may have created a folder and died before syncing it.
        folder.sync()
        message.sync()
        root.sync()
    return committed


def proven(folder: Folder, place: str) -> StoredObject | None:
    """The object in an attachment's folder that has a valid proof."""
    for name in _possible(folder, place):
        with suppress(FileNotFoundError, FileExistsError), folder.opened(name, os.O_RDONLY) as fd:
            content = claimed(fd)
            if content and holds(fd, content):
                return StoredObject.of(f"{place}/{name}", content, written_at(fd))
    return None


def read_manifest(root: Folder, message_key: str) -> bytes | None:
    """The bytes of a message's manifest, at most `MAX_READ`; None if it has none."""
    with suppress(FileNotFoundError), root.folder(message_key) as message:  # noqa: SIM117  # one line too long
        with message.opened(MANIFEST_NAME, os.O_RDONLY) as fd, os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(MAX_READ)
    return None


def replace_manifest(root: Folder, message_key: str, data: bytes) -> None:
    """Replace a message's manifest with these bytes. Call it under the lock."""
    stem = f"{message_key}.manifest"
    sweep(root, f"{stem}.")
    with incoming(root, stem) as file, root.made(message_key) as message:
        file.write(data)
        file.sync()
        os.replace(file.name, MANIFEST_NAME, src_dir_fd=file.folder.fd, dst_dir_fd=message.fd)
        message.sync()
        root.sync()


def _give_name(file: IncomingFile, name: str, folder: Folder) -> str:
    """The name that the file got, shortened if the file system rejects its length, whatever limit it reports."""
    refusal: OSError | None = None
    for shorter in shorter_names(name):
        try:
            _move(file, shorter, folder)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            refusal = refusal or error
        else:
            return shorter
    raise refusal or AssertionError("at least one name is tried")


def _move(file: IncomingFile, name: str, folder: Folder) -> None:
    places = {"src_dir_fd": file.folder.fd, "dst_dir_fd": folder.fd}
    try:
        os.link(file.name, name, follow_symlinks=False, **places)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # It would replace a file silently, but the folder is empty and this process has the lock.
        os.rename(file.name, name, **places)  # noqa: PTH104  # pathlib knows no descriptors


def _possible(folder: Folder, place: str) -> list[str]:
    """The names in an attachment's folder that a manifest can record."""
    return [name for name in folder.names() if is_object_path(f"{place}/{name}")]


def _same(folder: Folder, content: Content, place: str) -> StoredObject:
    """The existing object, if it is the same attachment, after a lost response or a race."""
    for name in _possible(folder, place):
        with suppress(FileNotFoundError, FileExistsError), folder.opened(name, os.O_RDONLY) as fd:
            # Ciphertext is recognised only by its proof, which records the decrypted content.
            expected = claimed(fd) or Content.plain(content.bytes, content.sha256)
            if expected.is_same_attachment(content) and holds(fd, expected):
                attach_proof(fd, expected)
                os.fsync(fd)
                return StoredObject.of(f"{place}/{name}", expected, written_at(fd))
    raise AlreadyExists(
        f"another object already exists under attachment {place} and was left alone; move it away, then run the "
        "download again",
        key=place,
    )
