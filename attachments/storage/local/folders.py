"""Open folders. Entries are named relative to them, so that no symlink on the path is followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from attachments.storage.names import MAX_BYTES

FOLDER_MODE = 0o700
FILE_MODE = 0o600

# Errors of open() for symlinks, folders, sockets and pipes on Linux, macOS and BSD.
_NOT_REGULAR = {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO}


class Folder:
    """An open folder. Raises OSError; NotADirectoryError for a symlink or a file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def at(cls, path: Path) -> Folder:
        """The folder at a configured path, which may contain symlinks."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def folder(self, name: str) -> Folder:
        """Open a folder in this one."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return Folder(os.open(name, flags, dir_fd=self.fd))
        except OSError as error:
            if error.errno in _NOT_REGULAR:
                raise NotADirectoryError(errno.ENOTDIR, "not a folder") from None
            raise

    def made(self, name: str) -> Folder:
        """Open a folder in this one, creating it if it is missing."""
        with suppress(FileExistsError):
            os.mkdir(name, FOLDER_MODE, dir_fd=self.fd)
        return self.folder(name)

    def has(self, name: str) -> bool:
        """Whether an entry with this name exists."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Its entries, sorted, without hidden names, which attachments do not have but desktops create."""
        return sorted(name for name in self.all_names() if not name.startswith("."))

    def each_name(self) -> Iterator[str]:
        """As `names`, as an iterator in any order, because there may be millions."""
        with os.scandir(self.fd) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name

    def all_names(self) -> list[str]:
        """All its entries, hidden ones too."""
        return os.listdir(self.fd)  # noqa: PTH208  # pathlib knows no descriptors

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """Open a regular file in this folder, as a descriptor. Raises FileExistsError for anything else."""
        # Without O_NONBLOCK a planted pipe would block for ever.
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(name, flags, FILE_MODE, dir_fd=self.fd)
        except OSError as error:
            if error.errno in _NOT_REGULAR:
                raise FileExistsError(errno.EEXIST, "not a regular file") from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileExistsError(errno.EEXIST, "not a regular file")
            yield fd
        finally:
            # Writers sync the file before they rely on it, so an error on closing has no meaning.
            with suppress(OSError):
                os.close(fd)

    def longest_name(self) -> int:
        """The maximum bytes of a name in it, as the system reports; some report 255 for any file system."""
        with suppress(OSError, ValueError):
            if (most := os.pathconf(self.fd, "PC_NAME_MAX")) > 0:
                return most
        return MAX_BYTES

    def sync(self) -> None:
        """Sync the folder, so that its entries survive a power failure."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            # Some network file systems do not support fsync on folders; their servers store entries durably.
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)


def make_with_parents(path: Path) -> None:
    """Create a folder and its parents durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(FOLDER_MODE, exist_ok=True)
        with Folder.at(folder.parent) as parent:
            parent.sync()
