"""A session with an SFTP server: asyncssh's client, called from threads, with errors and entries as the store has them.

asyncssh runs on fsspec's event loop, as the clients of the other services do.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncssh
from asyncssh import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_UNKNOWN, FXF_READ
from fsspec.asyn import get_loop

from attachments.storage.backends.base import Conflict
from attachments.storage.local.folders import FILE_MODE, FOLDER_MODE

RESPONSE_TIMEOUT = 60.0  # seconds
_PIECE = 255 * 1024  # bytes; OpenSSH takes as many in one request
_PIECES_IN_TRANSIT = 8  # some 2 MiB, as OpenSSH's own client has it
_EVERY_SERVER_TAKES = 32 * 1024  # bytes a request, says the protocol; asyncssh would send half of it
_ROOM = 1024 * 1024  # bytes; a disk with less is full
_READ_ONLY = 1  # flag of statvfs

_WORDS = {"no space": errno.ENOSPC, "quota": errno.ENOSPC, "name too long": errno.ENAMETOOLONG}
"""They are no part of the protocol, but some servers have no other way to say it."""

T = TypeVar("T")

# Below, its log lines hold paths.
asyncssh.set_log_level("WARNING")
asyncssh.set_sftp_log_level("WARNING")


class RootGone(Exception):
    """The root is not where it was."""


class Failed(OSError):
    """The server refuses, and in version 3 of the protocol it cannot say why."""


class Unsupported(Exception):
    """The server does not support the request."""


RESPONSES = (Failed, Unsupported, RootGone, Conflict, FileNotFoundError, PermissionError, FileExistsError)
"""Errors after which the session can be used: the server has responded."""


@dataclass(frozen=True)
class FolderEntry:
    """One name in a folder, or what it leads to. A link is neither a folder nor a file."""

    name: str
    """With surrogates for bytes that are not UTF-8."""
    is_folder: bool
    is_file: bool
    bytes: int
    modified: datetime


def start(request: Awaitable[T]) -> Future[T]:
    """Makes a request of asyncssh's, from any thread but the event loop's own."""

    async def made() -> T:
        return await request

    return asyncio.run_coroutine_threadsafe(made(), get_loop())


def response(request: Future[T], timeout: float | None = None) -> T:
    """What the server responds, within so many seconds. Raises OSError, Failed, Unsupported and asyncssh.Error."""
    try:
        return request.result(RESPONSE_TIMEOUT if timeout is None else timeout)
    except asyncssh.SFTPError as refusal:
        error = _translated(refusal)
    raise error from None


def _translated(refusal: asyncssh.SFTPError) -> Exception:
    """The error that a refusal stands for."""
    if isinstance(refusal, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
        return refusal
    if isinstance(refusal, asyncssh.SFTPOpUnsupported):
        return Unsupported()
    text = refusal.reason.lower()
    number = next((number for words, number in _WORDS.items() if words in text), None)
    if number is None and isinstance(refusal, asyncssh.SFTPBadMessage):  # OpenSSH's word for EINVAL and ENAMETOOLONG
        number = errno.EINVAL
    if number is not None:
        return Failed(number, "status")
    if isinstance(refusal, asyncssh.SFTPNoSuchFile):
        return FileNotFoundError(errno.ENOENT, "status")
    return PermissionError(errno.EACCES, "status") if isinstance(refusal, asyncssh.SFTPPermissionDenied) else Failed()


class SftpClient:
    """A session, for one thread at a time."""

    def __init__(self, connection: asyncssh.SSHClientConnection, session: asyncssh.SFTPClient) -> None:
        self.connection = connection
        self._session = session
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        return not self._is_closed and not self.connection.is_closed()

    def close(self) -> None:
        """Ends the session. The connection stays open."""
        self._is_closed = True
        get_loop().call_soon_threadsafe(self._session.exit)

    def make(self, path: str) -> None:
        """Makes a folder. No-op if it exists."""
        try:
            self.mkdir(path)
        except OSError:
            if not self.has(path) or not self._described(path, self._session.stat(path)).is_folder:
                raise

    def mkdir(self, path: str) -> None:
        """Makes a folder."""
        response(start(self._session.mkdir(path, asyncssh.SFTPAttrs(permissions=FOLDER_MODE))))

    def has(self, path: str) -> bool:
        """Whether there is anything under a path."""
        try:
            self.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def lstat(self, path: str) -> FolderEntry:
        """What is under a path; a link is not followed. Raises FileNotFoundError."""
        return self._described(path, self._session.lstat(path))

    def listed(self, path: str) -> list[FolderEntry]:
        """What is in a folder; nothing if there is none."""
        return list(self._each(path))

    def folders(self, path: str) -> list[str]:
        """The names of the folders in a folder. Of a million, all entries together would take half a gigabyte."""
        return [entry.name for entry in self._each(path) if entry.is_folder]

    def bytes_of(self, path: str, most: int) -> bytes | None:
        """A small file as a whole, None if there is none; of a larger file the first `most` bytes."""
        try:
            file = RemoteFile(self, path, FXF_READ)
        except FileNotFoundError:
            return None
        data = b"".join(file.blocks(most))
        file.close()
        return data

    def replace(self, source: str, target: str) -> None:
        """Renames a file over another."""
        with suppress(Unsupported):
            response(start(self._session.posix_rename(source, target)))
            return
        # There is a moment without a manifest; a reader in between, or after a crash, lists the message again.
        with suppress(FileNotFoundError):
            self.remove(target)
        self.rename(source, target)

    def rename(self, source: str, target: str) -> None:
        """Renames a file or a folder. Raises Failed where there is something under the target."""
        response(start(self._session.rename(source, target)))

    def remove(self, path: str) -> None:
        """Removes a file or a link."""
        response(start(self._session.remove(path)))

    def rmdir(self, path: str) -> None:
        """Removes an empty folder."""
        response(start(self._session.rmdir(path)))

    def remove_all(self, path: str) -> None:
        """Removes a file, or a folder with its contents. No-op if missing."""
        with suppress(FileNotFoundError):
            if not self.lstat(path).is_folder:
                self.remove(path)
                return
            for entry in self.listed(path):
                self.remove_all(f"{path}/{entry.name}")
            self.rmdir(path)

    def write_error(self, path: str) -> int | None:
        """Why nothing can be written there, as the number of an error, where the server can say."""
        try:
            space = response(start(self._session.statvfs(path)))
        except Unsupported:
            return None
        if space.flags & _READ_ONLY:
            return errno.EROFS
        return errno.ENOSPC if space.bavail * space.frsize < _ROOM or (space.files and not space.favail) else None

    def open(self, path: str, flags: int) -> asyncssh.SFTPClientFile:
        """An open file of asyncssh's. One that this makes can be read by its owner alone."""
        # A server without limits of its own would get requests of 16 KiB.
        size = max(_EVERY_SERVER_TAKES, min(self._session.limits.max_read_len, self._session.limits.max_write_len))
        attributes = asyncssh.SFTPAttrs(permissions=FILE_MODE) if flags & asyncssh.FXF_CREAT else asyncssh.SFTPAttrs()
        return response(start(self._session.open(path, flags, attributes, encoding=None, block_size=size)))

    def _each(self, path: str) -> Iterator[FolderEntry]:
        batches = aiter(self._session.scandir(path))

        async def batch() -> list[asyncssh.SFTPName]:
            found = []
            async for entry in batches:
                found.append(entry)
                if len(found) == 1000:  # noqa: PLR2004  one wait for many entries
                    break
            return found

        with suppress(FileNotFoundError):  # some servers miss the folder only when it is read
            while found := response(start(batch())):
                for entry in found:
                    name = str(entry.filename)
                    if name in {".", ".."}:
                        continue
                    if entry.attrs.type == FILEXFER_TYPE_UNKNOWN:  # a server need not say what an entry is
                        with suppress(FileNotFoundError):
                            yield self.lstat(f"{path}/{name}")
                    else:
                        yield _entry(name, entry.attrs)

    def _described(self, path: str, request: Awaitable[asyncssh.SFTPAttrs]) -> FolderEntry:
        return _entry(path.rpartition("/")[2], response(start(request)))


