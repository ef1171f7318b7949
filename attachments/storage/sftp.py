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
been stopped for so long, and go on in just the moment between looking and renaming, it overwrites what another wrote
meanwhile; the next run adds what is missing.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, cast

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem
from paramiko.sftp import CMD_EXTENDED

from attachments.storage.backend import Backend, Conflict, Failure, Labels, Listed, Residue, Standing, Upload, Version
from attachments.storage.encryption import Encryption
from attachments.storage.errors import AccessDenied, NotFound, OutOfSpace, StoreUnavailable, UnsupportedStore
from attachments.storage.folders import FILE_MODE, FOLDER_MODE
from attachments.storage.keys import is_key
from attachments.storage.local_errors import failure_of

INCOMING = ".incoming"
LOCKS = ".locks"
PROOF = ".proof"
_BLOCK = 1024 * 1024
_ANSWER = 60.0  # seconds to wait for an answer
_CONNECT = 15.0
_KEEP_ALIVE = 30
_IDLE = 8  # connections kept for the next one who needs one
_PORT = 22
_OPTIONS = frozenset(
    [
        "host",
        "port",
        "username",
        "password",
        "key_filename",
        "passphrase",
        "pkey",
        "look_for_keys",
        "allow_agent",
        "compress",
        "disabled_algorithms",
        "gss_auth",
        "gss_kex",
        "gss_deleg_creds",
        "gss_host",
        "known_hosts",
        "host_key",
    ]
)


class _UnknownHost(paramiko.SSHException):  # type: ignore[misc]  # paramiko ships no types
    """The host shows a key that nobody has vouched for."""


class _Gone(Exception):
    """The root is not where it was."""


