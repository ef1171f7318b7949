"""SFTP, by paramiko: fsspec's own client takes any host key that it is shown, and a mail's invoice is worth a theft.

```
<root>/.incoming/<message_key>.<attachment_key>.<random>/     on its way in: the file under its final name, and .proof
<root>/<message_key>/<attachment_key>/<safe file name>        the same folder, renamed
<root>/<message_key>/<attachment_key>/.proof                  what the file holds
<root>/.locks/<message_key>                                   held while a manifest is replaced
```

Renaming a folder fails where one stands that is not empty, on every system: of two machines that store one attachment,
one wins. A manifest has to be replaced, which no request does on condition; so a lock file is created exclusively.
A writer that dies leaves its lock behind; one that has not changed for a minute is broken. Should its writer only have
been stopped for so long, it finds its lock gone and gives up, unless it was stopped in just the moment between that
look and its renaming: then it overwrites what another wrote meanwhile, and the next run adds what is missing.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey
from paramiko.sftp import (
    CMD_ATTRS,
    CMD_CLOSE,
    CMD_DATA,
    CMD_EXTENDED,
    CMD_EXTENDED_REPLY,
    CMD_FSTAT,
    CMD_HANDLE,
    CMD_INIT,
    CMD_NAME,
    CMD_OPEN,
    CMD_OPENDIR,
    CMD_READ,
    CMD_READDIR,
    CMD_VERSION,
    CMD_WRITE,
    SFTP_EOF,
    SFTP_FLAG_CREATE,
    SFTP_FLAG_EXCL,
    SFTP_FLAG_READ,
    SFTP_FLAG_WRITE,
    SFTP_NO_SUCH_FILE,
    SFTP_OK,
    SFTP_OP_UNSUPPORTED,
    SFTP_PERMISSION_DENIED,
    SFTPError,
    int64,
)

from attachments.storage.backend import Backend, Conflict, Failure, Labels, Listed, Residue, Standing, Upload, Version
from attachments.storage.encryption import Encryption
from attachments.storage.errors import AccessDenied, NotFound, StoreUnavailable, UnsupportedStore
from attachments.storage.folders import FILE_MODE, FOLDER_MODE
from attachments.storage.keys import is_key
from attachments.storage.local_errors import failure_of

INCOMING = ".incoming"
LOCKS = ".locks"
PROOF = ".proof"
_PORT = 22
_ANSWER = 60.0  # seconds to wait for an answer
_CONNECT = 15.0  # the same for each step of connecting
_KEEP_ALIVE = 30
_CHANNELS = 8  # on one connection; OpenSSH allows 10 (MaxSessions)
_PIECE = 32_000  # bytes a request: every server takes 32 KiB, and so it is one packet of SSH as well
_UNDER_WAY = 64  # requests not answered yet, as OpenSSH's own client has it
_PROOF_BYTES = 64 * 1024
_ROOM = 1024 * 1024  # bytes; a disk with less is full
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
_TIMEOUTS = ("timeout", "banner_timeout", "auth_timeout", "channel_timeout")
_LOGIN = frozenset(
    {"username", "password", "key_filename", "passphrase", "pkey", "look_for_keys", "allow_agent"}
    | {"compress", "disabled_algorithms", "gss_auth", "gss_kex", "gss_deleg_creds", "gss_host"}
)
_OPTIONS = _LOGIN | {"host", "port", "known_hosts", "host_key", *_TIMEOUTS}
_NEW = SFTP_FLAG_WRITE | SFTP_FLAG_CREATE | SFTP_FLAG_EXCL

_CHECK_HOST = "the host's key is not a known one; find out why, then set the option host_key or known_hosts"
_CHECK_LOGIN = "check user name, password and key in the store's options"


class _Refused(Exception):
    """No connection, and trying again would not help."""

    def __init__(self, symbol: str, advice: str) -> None:
        super().__init__(symbol)
        self.symbol = symbol
        self.advice = advice


class _Gone(Exception):
    """The root is not where it was."""


class _Failed(OSError):
    """The server says no, and in version 3 of the protocol that is all it can say."""


class _Lacks(Exception):
    """The server does not do what is asked, ever."""


_ANSWERED = (_Failed, _Lacks, _Gone, Conflict, FileNotFoundError, PermissionError, FileExistsError)
"""What leaves a channel in step: the server has answered."""


class SftpBackend(Backend):
    """A folder of an SFTP server."""

    errors = (paramiko.SSHException, SFTPError, EOFError, OSError, _Refused, _Gone, _Lacks)
    patience: ClassVar[float] = 60.0
    """Seconds after which a lock that has not changed is taken for a dead writer's."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self._root = path.rstrip("/")
        self._options = dict(options)
        self._connections = _Connections(options)
        weakref.finalize(self, self._connections.close)
        self._existed = False
        self._was_a_store = False

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any], encryption: Encryption) -> SftpBackend:
        """The backend at ``sftp://host/root``; the options are those of paramiko's `connect`, and two for host keys.

        `host_key` is the key that the host must show, as in ``known_hosts``: ``ssh-ed25519 AAAA…``; one a line when
        there are several. `known_hosts` is the path of such a file, instead of the user's and the machine's own. `pkey`
        may be a private key's text. Raises UnsupportedStore.
        """
        try:
            told = {**SFTPFileSystem._get_kwargs_from_urls(url), "host": urlsplit(url).hostname, **options}
            port = int(told.get("port") or _PORT)
        except ValueError:
            raise UnsupportedStore("the store's URL or port can't be read; write it as sftp://host:22/folder") from None
        if not told["host"]:
            raise UnsupportedStore("the store's URL names no host; write it as sftp://host/folder")
        if unknown := sorted(set(told) - _OPTIONS):
            raise UnsupportedStore(f"SFTP knows no option {', '.join(unknown)}; docs/stores.md has the usual ones")
        if encryption.needs_service:
            raise UnsupportedStore(
                f"{encryption.needs_service} is nothing that SFTP can do; use age recipients instead"
            )
        if "host_key" in told:
            told["host_key"] = _host_keys(str(told["host_key"]))
        if isinstance(told.get("pkey"), str):
            told["pkey"] = _private_key(told["pkey"], told.get("passphrase"))
        return cls(str(SFTPFileSystem._strip_protocol(url)), {**told, "port": port})

    @property
    def url(self) -> str:
        host, port = str(self._options["host"]), self._options["port"]
        return f"sftp://{f'[{host}]' if ':' in host else host}{'' if port == _PORT else f':{port}'}{self._root}"

    def failure(self, error: Exception) -> Failure:
        symbol = type(error).__name__.strip("_")
        if isinstance(error, _Gone):
            return Failure(NotFound, symbol, "its root folder is gone; bring it back, or start the worker again")
        if isinstance(error, _Refused):
            return Failure(AccessDenied, error.symbol, error.advice)
        if isinstance(error, _Lacks):
            advice = "the server can't rename folders or replace files; use another server, or the storage behind it"
            return Failure(UnsupportedStore, symbol, advice)
        number = error.errno if isinstance(error, OSError) else None
        if number in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EEXIST}:
            return failure_of(error)
        symbol = errno.errorcode.get(number or 0, symbol)
        return Failure(StoreUnavailable, symbol, "check host and network if this goes on; it is tried again")

    def objects(self, prefix: str) -> Iterator[Listed]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            found = list(self._below(sftp, prefix.rstrip("/")))
        yield from found

    def message_keys(self) -> Iterator[str]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            names = [told.filename for told in sftp.listed(self._path(""))]
        yield from (name for name in names if not name.startswith("."))

    def look(self, path: str) -> Standing | None:
        place, _, name = path.rpartition("/")
        with self._session() as sftp:
            try:
                told = sftp.lstat(self._path(path))
            except FileNotFoundError:
                self._look_at_root(sftp)
                return None
            if not stat.S_ISREG(told.st_mode or 0):
                return None
            proof = _Proof.parsed(sftp.bytes_of(self._path(f"{place}/{PROOF}"), _PROOF_BYTES))
        size = told.st_size or 0
        return Standing(size, _moment(told), proof.metadata if (proof.name, proof.bytes) == (name, size) else {})

    def read(self, path: str) -> Iterator[bytes]:
        with self._session() as sftp:
            file = _File(sftp, self._path(path), SFTP_FLAG_READ)
            yield from file.blocks()
            file.close()

    def load(self, path: str) -> tuple[bytes, Version] | None:
        with self._session() as sftp:
            data = sftp.bytes_of(self._path(path))
            if data is None:
                self._look_at_root(sftp)
                return None
        return data, hashlib.sha256(data).hexdigest()

    def save(self, path: str, data: bytes, labels: Labels, *, replaces: Version | None) -> None:  # noqa: ARG002  files keep no labels
        with self._session() as sftp, self._locked(sftp, path) as still_ours:
            standing = sftp.bytes_of(self._path(path))
            if (None if standing is None else hashlib.sha256(standing).hexdigest()) != replaces:
                raise Conflict
            temporary = self._path(f"{INCOMING}/{path.replace('/', '.')}.{secrets.token_hex(8)}")
            try:
                _write(sftp, temporary, data)
                sftp.make(self._path(path).rpartition("/")[0])
                if not still_ours():
                    raise Conflict
                sftp.replace(temporary, self._path(path))
            except _ANSWERED:
                with suppress(*self.errors):
                    sftp.remove(temporary)
                raise

    def upload(self, path: str, labels: Labels) -> Upload:  # noqa: ARG002  files keep no labels
        return _SftpUpload(self, path)

    def remove(self, path: str) -> None:
        place = path.rpartition("/")[0]
        with self._session() as sftp:
            for each in (path, f"{place}/{PROOF}"):
                with suppress(FileNotFoundError):
                    sftp.remove(self._path(each))
            # Fails where something else is left in it, which is as it should be.
            with suppress(FileNotFoundError, _Failed):
                sftp.rmdir(self._path(place))

    def residue(self) -> Iterator[Residue]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            found = [(INCOMING, "temporary file", told) for told in sftp.listed(self._path(INCOMING))]
            found += [(LOCKS, "lock of a manifest", told) for told in sftp.listed(self._path(LOCKS))]
        for folder, what, told in found:
            place = "/".join(part for part in told.filename.split(".")[:2] if is_key(part))
            yield Residue(what, place, f"{folder}/{told.filename}", _moment(told))

    def clear(self, residue: Residue) -> None:
        with self._session() as sftp:
            sftp.remove_all(self._path(residue.path))

    def _make_root(self, sftp: _Sftp) -> None:
        """The root and the store's own folders, made when they are missing and were not there before."""
        if self._look_at_root(sftp):
            return
        parts = self._root.split("/")
        if not self._existed:
            for end in range(2, len(parts) + 1):
                sftp.make("/".join(parts[:end]))
        for own in (LOCKS, INCOMING):
            sftp.make(self._path(own))
        self._existed = self._was_a_store = True

    def _look_at_root(self, sftp: _Sftp) -> bool:
        """Whether the root is a store already. Raises _Gone when it was there, or was a store, and is not any more."""
        # Read before asking: another thread may be making the store right now.
        existed, was_a_store = self._existed, self._was_a_store
        if sftp.has(self._path(INCOMING)):
            self._existed = self._was_a_store = True
            return True
        if was_a_store:
            raise _Gone
        if sftp.has(self._path("")):
            self._existed = True
        elif existed:
            raise _Gone
        return False

    def _below(self, sftp: _Sftp, path: str) -> Iterator[Listed]:
        for told in sftp.listed(self._path(path)):
            if told.filename.startswith("."):
                continue
            whole = f"{path}/{told.filename}" if path else told.filename
            if stat.S_ISDIR(told.st_mode or 0):
                yield from self._below(sftp, whole)
            elif stat.S_ISREG(told.st_mode or 0):
                yield Listed(whole, told.st_size or 0, _moment(told))

    @contextmanager
    def _session(self, sftp: _Sftp | None = None) -> Iterator[_Sftp]:
        """A channel for one user at a time; one that is given stays the caller's, unless it breaks."""
        channel = sftp or self._connections.taken()
        try:
            yield channel
        except BaseException as error:
            if not isinstance(error, _ANSWERED):
                self._connections.broken(channel, error)
                raise
            explained = self._explained(channel, error)
            if sftp is None:
                self._connections.given_back(channel)
            if explained is error:
                raise
        else:
            if sftp is None:
                self._connections.given_back(channel)
            return
        raise explained

    def _explained(self, sftp: _Sftp, error: BaseException) -> BaseException:
        """A refusal without a reason, with the reason, where the file system can be asked for it."""
        if not isinstance(error, _Failed):
            return error
        with suppress(*self.errors):
            if number := sftp.what_ails(self._path("")):
                return OSError(number, "statvfs")
        return error

    @contextmanager
    def _locked(self, sftp: _Sftp, path: str) -> Iterator[Callable[[], bool]]:
        """Nobody else is in here for this message. Hands out how to ask whether that is so still."""
        self._make_root(sftp)
        lock = self._path(f"{LOCKS}/{path.partition('/')[0]}")
        token = secrets.token_hex(16).encode()
        self._take_lock(sftp, lock, token)
        try:
            yield lambda: sftp.bytes_of(lock) == token
        finally:
            with suppress(*self.errors):
                if sftp.bytes_of(lock) == token:
                    sftp.remove(lock)

    def _take_lock(self, sftp: _Sftp, lock: str, token: bytes) -> None:
        seen: bytes | None = None
        since = nobody_since = time.monotonic()
        while True:
            try:
                file = _File(sftp, lock, _NEW)
            except FileNotFoundError:
                sftp.make(self._path(LOCKS))
                refusal: OSError = _Failed()
            except _Failed as error:
                refusal = error
            else:
                try:
                    file.write(token)
                    file.close()
                except _ANSWERED:
                    with suppress(*self.errors):
                        sftp.remove(lock)
                    raise
                return
            holder = sftp.bytes_of(lock)
            now = time.monotonic()
            if holder is None:
                # Given back just now. If nobody ever holds it, it is something else that keeps us from making it.
                if now - nobody_since > min(5.0, self.patience):
                    raise refusal
            elif holder != seen:
                seen, since = holder, now
            elif now - since > self.patience:
                # Of all who wait one renames it, and then all try again.
                with suppress(FileNotFoundError, _Failed):
                    sftp.rename(lock, self._path(f"{INCOMING}/lock.{secrets.token_hex(8)}"))
                seen = None
            if holder is not None:
                nobody_since = now
            time.sleep(random.uniform(0.01, 0.05))  # noqa: S311  # no secret

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root or "/"


