"""Removes objects and their empty folders durably. Raises OSError; call it under the lock."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime

from attachments.storage.keys import MANIFEST_NAME
from attachments.storage.local.checksums import written_at
from attachments.storage.local.folders import Folder


def remove_object(root: Folder, key: str, stored_before: datetime | None) -> bool:
    """Remove an attachment's file and its folder, unless that contains other files. No-op if missing.

    False when the file is not that old, and stays. A symlink, a folder or a pipe in the file's place is a
    FileExistsError or a NotADirectoryError.
    """
    message_key, attachment_key, name = key.split("/")
    with suppress(FileNotFoundError), root.folder(message_key) as message:
        with suppress(FileNotFoundError), message.folder(attachment_key) as folder:
            if not _unlink(folder, name, stored_before):
                return False
        _remove_empty(message, attachment_key)
    return True


def remove_manifest(root: Folder, message_key: str) -> None:
    """Remove a message's manifest, and the message's folder if it is then empty."""
    with suppress(FileNotFoundError):
        with root.folder(message_key) as message:
            _unlink(message, MANIFEST_NAME)
        _remove_empty(root, message_key)


def _unlink(folder: Folder, name: str, stored_before: datetime | None = None) -> bool:
    with suppress(FileNotFoundError):
        with folder.opened(name, os.O_RDONLY) as fd:
            if stored_before is not None and written_at(fd) >= stored_before:
                return False
            os.unlink(name, dir_fd=folder.fd)
        # Sync before the removal is recorded, so that the file does not reappear after a power failure.
        folder.sync()
    return True


def _remove_empty(folder: Folder, name: str) -> None:
    """Remove a folder if it is empty; otherwise it stays."""
    with suppress(OSError):
        os.rmdir(name, dir_fd=folder.fd)
        folder.sync()