class _Reject(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # as above
    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:  # noqa: ARG002  paramiko's names
        raise _UnknownHost


class SftpBackend(Backend):
    """A folder of an SFTP server."""

    errors = (paramiko.SSHException, EOFError, OSError, _Gone)
    patience: ClassVar[float] = 60.0
    """Seconds after which a lock that has not changed is taken for a dead writer's."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self._root = path.rstrip("/")
        self._options = dict(options)
        self._idle: list[paramiko.SSHClient] = []
        self._lock = threading.Lock()
        self._was_a_store = False

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any], encryption: Encryption) -> SftpBackend:
        """The backend at ``sftp://host/root``; the options are those of paramiko's `connect`, and two for host keys.

        `host_key` is the key that the host must show, as in ``known_hosts``: ``ssh-ed25519 AAAA…``. `known_hosts` is
        the path of such a file, instead of the user's own. Raises UnsupportedStore.
        """
        told = {**SFTPFileSystem._get_kwargs_from_urls(url), **options}
        if not told.get("host"):
            raise UnsupportedStore("the store's URL names no host; write it as sftp://host/folder")
        if unknown := sorted(set(told) - _OPTIONS):
            raise UnsupportedStore(f"SFTP knows no option {', '.join(unknown)}; docs/stores.md has the usual ones")
        if encryption.needs_service:
            raise UnsupportedStore(
                f"{encryption.needs_service} is nothing that SFTP can do; use age recipients instead"
            )
        if "host_key" in told:
            _host_key(str(told["host_key"]))
        return cls(str(SFTPFileSystem._strip_protocol(url)), told)

    @property
    def url(self) -> str:
        port = self._options.get("port", _PORT)
        return f"sftp://{self._options['host']}{'' if port == _PORT else f':{port}'}{self._root}"

    def failure(self, error: Exception) -> Failure:
        symbol = type(error).__name__.strip("_")
        if isinstance(error, _Gone):
            return Failure(NotFound, symbol, "its root folder is gone; bring it back, or start the worker again")
        if isinstance(error, _UnknownHost | paramiko.BadHostKeyException):
            advice = "the host's key is not the known one; find out why, then set the option host_key or known_hosts"
            return Failure(AccessDenied, symbol, advice)
        if isinstance(error, paramiko.AuthenticationException | paramiko.PasswordRequiredException):
            return Failure(AccessDenied, symbol, "check user name, password and key in the store's options")
        if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return failure_of(error)
        # Version 3 of the protocol has no number for it, only words.
        if isinstance(error, OSError) and any(word in str(error).lower() for word in ("no space", "quota")):
            return Failure(OutOfSpace, "ENOSPC", "make room or raise the quota, then run it again")
        return Failure(StoreUnavailable, symbol, "check host and network if this goes on; it is tried again")

    def objects(self, prefix: str) -> Iterator[Listed]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            found = list(self._below(sftp, prefix.rstrip("/")))
        yield from found

    def message_keys(self) -> Iterator[str]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            names = _names(sftp, self._root)
        yield from (name for name in names if not name.startswith("."))

    def look(self, path: str) -> Standing | None:
        place, _, name = path.rpartition("/")
        with self._session() as sftp:
            try:
                told = sftp.lstat(self._path(path))
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(told.st_mode or 0):
                return None
            proof = _json(_bytes(sftp, self._path(f"{place}/{PROOF}")))
        if proof.pop("name", None) != name:
            proof = {}
        return Standing(told.st_size or 0, _moment(told), proof)

    def read(self, path: str) -> Iterator[bytes]:
        with self._session() as sftp, sftp.open(self._path(path), "rb") as file:
            file.prefetch(max_concurrent_requests=64)
            while block := file.read(_BLOCK):
                yield block

    def load(self, path: str) -> tuple[bytes, Version] | None:
        with self._session() as sftp:
            data = _bytes(sftp, self._path(path))
        return None if data is None else (data, hashlib.sha256(data).hexdigest())

    def save(self, path: str, data: bytes, labels: Labels, *, replaces: Version | None) -> None:  # noqa: ARG002  files keep no labels
        with self._session() as sftp, self._locked(sftp, path):
            standing = _bytes(sftp, self._path(path))
            if (None if standing is None else hashlib.sha256(standing).hexdigest()) != replaces:
                raise Conflict
            temporary = self._path(f"{INCOMING}/{path.replace('/', '.')}.{secrets.token_hex(8)}")
            try:
                _write(sftp, temporary, data)
                _make(sftp, self._path(path).rpartition("/")[0])
                _replace(sftp, temporary, self._path(path))
            except BaseException:
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
            with suppress(OSError):
                sftp.rmdir(self._path(place))

    def residue(self) -> Iterator[Residue]:
        with self._session() as sftp:
            self._look_at_root(sftp)
            found = _listed(sftp, self._path(INCOMING))
        for told in found:
            place = "/".join(part for part in told.filename.split(".")[:2] if is_key(part))
            yield Residue("temporary file", place, f"{INCOMING}/{told.filename}", _moment(told))

    def clear(self, residue: Residue) -> None:
        with self._session() as sftp:
            _remove_all(sftp, self._path(residue.path))

    def made_folder(self, sftp: paramiko.SFTPClient, path: str) -> str:
        """A folder of the store's own, made when it is missing; and what is known of the root is brought up to date."""
        if not self._look_at_root(sftp):
            if self._was_a_store:
                raise _Gone
            folder = ""
            for part in self._root.split("/"):
                folder = f"{folder}/{part}" if folder else part or "/"
                _make(sftp, folder.replace("//", "/"))
        for own in (INCOMING, LOCKS):
            _make(sftp, self._path(own))
        self._was_a_store = True
        whole = self._path(path)
        _make(sftp, whole)
        return whole

    @contextmanager
    def _session(self) -> Iterator[paramiko.SFTPClient]:
        """A connection for one user at a time: paramiko's clients are not for several threads at once."""
        client = self.taken()
        try:
            yield self.sftp_of(client)
        except (FileNotFoundError, Conflict):
            self.given_back(client)
            raise
        except BaseException:
            client.close()
            raise
        else:
            self.given_back(client)

    def taken(self) -> paramiko.SSHClient:
        """A connection for one user at a time."""
        while True:
            with self._lock:
                client = self._idle.pop() if self._idle else None
            if client is None:
                return self._connected()
            transport = client.get_transport()
            if transport is not None and transport.is_active():
                return client
            client.close()

    def given_back(self, client: paramiko.SSHClient) -> None:
        """The connection is free for the next one."""
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(client)
                return
        client.close()

    @staticmethod
    def sftp_of(client: paramiko.SSHClient) -> paramiko.SFTPClient:
        """The connection's only channel."""
        return cast("paramiko.SFTPClient", client.attachments_sftp)

    def _connected(self) -> paramiko.SSHClient:
        told = dict(self._options)
        host, port = told.pop("host"), int(told.pop("port", _PORT))
        host_key, known_hosts = told.pop("host_key", None), told.pop("known_hosts", None)
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_Reject())
        if host_key is not None:
            key = _host_key(str(host_key))
            client.get_host_keys().add(host if port == _PORT else f"[{host}]:{port}", key.get_name(), key)
        elif known_hosts is not None:
            client.load_host_keys(str(Path(known_hosts).expanduser()))
        else:
            client.load_system_host_keys()
        try:
            client.connect(
                host,
                port,
                timeout=_CONNECT,
                banner_timeout=_CONNECT,
                auth_timeout=_CONNECT,
                channel_timeout=_CONNECT,
                **told,
            )
            transport = client.get_transport()
            if transport is None:
                raise paramiko.SSHException
            transport.set_keepalive(_KEEP_ALIVE)
            sftp = client.open_sftp()
            channel = sftp.get_channel()
            if channel is not None:
                channel.settimeout(_ANSWER)
        except BaseException:
            client.close()
            raise
        client.attachments_sftp = sftp  # they live and die together
        return client

    @contextmanager
    def _locked(self, sftp: paramiko.SFTPClient, path: str) -> Iterator[None]:
        """Nobody else is in here for this message."""
        lock = f"{self.made_folder(sftp, LOCKS)}/{path.partition('/')[0]}"
        token = secrets.token_hex(16).encode()
        seen: bytes | None = None
        since = time.monotonic()
        while True:
            try:
                _write(sftp, lock, token, exclusive=True)
                break
            except OSError:
                holder = _bytes(sftp, lock)
            if holder is None:
                time.sleep(0.01)  # it was given back just now, or somebody is writing into it
                if time.monotonic() - since > 2 * self.patience:
                    raise OSError(errno.EIO, "lock")
            elif holder != seen:
                seen, since = holder, time.monotonic()
            elif time.monotonic() - since > self.patience:
                # Of all who wait one renames it, and then all try again.
                with suppress(OSError):
                    sftp.rename(lock, self._path(f"{INCOMING}/lock.{secrets.token_hex(8)}"))
                seen = None
            else:
                time.sleep(0.02)
        try:
            yield
        finally:
            with suppress(*self.errors):
                if _bytes(sftp, lock) == token:
                    sftp.remove(lock)

    def _look_at_root(self, sftp: paramiko.SFTPClient) -> bool:
        """Whether the root is a store already. Raises _Gone when it was one, and is not any more."""
        try:
            sftp.stat(self._path(INCOMING))
        except FileNotFoundError:
            if self._was_a_store:
                raise _Gone from None
            return False
        self._was_a_store = True
        return True

    def _below(self, sftp: paramiko.SFTPClient, path: str) -> Iterator[Listed]:
        for told in _listed(sftp, self._path(path)):
            if told.filename.startswith("."):
                continue
            whole = f"{path}/{told.filename}" if path else told.filename
            if stat.S_ISDIR(told.st_mode or 0):
                yield from self._below(sftp, whole)
            elif stat.S_ISREG(told.st_mode or 0):
                yield Listed(whole, told.st_size or 0, _moment(told))

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root or "/"