class _SftpUpload(Upload):
    """A folder that fills, and gets its name in the end."""

    def __init__(self, backend: SftpBackend, path: str) -> None:
        self._backend = backend
        self._place, _, self._name = path.rpartition("/")
        self._sftp: _Sftp | None = None
        self._folder = ""
        self._file: _File | None = None

    def write(self, data: bytes) -> None:
        with self._session() as sftp:
            self._opened(sftp).write(data)

    def commit(self, metadata: Mapping[str, str]) -> None:
        with self._session() as sftp:
            file = self._opened(sftp)
            file.sync()
            file.close()
            if sftp.lstat(f"{self._folder}/{self._name}").st_size != file.bytes:
                raise _Failed
            _write(sftp, f"{self._folder}/{PROOF}", _Proof(self._name, file.bytes, metadata).to_bytes())
            self._give_name(sftp, self._backend._path(self._place))
            self._folder = ""

    def discard(self) -> None:
        sftp, self._sftp = self._sftp, None
        if sftp is None:
            return
        errors = self._backend.errors
        if self._folder and sftp.is_alive:
            try:
                if self._file is not None:
                    self._file.abandon()
                sftp.remove_all(self._folder)
                self._folder = ""
            except errors as error:
                self._backend._connections.broken(sftp, error)
        if sftp.is_alive:
            self._backend._connections.given_back(sftp)
        if self._folder:
            # Its own connection may be what broke.
            with suppress(*errors), self._backend._session() as another:
                another.remove_all(self._folder)

    @contextmanager
    def _session(self) -> Iterator[_Sftp]:
        if self._sftp is None:
            self._sftp = self._backend._connections.taken()
        with self._backend._session(self._sftp) as sftp:
            yield sftp

    def _opened(self, sftp: _Sftp) -> _File:
        if self._file is None:
            self._backend._make_root(sftp)
            incoming = f"{INCOMING}/{self._place.replace('/', '.')}.{secrets.token_hex(8)}"
            self._folder = self._backend._path(incoming)
            sftp.mkdir(self._folder, FOLDER_MODE)
            self._file = _File(sftp, f"{self._folder}/{self._name}", _NEW)
        return self._file

    def _give_name(self, sftp: _Sftp, target: str) -> None:
        """Renames the folder. Raises Conflict, or FileExistsError where something stands that is no attachment."""
        for _ in range(3):
            try:
                sftp.rename(self._folder, target)
            except FileNotFoundError:
                sftp.make(target.rpartition("/")[0])
                if sftp.has(target):
                    _make_way(sftp, target)
            except _Failed:
                if not sftp.has(target):
                    raise
                _make_way(sftp, target)
            else:
                return
        raise _Failed


