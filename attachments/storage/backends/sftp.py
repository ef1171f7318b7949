"""SFTP, by asyncssh. fsspec's own client accepts any host key, and does not report every failed write.

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
import json
import random
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit

import asyncssh
from asyncssh import FXF_CREAT, FXF_EXCL, FXF_READ, FXF_WRITE
from fsspec.utils import infer_storage_options

from attachments.storage.backends.base import (
    Backend,
    Conflict,
    Failure,
    Listed,
    ObjectHeaders,
    ObjectStat,
    Orphan,
    Upload,
    Version,
)
from attachments.storage.backends.sftp_client import RESPONSES, Failed, RemoteFile, RootGone, SftpClient, Unsupported
from attachments.storage.backends.sftp_connections import OPTIONS, PORT, Connections, Refused, host_keys, private_key
from attachments.storage.encryption import Encryption
from attachments.storage.errors import AccessDenied, NotFound, StoreUnavailable, UnsupportedStore
from attachments.storage.keys import is_hold, is_key
from attachments.storage.local.errors import failure_of
from attachments.storage.manifest import MAX_READ
from attachments.storage.names import shorter_names

INCOMING = ".incoming"
LOCKS = ".locks"
PROOF = ".proof"
_PROOF_BYTES = 64 * 1024
_LOCK_BYTES = 1024
_NEW = FXF_WRITE | FXF_CREAT | FXF_EXCL


class SftpBackend(Backend):
    """A folder of an SFTP server."""

    errors = (asyncssh.Error, OSError, Refused, RootGone, Unsupported)
    patience: ClassVar[float] = 60.0
    """Seconds after which a lock that has not changed is taken for a dead writer's."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self._root = path.rstrip("/")
        self._options = dict(options)
        self._connections = Connections(options)
        # They end with the process by themselves.
        weakref.finalize(self, self._connections.close).atexit = False
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
            parts = infer_storage_options(url)
            named = {name: part for name, part in parts.items() if name not in {"protocol", "path"}}
            known = {**named, "host": urlsplit(url).hostname, **options}
            port = int(known.get("port") or PORT)
        except ValueError:
            raise UnsupportedStore(
                "the store's URL or port cannot be read; write it as sftp://host:22/folder"
            ) from None
        if not known["host"]:
            raise UnsupportedStore("the store's URL names no host; write it as sftp://host/folder")
        if unknown := sorted(set(known) - OPTIONS):
            raise UnsupportedStore(f"SFTP has no option {', '.join(unknown)}; docs/stores.md has the usual ones")
        if encryption.needs_service:
            raise UnsupportedStore(f"{encryption.needs_service} is not supported on SFTP; use age recipients instead")
        if "host_key" in known:
            known["host_key"] = host_keys(str(known["host_key"]))
        if isinstance(known.get("pkey"), str):
            known["pkey"] = private_key(known["pkey"], known.get("passphrase"))
        return cls(parts["path"], {**known, "port": port})

    @property
    def url(self) -> str:
        host, port = str(self._options["host"]), self._options["port"]
        return f"sftp://{f'[{host}]' if ':' in host else host}{'' if port == PORT else f':{port}'}{self._root}"

    def failure(self, error: Exception) -> Failure:
        symbol = type(error).__name__.strip("_")
        if isinstance(error, RootGone):
            return Failure(NotFound, symbol, "its root folder does not exist; restore it, or restart the worker")
        if isinstance(error, Refused):
            return Failure(AccessDenied, error.symbol, error.advice)
        if isinstance(error, Unsupported):
            advice = "the server cannot rename folders or replace files; use another server, or the storage behind it"
            return Failure(UnsupportedStore, symbol, advice)
        number = error.errno if isinstance(error, OSError) else None
        # Of other numbers the connection's socket may be the origin.
        if number in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EEXIST} or (
            number and isinstance(error, Failed)
        ):
            return failure_of(error)
        symbol = errno.errorcode.get(number or 0, symbol)
        return Failure(StoreUnavailable, symbol, "check host and network if this persists; it is retried")

    def objects(self, prefix: str) -> Iterator[Listed]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            found = list(self._below(sftp, prefix.rstrip("/")))
        yield from found

    def exists(self) -> bool:
        with self._session() as sftp:
            return self._look_at_root(sftp) or sftp.has(self._path(""))

    def message_keys(self) -> Iterator[str]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            names = sftp.folders(self._path(""))
        yield from (name for name in names if not name.startswith("."))

    def stat(self, path: str) -> ObjectStat | None:
        place, _, name = path.rpartition("/")
        with self._session() as sftp:
            try:
                entry = sftp.lstat(self._path(path))
            except FileNotFoundError:
                self._look_at_root(sftp)
                return None
            if not entry.is_file:
                return None
            proof = _Proof.parsed(sftp.bytes_of(self._path(f"{place}/{PROOF}"), _PROOF_BYTES))
        is_proven = (proof.name, proof.bytes) == (name, entry.bytes)
        return ObjectStat(entry.bytes, entry.modified, proof.metadata if is_proven else {})

    def is_file(self, path: str) -> bool:
        ends = [end for end, letter in enumerate(f"{path}/") if letter == "/"]
        with self._session() as sftp:
            try:
                *folders, file = [sftp.lstat(self._path(path[:end])) for end in ends]
            except FileNotFoundError:
                return False
        return all(folder.is_folder for folder in folders) and file.is_file

    def read(self, path: str) -> Iterator[bytes]:
        with self._session() as sftp:
            file = RemoteFile(sftp, self._path(path), FXF_READ)
            yield from file.blocks()
            file.close()

    def get(self, path: str) -> tuple[bytes, Version] | None:
        with self._session() as sftp:
            data = sftp.bytes_of(self._path(path), MAX_READ)
            if data is None:
                self._look_at_root(sftp)
                return None
        return data, hashlib.sha256(data).hexdigest()

    def put(self, path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:  # noqa: ARG002  files keep no labels
        with self._session() as sftp, self._locked(sftp, path) as still_ours:
            existing = sftp.bytes_of(self._path(path), MAX_READ)
            if (None if existing is None else hashlib.sha256(existing).hexdigest()) != replaces:
                raise Conflict
            temporary = self._path(f"{INCOMING}/{path.replace('/', '.')}.{secrets.token_hex(8)}")
            try:
                _write(sftp, temporary, data)
                sftp.make(self._path(path).rpartition("/")[0])
                if not still_ours():
                    raise Conflict
                sftp.replace(temporary, self._path(path))
            except RESPONSES:
                with suppress(*self.errors):
                    sftp.remove(temporary)
                raise

    def upload(self, path: str, labels: ObjectHeaders) -> Upload:  # noqa: ARG002  files keep no labels
        return _SftpUpload(self, path)

    def remove(self, path: str) -> None:
        place = path.rpartition("/")[0]
        folders = [place[:end] for end, letter in enumerate(f"{place}/") if letter == "/"]
        with self._session() as sftp:
            # A link would lead to what is none of ours, the message's folder as well as the attachment's.
            for each in (*folders, path):
                with suppress(FileNotFoundError):
                    entry = sftp.lstat(self._path(each))
                    if not (entry.is_file if each == path else entry.is_folder):
                        raise FileExistsError(errno.EEXIST, "not ours")
            for each in (path, f"{place}/{PROOF}"):
                with suppress(FileNotFoundError):
                    sftp.remove(self._path(each))
            # Fails where something else is left in it, which is as it should be.
            with suppress(FileNotFoundError, Failed):
                sftp.rmdir(self._path(place))

    def orphans(self) -> Iterator[Orphan]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            found = [(INCOMING, "temporary file", entry) for entry in sftp.listed(self._path(INCOMING))]
            found += [(LOCKS, "lock of a manifest", entry) for entry in sftp.listed(self._path(LOCKS))]
        for folder, what, entry in found:
            place = "/".join(part for part in entry.name.split(".")[:2] if is_key(part))
            yield Orphan(what, place, f"{folder}/{entry.name}", entry.modified)

    def clear(self, residue: Orphan) -> None:
        with self._session() as sftp:
            sftp.remove_all(self._path(residue.path))

    def _make_root(self, sftp: SftpClient) -> None:
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

    def _look_at_root(self, sftp: SftpClient) -> bool:
        """Whether the root is a store already. Raises RootGone when it was, and is not any more."""
        # Read before asking: another thread may be making the store right now.
        existed, was_a_store = self._existed, self._was_a_store
        if sftp.has(self._path(INCOMING)):
            self._existed = self._was_a_store = True
            return True
        if was_a_store:
            raise RootGone
        if sftp.has(self._path("")):
            self._existed = True
        elif existed:
            raise RootGone
        return False

    def _below(self, sftp: SftpClient, path: str) -> Iterator[Listed]:
        for entry in sftp.listed(self._path(path)):
            if entry.name.startswith("."):
                continue
            whole = f"{path}/{entry.name}" if path else entry.name
            if is_key(path) and is_hold(entry.name):
                # Whatever it is: a folder or a link beside the manifest has been put there to hold as well.
                yield Listed(whole, entry.bytes, entry.modified)
            elif entry.is_folder:
                yield from self._below(sftp, whole)
            elif entry.is_file:
                yield Listed(whole, entry.bytes, entry.modified)

    @contextmanager
    def _session(self, sftp: SftpClient | None = None) -> Iterator[SftpClient]:
        """A session for one thread; one that is given stays the caller's, unless it breaks."""
        session = sftp or self._connections.acquire()
        try:
            yield session
        except BaseException as error:
            if not isinstance(error, RESPONSES):
                self._connections.drop(session, error)
                raise
            explained = self._explained(session, error)
            if sftp is None:
                self._connections.release(session)
            if explained is error:
                raise
        else:
            if sftp is None:
                self._connections.release(session)
            return
        raise explained

    def _explained(self, sftp: SftpClient, error: BaseException) -> BaseException:
        """A refusal without a reason, with the reason if the file system's state shows it."""
        if not isinstance(error, Failed) or error.errno:
            return error
        with suppress(*self.errors):
            if number := sftp.write_error(self._path("")):
                return OSError(number, "statvfs")
        return error

    @contextmanager
    def _locked(self, sftp: SftpClient, path: str) -> Iterator[Callable[[], bool]]:
        """Nobody else is in here for this message. Hands out how to ask whether that is so still."""
        self._make_root(sftp)
        lock = self._path(f"{LOCKS}/{path.partition('/')[0]}")
        token = secrets.token_hex(16).encode()
        self._take_lock(sftp, lock, token)
        try:
            yield lambda: sftp.bytes_of(lock, _LOCK_BYTES) == token
        finally:
            with suppress(*self.errors):
                if sftp.bytes_of(lock, _LOCK_BYTES) == token:
                    sftp.remove(lock)

    def _take_lock(self, sftp: SftpClient, lock: str, token: bytes) -> None:
        seen: bytes | None = None
        since = nobody_since = time.monotonic()
        while True:
            try:
                file = RemoteFile(sftp, lock, _NEW)
            except FileNotFoundError:
                sftp.make(self._path(LOCKS))
                refusal: OSError = Failed()
            except Failed as error:
                refusal = error
            else:
                try:
                    file.write(token)
                    file.close()
                except RESPONSES:
                    with suppress(*self.errors):
                        sftp.remove(lock)
                    raise
                return
            holder = sftp.bytes_of(lock, _LOCK_BYTES)
            now = time.monotonic()
            if holder is None:
                # Given back just now. If nobody ever holds it, it is something else that keeps us from making it.
                if now - nobody_since > min(5.0, self.patience):
                    raise refusal
            elif holder != seen:
                seen, since = holder, now
            elif now - since > self.patience:
                # Of all who wait one renames it, and then all try again.
                with suppress(FileNotFoundError, Failed):
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
        self.path = path
        self._place, _, self._name = path.rpartition("/")
        self._sftp: SftpClient | None = None
        self._folder = ""
        self._file: RemoteFile | None = None

    def write(self, data: bytes) -> None:
        with self._session() as sftp:
            self._opened(sftp).write(data)

    def commit(self, metadata: Mapping[str, str]) -> None:
        with self._session() as sftp:
            file = self._opened(sftp)
            file.sync()
            file.close()
            if sftp.lstat(f"{self._folder}/{self._name}").bytes != file.bytes:
                raise Failed
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
                self._backend._connections.drop(sftp, error)
        if sftp.is_alive:
            self._backend._connections.release(sftp)
        if self._folder:
            # Its own connection may be what broke.
            with suppress(*errors), self._backend._session() as another:
                another.remove_all(self._folder)

    @contextmanager
    def _session(self) -> Iterator[SftpClient]:
        if self._sftp is None:
            self._sftp = self._backend._connections.acquire()
        with self._backend._session(self._sftp) as sftp:
            yield sftp

    def _opened(self, sftp: SftpClient) -> RemoteFile:
        if self._file is None:
            self._backend._make_root(sftp)
            incoming = f"{INCOMING}/{self._place.replace('/', '.')}.{secrets.token_hex(8)}"
            self._folder = self._backend._path(incoming)
            sftp.mkdir(self._folder)
            self._file = self._created(sftp)
        return self._file

    def _created(self, sftp: SftpClient) -> RemoteFile:
        """The file under its final name, or under a shorter one: no request asks how long one may be."""
        refusal: Failed | None = None
        for name in shorter_names(self._name):
            try:
                file = RemoteFile(sftp, f"{self._folder}/{name}", _NEW)
            except Failed as error:
                refusal = refusal or error
            else:
                self._name = name
                self.path = f"{self._place}/{name}"
                return file
        raise refusal or AssertionError("a name is tried at least once")

    def _give_name(self, sftp: SftpClient, target: str) -> None:
        """Renames the folder. Raises Conflict, or FileExistsError where something stands that is no attachment."""
        for _ in range(3):
            try:
                sftp.rename(self._folder, target)
            except FileNotFoundError:
                sftp.make(target.rpartition("/")[0])
                if sftp.has(target):
                    _make_way(sftp, target)
            except Failed:
                if not sftp.has(target):
                    raise
                _make_way(sftp, target)
            else:
                return
        raise Failed


def _make_way(sftp: SftpClient, target: str) -> None:
    """Removes an attachment's folder without a file: somebody removed that, or died in between."""
    if not sftp.lstat(target).is_folder:
        raise FileExistsError(errno.EEXIST, "no folder")
    entries = sftp.listed(target)
    if any(entry.is_file and not entry.name.startswith(".") for entry in entries):
        raise Conflict
    if any(entry.name != PROOF for entry in entries):
        raise FileExistsError(errno.EEXIST, "not ours")
    with suppress(FileNotFoundError, Failed):
        if entries:
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
            claim = json.loads(data or b"{}")
            metadata = {str(name): str(value) for name, value in claim["metadata"].items()}
            return cls(claim["name"], claim["bytes"], metadata)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            return cls(None, None, {})


def _write(sftp: SftpClient, path: str, data: bytes) -> None:
    """A new small file."""
    file = RemoteFile(sftp, path, _NEW)
    file.write(data)
    file.sync()
    file.close()