class _SftpUpload(Upload):
    """A folder that fills, and gets its name in the end."""

    def __init__(self, backend: SftpBackend, path: str) -> None:
        self._backend = backend
        self._place, _, self._name = path.rpartition("/")
        self._client: paramiko.SSHClient | None = None
        self._folder = ""
        self._file: Any = None
        self._last = b""
        self._bytes = 0

    def write(self, data: bytes) -> None:
        if not data:
            return
        file = self._opened()
        if self._last:
            file.write(self._last)
        # The last piece is held back: the answers to all others are looked at when that one is written.
        self._last = bytes(data)
        self._bytes += len(data)

    def commit(self, metadata: Mapping[str, str]) -> None:
        file = self._opened()
        client = self._client
        assert client is not None  # noqa: S101 - it was opened above
        sftp = self._backend.sftp_of(client)
        file.set_pipelined(False)
        file.write(self._last)
        _sync(sftp, file)
        file.close()
        if sftp.stat(f"{self._folder}/{self._name}").st_size != self._bytes:
            raise OSError(errno.EIO, "short")
        _write(sftp, f"{self._folder}/{PROOF}", json.dumps({**metadata, "name": self._name}).encode())
        target = self._backend._path(self._place)
        _make(sftp, target.rpartition("/")[0])
        for _ in range(2):
            try:
                sftp.rename(self._folder, target)
            except OSError:
                standing = _names(sftp, target)
                if any(not name.startswith(".") for name in standing):
                    raise Conflict from None
                # An empty folder: somebody removed its file, or died in between.
                for name in standing:
                    sftp.remove(f"{target}/{name}")
                with suppress(FileNotFoundError):
                    sftp.rmdir(target)
            else:
                self._folder = ""
                return
        raise OSError(errno.EIO, "rename")

    def discard(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if not self._folder:
            self._backend.given_back(client)
            return
        # Its own connection may be what broke.
        client.close()
        with suppress(*self._backend.errors), self._backend._session() as sftp:
            _remove_all(sftp, self._folder)

    def _opened(self) -> Any:
        if self._file is None:
            self._client = self._backend.taken()
            sftp = self._backend.sftp_of(self._client)
            incoming = f"{INCOMING}/{self._place.replace('/', '.')}.{secrets.token_hex(8)}"
            self._folder = self._backend._path(incoming)
            self._backend.made_folder(sftp, incoming)
            self._file = sftp.open(f"{self._folder}/{self._name}", "wx")
            self._file.chmod(FILE_MODE)
            self._file.set_pipelined(True)
        return self._file


def _host_key(text: str) -> paramiko.PKey:
    words = text.split()
    with suppress(paramiko.SSHException, ValueError, IndexError):
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"host {words[0]} {words[1]}")
        if entry is not None and entry.key is not None:
            return entry.key
    raise UnsupportedStore("the option host_key is no host key; write it as in known_hosts: ssh-ed25519 AAAA…")