def _make_way(sftp: _Sftp, target: str) -> None:
    """Removes an attachment's folder without a file: somebody removed that, or died in between."""
    if not stat.S_ISDIR(sftp.lstat(target).st_mode or 0):
        raise FileExistsError(errno.EEXIST, "no folder")
    standing = sftp.listed(target)
    if any(stat.S_ISREG(told.st_mode or 0) and not told.filename.startswith(".") for told in standing):
        raise Conflict
    if any(told.filename != PROOF for told in standing):
        raise FileExistsError(errno.EEXIST, "not ours")
    with suppress(FileNotFoundError, _Failed):
        if standing:
            sftp.remove(f"{target}/{PROOF}")
        sftp.rmdir(target)


class _Proof:
    """What stands in ``.proof``: which file it is about, and what that file holds."""

    def __init__(self, name: str | None, size: int | None, metadata: Mapping[str, str]) -> None:
        self.name = name
        self.bytes = size
        self.metadata = dict(metadata)

    def to_bytes(self) -> bytes:
        return json.dumps({"name": self.name, "bytes": self.bytes, "metadata": self.metadata}).encode()

    @classmethod
    def parsed(cls, data: bytes | None) -> _Proof:
        """An empty one, should anybody have put something else there."""
        try:
            told = json.loads(data or b"{}")
            metadata = {str(name): str(value) for name, value in told["metadata"].items()}
            return cls(told["name"], told["bytes"], metadata)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            return cls(None, None, {})


