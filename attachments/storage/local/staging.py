"""Staged files: they get their key only once they are complete, and disappear with their writer.

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
"""A folder in the root, which also shows that the root is a store."""


class IncomingFile:
    """An open, locked file in ``.incoming/``. Raises OSError."""

    def __init__(self, folder: Folder, name: str, fd: int) -> None:
        self.folder = folder
        self.name = name
        self.fd = fd
        self.bytes = 0

    def write(self, chunk: bytes) -> None:
        """Append the whole chunk; a single write may be partial."""
        written = os.write(self.fd, chunk)
        if written < len(chunk):
            rest = memoryview(chunk)[written:]
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        self.bytes += len(chunk)

    def sync(self) -> None:
        """Sync the content. A full disk may be reported only here."""
        os.fsync(self.fd)


@contextmanager
def incoming(root: Folder, stem: str) -> Iterator[IncomingFile]:
    """A new staged file. Its temporary name is removed at the end of the block in any case."""
    with root.made(INCOMING) as folder:
        while True:
            name = f"{stem}.{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with folder.opened(name, flags) as fd:
                file = IncomingFile(folder, name, fd)
                try:
                    # Before it was locked, a sweep may have removed it as a dead writer's file.
                    if claim(fd) and os.fstat(fd).st_nlink > 0:
                        yield file
                        return
                finally:
                    # A failed clean-up must not hide another error; the next sweep repeats it.
                    with suppress(OSError):
                        os.unlink(file.name, dir_fd=folder.fd)


def sweep(root: Folder, prefix: str = "") -> None:
    """Remove dead writers' files with this prefix, ignoring errors."""
    with root.made(INCOMING) as folder:
        for name in folder.all_names():
            if not name.startswith(prefix):
                continue
            with suppress(OSError), folder.opened(name, os.O_RDWR) as fd:
                if claim(fd):
                    os.unlink(name, dir_fd=folder.fd)


def abandoned(root: Folder) -> list[tuple[str, datetime]]:
    """Dead writers' files, with the time of their last write in UTC."""
    found: list[tuple[str, datetime]] = []
    if not root.has(INCOMING):
        return found
    with root.folder(INCOMING) as folder:
        for name in folder.all_names():
            with suppress(OSError), folder.opened(name, os.O_RDWR) as fd:  # skips planted links and folders
                if claim(fd):
                    found.append((name, datetime.fromtimestamp(os.fstat(fd).st_mtime, UTC)))
    return found