def _write(sftp: paramiko.SFTPClient, path: str, data: bytes, *, exclusive: bool = False) -> None:
    with sftp.open(path, "wx" if exclusive else "w") as file:
        file.chmod(FILE_MODE)
        file.write(data)
        _sync(sftp, file)


def _sync(sftp: paramiko.SFTPClient, file: Any) -> None:
    """Makes it survive a power failure, where the server knows how; paramiko has no method for it."""
    try:
        sftp._request(CMD_EXTENDED, "fsync@openssh.com", file.handle)
    except OSError as error:
        if error.errno is not None:  # a server that does not know it answers with words alone
            raise


def _replace(sftp: paramiko.SFTPClient, source: str, target: str) -> None:
    try:
        sftp.posix_rename(source, target)
    except OSError as error:
        if error.errno is not None:
            raise
        # Without the extension there is a moment without a manifest; whoever reads then lists the message again.
        with suppress(FileNotFoundError):
            sftp.remove(target)
        sftp.rename(source, target)


def _make(sftp: paramiko.SFTPClient, path: str) -> None:
    """A folder; one that stands there already is fine."""
    try:
        sftp.mkdir(path, FOLDER_MODE)
    except OSError:
        if not stat.S_ISDIR(sftp.stat(path).st_mode or 0):
            raise


def _remove_all(sftp: paramiko.SFTPClient, path: str) -> None:
    """A file, or a folder with the files in it. What is gone already is fine."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(sftp.lstat(path).st_mode or 0):
            for name in _names(sftp, path):
                sftp.remove(f"{path}/{name}")
            sftp.rmdir(path)
        else:
            sftp.remove(path)


def _bytes(sftp: paramiko.SFTPClient, path: str) -> bytes | None:
    data = io.BytesIO()
    try:
        sftp.getfo(path, data)
    except FileNotFoundError:
        return None
    return data.getvalue()


def _listed(sftp: paramiko.SFTPClient, path: str) -> list[paramiko.SFTPAttributes]:
    try:
        return list(sftp.listdir_attr(path))
    except FileNotFoundError:
        return []


def _names(sftp: paramiko.SFTPClient, path: str) -> list[str]:
    return [told.filename for told in _listed(sftp, path)]


def _json(data: bytes | None) -> dict[str, str]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _moment(told: paramiko.SFTPAttributes) -> datetime:
    return datetime.fromtimestamp(told.st_mtime or 0, UTC)