class _Sftp(paramiko.SFTPClient):  # type: ignore[misc]  # paramiko ships no types
    """A channel that keeps the server's codes and extensions, which paramiko drops, and logs no path."""

    extensions: frozenset[bytes] = frozenset()

    @property
    def is_alive(self) -> bool:
        channel = self.get_channel()
        transport = channel.get_transport()
        return not channel.closed and transport is not None and bool(transport.is_active())

    def make(self, path: str) -> None:
        """A folder; one that stands there already is fine."""
        try:
            self.mkdir(path, FOLDER_MODE)
        except OSError:
            if not self.has(path) or not stat.S_ISDIR(self.stat(path).st_mode or 0):
                raise

    def has(self, path: str) -> bool:
        """Whether anything stands there."""
        try:
            self.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def listed(self, path: str) -> list[paramiko.SFTPAttributes]:
        """What is in a folder; nothing when there is none. A name that is not UTF-8 keeps its bytes as surrogates."""
        found: list[paramiko.SFTPAttributes] = []
        # Some servers miss the folder only when it is read.
        with suppress(FileNotFoundError):
            handle = self._asked(CMD_HANDLE, CMD_OPENDIR, self._adjust_cwd(path)).get_binary()
            with suppress(EOFError):
                while True:
                    found += _attributes(self._asked(CMD_NAME, CMD_READDIR, handle))
            self._request(CMD_CLOSE, handle)
        return [told for told in found if told.filename not in {".", ".."}]

    def bytes_of(self, path: str, most: int | None = None) -> bytes | None:
        """A small file as a whole, None when there is none, empty when it is larger than it may be."""
        try:
            file = _File(self, path, SFTP_FLAG_READ)
        except FileNotFoundError:
            return None
        data = b"".join(file.blocks(most))
        file.close()
        return data

    def replace(self, source: str, target: str) -> None:
        """Renames a file over another."""
        if b"posix-rename@openssh.com" in self.extensions:
            with suppress(_Lacks):
                self.posix_rename(source, target)
                return
        # There is a moment without a manifest; whoever reads or dies then lists the message again.
        with suppress(FileNotFoundError):
            self.remove(target)
        self.rename(source, target)

    def remove_all(self, path: str) -> None:
        """A file, or a folder with what is in it. What is gone already is fine."""
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(self.lstat(path).st_mode or 0):
                self.remove(path)
                return
            for told in self.listed(path):
                self.remove_all(f"{path}/{told.filename}")
            self.rmdir(path)

    def what_ails(self, path: str) -> int | None:
        """Why nothing can be written there, as the number of an error, where the server can be asked."""
        if b"statvfs@openssh.com" not in self.extensions:
            return None
        answer = self._asked(CMD_EXTENDED_REPLY, CMD_EXTENDED, "statvfs@openssh.com", self._adjust_cwd(path))
        _, unit, _, _, room, files, _, free, _, flags, _ = [answer.get_int64() for _ in range(11)]
        if flags & 1:
            return errno.EROFS
        return errno.ENOSPC if room * unit < _ROOM or (files and not free) else None

    def _asked(self, expected: int, *request: Any) -> paramiko.Message:
        kind, answer = self._request(*request)
        if kind != expected:
            raise SFTPError("another answer was expected")
        return answer

    def _send_version(self) -> int:
        first = paramiko.Message()
        first.add_int(3)
        self._send_packet(CMD_INIT, first)
        kind, data = self._read_packet()
        if kind != CMD_VERSION:
            raise SFTPError("no SFTP")
        told = paramiko.Message(data)
        version = int(told.get_int())
        names = set()
        while told.get_remainder():
            names.add(bytes(told.get_binary()))
            told.get_binary()
        self.extensions = frozenset(names)
        return version

    def _convert_status(self, msg: paramiko.Message) -> None:
        code = msg.get_int()
        if code == SFTP_OK:
            return
        if code == SFTP_EOF:
            raise EOFError
        if code == SFTP_OP_UNSUPPORTED:
            raise _Lacks
        number = {SFTP_NO_SUCH_FILE: errno.ENOENT, SFTP_PERMISSION_DENIED: errno.EACCES}.get(code)
        text = msg.get_binary().lower()
        # The words are no part of the protocol, but some servers have no other way to tell.
        if b"no space" in text or b"quota" in text:
            number = errno.ENOSPC
        raise OSError(number, "status") if number else _Failed()

    def _adjust_cwd(self, path: str | bytes) -> bytes:
        return path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path

    def _log(self, level: int, msg: Any, *args: Any) -> None:
        """Nothing: it would be paths."""


