"""Files on their way in: invisible under any key until they are whole, and gone when their writer is.

A file is called ``<message_key>.<attachment_key>.<random>`` and is locked while its writer lives. The system
drops the lock with the process, however it dies: a file that nobody locks is a dead writer's, and is removed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from attachments.storage.local.folders import Folder
from attachments.storage.local.locks import claim

INCOMING = ".incoming"
"""Folder in the root. It also marks the folder around it as a store."""


class IncomingFile:
    """An open, locked file in ``.incoming/``. Raises OSError."""

    def __init__(self, folder: Folder, name: str, fd: int) -> None:
        self.folder = folder
        self.name = name
        self.fd = fd
        self.bytes = 0

    def write(self, chunk: bytes) -> None:
        """Appends all of the chunk; a plain write may take only a part of it."""
        written = os.write(self.fd, chunk)
        if written < len(chunk):
            rest = memoryview(chunk)[written:]
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        self.bytes += len(chunk)

    def sync(self) -> None:
        """Makes its content survive a power failure. A full disk may show only here."""
        os.fsync(self.fd)


@contextmanager
def incoming(root: Folder, stem: str) -> Iterator[IncomingFile]:
    """A new file for a writer to fill. Its name is gone when the block ends, whichever way it ends."""
    with root.made(INCOMING) as folder:
        while True:
            name = f"{stem}.{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with folder.opened(name, flags) as fd:
                file = IncomingFile(folder, name, fd)
                try:
                    # Between creating and locking it, a sweep may have taken it for a dead writer's.
                    if claim(fd) and os.fstat(fd).st_nlink > 0:
                        yield file
                        return
                finally:
                    # A failure to tidy up must not hide what happened; the next sweep does it.
                    with suppress(OSError):
                        os.unlink(file.name, dir_fd=folder.fd)


def sweep(root: Folder, prefix: str = "") -> None:
    """Removes the files of dead writers whose names begin so, as far as that is possible."""
    with root.made(INCOMING) as folder:
        for name in folder.all_names():
            if not name.startswith(prefix):
                continue
            with suppress(OSError), folder.opened(name, os.O_RDWR) as fd:
                if claim(fd):
                    os.unlink(name, dir_fd=folder.fd)


def abandoned(root: Folder) -> list[tuple[str, datetime]]:
    """The files of dead writers, and when each was last written to, in UTC."""
    found: list[tuple[str, datetime]] = []
    if not root.has(INCOMING):
        return found
    with root.folder(INCOMING) as folder:
        for name in folder.all_names():
            with suppress(OSError), folder.opened(name, os.O_RDWR) as fd:  # a planted link or folder is no writer's
                if claim(fd):
                    found.append((name, datetime.fromtimestamp(os.fstat(fd).st_mtime, UTC)))
    return found
