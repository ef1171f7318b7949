"""How an object leaves its folder for good, and the empty folder with it. Raises OSError; needs the lock."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime

from attachments.storage.keys import MANIFEST_NAME
from attachments.storage.local.checksums import written_at
from attachments.storage.local.folders import Folder


def remove_object(root: Folder, key: str, stored_before: datetime | None) -> bool:
    """Removes an attachment's file and its folder; whatever else is in that stays. Nothing there is fine.

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
    """Removes a message's manifest, and the message's folder when nothing else is in it."""
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
        # Before anybody records that it is gone: after a power failure it must not be back.
        folder.sync()
    return True


def _remove_empty(folder: Folder, name: str) -> None:
    """Fails where something else is left in it, which is as it should be."""
    with suppress(OSError):
        os.rmdir(name, dir_fd=folder.fd)
        folder.sync()