class _File:
    """An open file with several requests under way, whose answers may come in any order.

    paramiko's own forgets the errors of pipelined writes, and leaves threads behind that read ahead.
    """

    def __init__(self, sftp: _Sftp, path: str, flags: int) -> None:
        told = paramiko.SFTPAttributes()
        if flags & SFTP_FLAG_CREATE:
            told.st_mode = FILE_MODE
        self.bytes = 0
        self._sftp = sftp
        self._under_way: dict[int, tuple[int, int]] = {}
        self._came: dict[int, bytes] = {}
        self._error: Exception | None = None
        self._handle = sftp._asked(CMD_HANDLE, CMD_OPEN, sftp._adjust_cwd(path), flags, told).get_binary()

    def write(self, data: bytes) -> None:
        """Appends; raises what became of earlier pieces."""
        view = memoryview(data)
        for at in range(0, len(view), _PIECE):
            piece = bytes(view[at : at + _PIECE])
            self._send(CMD_WRITE, self.bytes, len(piece), piece)
            self.bytes += len(piece)
            while len(self._under_way) >= _UNDER_WAY:
                self._receive()

    def sync(self) -> None:
        """Makes it survive a power failure, where the server knows how; paramiko has no method for it."""
        self._settle()
        if b"fsync@openssh.com" in self._sftp.extensions:
            with suppress(_Lacks):
                self._sftp._request(CMD_EXTENDED, "fsync@openssh.com", self._handle)

    def close(self) -> None:
        """Raises what became of the last pieces."""
        self._settle()
        self._sftp._request(CMD_CLOSE, self._handle)

    def abandon(self) -> None:
        """Closes it, if it is open, whatever became of it."""
        with suppress(*_ANSWERED):
            while self._under_way:
                self._receive(tolerant=True)
            self._sftp._request(CMD_CLOSE, self._handle)

    def blocks(self, most: int | None = None) -> Iterator[bytes]:
        """What is in it; nothing when that is more than `most`."""
        size = self._sftp_size()
        if most is not None and size > most:
            return
        at = asked = 0
        while at < size:
            while asked < size and len(self._under_way) < _UNDER_WAY:
                length = min(_PIECE, size - asked)
                self._send(CMD_READ, asked, length, length)
                asked += length
            while at not in self._came:
                self._receive()
            block = self._came.pop(at)
            at += len(block)
            yield block

    def _sftp_size(self) -> int:
        told = paramiko.SFTPAttributes._from_msg(self._sftp._asked(CMD_ATTRS, CMD_FSTAT, self._handle))
        return int(told.st_size or 0)

    def _send(self, command: int, offset: int, length: int, argument: bytes | int) -> None:
        number = self._sftp._async_request(self, command, self._handle, int64(offset), argument)
        self._under_way[number] = (offset, length)

    def _receive(self, *, tolerant: bool = False) -> None:
        self._sftp._read_response()
        if self._error is not None and not tolerant:
            raise self._error

    def _settle(self) -> None:
        while self._under_way:
            self._receive()

    def _async_response(self, kind: int, answer: paramiko.Message, number: int) -> None:
        """Called by paramiko for each answer."""
        offset, length = self._under_way.pop(number)
        if kind == CMD_DATA:
            data = answer.get_binary()
            self._came[offset] = data
            if not data:
                self._error = SFTPError("no data")
            elif len(data) < length:
                rest = length - len(data)
                self._send(CMD_READ, offset + len(data), rest, rest)
            return
        try:
            self._sftp._convert_status(answer)
        except (OSError, EOFError, _Lacks) as error:
            self._error = self._error or error