class RemoteFile:
    """An open file, with several requests in transit. What is read of it may come in any order."""

    def __init__(self, sftp: SftpClient, path: str, flags: int) -> None:
        self.bytes = 0
        """How many were written."""
        self._filling = bytearray()
        self._in_transit: deque[Future[Any]] = deque()
        self._file = sftp.open(path, flags)

    def write(self, data: bytes) -> None:
        """Appends. Raises the errors of earlier writes."""
        self._filling += data
        whole = len(self._filling) - len(self._filling) % _PIECE
        for at in range(0, whole, _PIECE):
            self._send(bytes(memoryview(self._filling)[at : at + _PIECE]))
        del self._filling[:whole]

    def sync(self) -> None:
        """Makes the file survive a power failure, where the server supports it."""
        self._settle()
        with suppress(Unsupported):
            response(start(self._file.fsync()))

    def close(self) -> None:
        """Raises the errors of the last writes."""
        self._settle()
        response(start(self._file.close()))

    def abandon(self) -> None:
        """Closes the file, whatever became of what was written."""
        self._filling.clear()
        while self._in_transit:
            with suppress(*RESPONSES):
                response(self._in_transit.popleft())
        with suppress(*RESPONSES):
            response(start(self._file.close()))

    def blocks(self, most: int | None = None) -> Iterator[bytes]:
        """The file's bytes; of more than `most` the first ones."""
        size = response(start(self._file.stat())).size or 0
        if most is not None:
            size = min(size, most)
        requested = 0
        expected: deque[tuple[int, Future[Any]]] = deque()
        while requested < size or expected:
            while requested < size and len(expected) < _PIECES_IN_TRANSIT:
                length = min(_PIECE, size - requested)
                expected.append((length, start(self._file.read(length, requested))))
                requested += length
            length, request = expected.popleft()
            block = response(request)
            if len(block) != length:  # it has become shorter meanwhile
                raise Failed
            yield block

    def _send(self, piece: bytes) -> None:
        while len(self._in_transit) >= _PIECES_IN_TRANSIT:
            response(self._in_transit.popleft())
        self._in_transit.append(start(self._file.write(piece, self.bytes)))
        self.bytes += len(piece)

    def _settle(self) -> None:
        if self._filling:
            self._send(bytes(self._filling))
            self._filling.clear()
        while self._in_transit:
            response(self._in_transit.popleft())


def _entry(name: str, attributes: asyncssh.SFTPAttrs) -> FolderEntry:
    return FolderEntry(
        name,
        attributes.type == FILEXFER_TYPE_DIRECTORY,
        attributes.type == FILEXFER_TYPE_REGULAR,
        attributes.size or 0,
        datetime.fromtimestamp(attributes.mtime or 0, UTC),
    )