class _Connections:
    """Connections to one server, each with several channels; a channel is for one user at a time."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._idle: list[_Sftp] = []
        self._links: list[_Link] = []
        self._failed: tuple[float, Exception] | None = None

    def taken(self) -> _Sftp:
        """A channel that was alive a moment ago."""
        with self._lock:
            while self._idle:
                sftp = self._idle.pop()
                if sftp.is_alive:
                    return sftp
        asked = time.monotonic()
        with self._connecting:
            # Those who waited for a connection that did not come do not each wait for their own.
            if self._failed is not None and self._failed[0] > asked:
                raise self._failed[1]
            try:
                return self._opened()
            except (paramiko.SSHException, OSError, EOFError, _Refused) as error:
                self._failed = (time.monotonic(), error.with_traceback(None))
                raise

    def given_back(self, sftp: _Sftp) -> None:
        """It is free for the next one."""
        with self._lock:
            if sftp.is_alive and len(self._idle) < _CHANNELS:
                self._idle.append(sftp)
                return
        self._close(sftp)

    def broken(self, sftp: _Sftp, error: BaseException) -> None:
        """Nobody may use it again; nor its connection, when the server does not answer."""
        if isinstance(error, TimeoutError):
            sftp.get_channel().get_transport().close()
        self._close(sftp)

    def close(self) -> None:
        """Ends all of them."""
        with self._lock:
            links, self._links, self._idle = self._links, [], []
        for link in links:
            link.client.close()

    def _close(self, sftp: _Sftp) -> None:
        with suppress(paramiko.SSHException, OSError, EOFError):
            sftp.close()
        transport = sftp.get_channel().get_transport()
        with self._lock:
            link = next((link for link in self._links if link.client.get_transport() is transport), None)
        if link is not None:
            self._leave(link)

    def _leave(self, link: _Link) -> None:
        """It has one channel less; without any it ends, unless it is the last."""
        with self._lock:
            link.channels -= 1
            if link.channels or len(self._links) == 1 or link not in self._links:
                return
            self._links.remove(link)
        link.client.close()

    def _opened(self) -> _Sftp:
        while True:
            with self._lock:
                dead = [link for link in self._links if not _is_active(link.client)]
                self._links = [link for link in self._links if link not in dead]
                link = next((link for link in self._links if link.channels < link.most), None)
                if link is not None:
                    link.channels += 1
            for each in dead:
                each.client.close()
            is_new = link is None
            if link is None:
                link = _Link(_connected(self._options))
                with self._lock:
                    self._links.append(link)
            try:
                return _channel(link.client)
            except paramiko.ChannelException:
                # This server allows fewer to a connection.
                link.most = link.channels - 1
                self._leave(link)
                if is_new:
                    raise
            except BaseException:
                self._leave(link)
                raise


class _Link:
    """A connection, with how many channels are open on it and how many may be."""

    def __init__(self, client: paramiko.SSHClient) -> None:
        self.client = client
        self.channels = 1
        self.most = _CHANNELS


def _channel(client: paramiko.SSHClient) -> _Sftp:
    transport = client.get_transport()
    if transport is None:
        raise paramiko.SSHException
    # Asking for a subsystem has no time-out of its own.
    guard = threading.Timer(_CONNECT, transport.close)
    guard.daemon = True
    guard.start()
    channel = None
    try:
        channel = transport.open_session()
        channel.settimeout(_ANSWER)
        channel.invoke_subsystem("sftp")
        return _Sftp(channel)
    except BaseException:
        if channel is not None:
            channel.close()
        raise
    finally:
        guard.cancel()


def _is_active(client: paramiko.SSHClient) -> bool:
    transport = client.get_transport()
    return transport is not None and bool(transport.is_active())


def _is_in_login(client: paramiko.SSHClient) -> bool:
    """Whether the host has shown its key, is still there, and has not let us in."""
    transport = client.get_transport()
    with suppress(paramiko.SSHException):
        return transport is not None and transport.get_remote_server_key() and not transport.is_authenticated()
    return False


class _UnknownHost(paramiko.SSHException):  # type: ignore[misc]  # as above
    """The host shows a key that nobody has vouched for."""


class _Reject(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # as above
    """As paramiko's own, which does not say so by its type."""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:  # noqa: ARG002  paramiko's names
        raise _UnknownHost


def _connected(options: Mapping[str, Any]) -> paramiko.SSHClient:
    """A connection to a host that showed a known key, logged in. Raises _Refused, SSHException, OSError, EOFError."""
    login = {name: value for name, value in options.items() if name in _LOGIN}
    times = {name: options.get(name, _CONNECT) for name in _TIMEOUTS}
    if login.keys() & {"password", "pkey", "key_filename"}:
        # Servers count what is tried: the keys that lie about might use up all tries.
        login = {"look_for_keys": False, "allow_agent": False, **login}
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_Reject())
    _learn_host_keys(client, options)
    try:
        client.connect(options["host"], options["port"], **login, **times)
        client.get_transport().set_keepalive(_KEEP_ALIVE)
    except BaseException as error:
        in_login = _is_in_login(client)
        client.close()
        if isinstance(error, _UnknownHost | paramiko.BadHostKeyException):
            raise _Refused("HostKey", _CHECK_HOST) from None
        # A server that is stopped in the middle of a login says nothing about the password.
        if isinstance(error, paramiko.AuthenticationException) and (not in_login or "timeout" in str(error)):
            raise paramiko.SSHException from None
        # No way to log in, or a key file that is missing or no key.
        wrong = ValueError | FileNotFoundError | PermissionError | paramiko.PasswordRequiredException
        if isinstance(error, wrong) or (in_login and isinstance(error, paramiko.SSHException)):
            raise _Refused("Login", _CHECK_LOGIN) from None
        raise
    return client


def _learn_host_keys(client: paramiko.SSHClient, options: Mapping[str, Any]) -> None:
    if "host_key" in options:
        host, port = options["host"], options["port"]
        for key in options["host_key"]:
            client.get_host_keys().add(host if port == _PORT else f"[{host}]:{port}", key.get_name(), key)
        return
    named = options.get("known_hosts")
    for path in [named] if named else _KNOWN_HOSTS:
        try:
            client.get_host_keys().load(str(Path(path).expanduser()))
        except (OSError, ValueError, InvalidHostKey):
            if named:
                raise _Refused("KnownHosts", "the file that the option known_hosts names can't be read") from None


def _host_keys(text: str) -> list[paramiko.PKey]:
    """Keys as in ``known_hosts``, one a line, with or without the host before them."""
    keys: list[paramiko.PKey] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        for words in (line.split(), line.split()[1:]):
            with suppress(paramiko.SSHException, InvalidHostKey, ValueError, IndexError):
                entry = HostKeyEntry.from_line(f"host {words[0]} {words[1]}")
                if entry is not None and entry.key is not None:
                    keys.append(entry.key)
                    break
        else:
            raise UnsupportedStore("the option host_key is no host key; write it as in known_hosts: ssh-ed25519 AAAA…")
    if not keys:
        raise UnsupportedStore("the option host_key is empty; write it as in known_hosts: ssh-ed25519 AAAA…")
    return keys


def _private_key(text: str, passphrase: str | None) -> paramiko.PKey:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        with suppress(paramiko.SSHException, ValueError, IndexError):
            return kind.from_private_key(io.StringIO(text), passphrase)
    raise UnsupportedStore("the option pkey is no private key, or the option passphrase does not open it")


def _write(sftp: _Sftp, path: str, data: bytes) -> None:
    """A new small file."""
    file = _File(sftp, path, _NEW)
    file.write(data)
    file.sync()
    file.close()


def _attributes(answer: paramiko.Message) -> Iterator[paramiko.SFTPAttributes]:
    for _ in range(answer.get_int()):
        name = answer.get_binary().decode("utf-8", "surrogateescape")
        answer.get_binary()  # as `ls -l` has it
        yield paramiko.SFTPAttributes._from_msg(answer, name)


def _moment(told: paramiko.SFTPAttributes) -> datetime:
    return datetime.fromtimestamp(told.st_mtime or 0, UTC)
