"""Connections to an SFTP server: host keys, login, and a pool of sessions."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
from fsspec.asyn import get_loop

from attachments.storage.backends.sftp_client import SftpClient, response, start
from attachments.storage.errors import UnsupportedStore

PORT = 22
_STEP_TIMEOUT = 15.0  # seconds for each step of connecting
_KEEP_ALIVE = 30
_IDLE_SESSIONS = 8
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
_OWN_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_TIMEOUTS = ("timeout", "banner_timeout", "auth_timeout", "channel_timeout")
_LOGIN = frozenset({"username", "password", "key_filename", "passphrase", "pkey", "look_for_keys", "allow_agent"})
OPTIONS = _LOGIN | {"host", "port", "known_hosts", "host_key", "compress", "disabled_algorithms", *_TIMEOUTS}
_ALGORITHMS = {"kex": "kex_algs", "ciphers": "encryption_algs", "macs": "mac_algs", "pubkeys": "signature_algs"}
"""Kinds of algorithms that the option `disabled_algorithms` names, with asyncssh's arguments."""
_HOST_KEYS = {
    "ssh-ed25519": "ssh-ed25519",
    "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521": "ecdsa-sha2-nistp521",
    "rsa-sha2-512": "ssh-rsa",
    "rsa-sha2-256": "ssh-rsa",
}
"""Algorithms by which a host proves its key, with the kind of key."""
_CHECK_HOST = "the host's key is not a known one; find out why, then set the option host_key or known_hosts"
_CHECK_ALGORITHMS = (
    "the server and this client have no algorithm in common; update the server, or see the option disabled_algorithms"
)
_CHECK_LOGIN = "check user name, password and key in the store's options"

_HostKeys = tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]
"""Known keys, keys of certificate authorities, revoked keys."""


class Refused(Exception):
    """The connection failed permanently: another attempt would fail as well."""

    def __init__(self, symbol: str, advice: str) -> None:
        super().__init__(symbol)
        self.symbol = symbol
        self.advice = advice


class Connections:
    """Connections to one server, each with as many sessions as the server allows."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._idle: list[SftpClient] = []
        self._connections: list[asyncssh.SSHClientConnection] = []
        self._failed: tuple[float, Exception] | None = None

    def acquire(self) -> SftpClient:
        """A session that no other thread uses. Raises Refused, asyncssh.Error, OSError."""
        with self._lock:
            while self._idle:
                sftp = self._idle.pop()
                if sftp.is_alive:
                    return sftp
        began = time.monotonic()
        with self._connecting:
            # If the attempt that this thread waited for failed, do not make another.
            if self._failed is not None and self._failed[0] > began:
                raise self._failed[1]
            try:
                return self._opened()
            except (asyncssh.Error, OSError, Refused) as error:
                self._failed = (time.monotonic(), error.with_traceback(None))
                raise

    def release(self, sftp: SftpClient) -> None:
        """Return the session, so that another thread may use it."""
        with self._lock:
            if sftp.is_alive and len(self._idle) < _IDLE_SESSIONS:
                self._idle.append(sftp)
                return
        sftp.close()

    def drop(self, sftp: SftpClient, error: BaseException) -> None:
        """Close the session and, if the server did not respond in time, its connection."""
        if isinstance(error, TimeoutError):
            self._abort(sftp.connection)
        sftp.close()

    def close(self) -> None:
        """Abort all connections without waiting, because garbage collection calls this in any thread."""
        with suppress(RuntimeError):  # the event loop has already ended
            for connection in self._connections:
                get_loop().call_soon_threadsafe(connection.abort)

    def _opened(self) -> SftpClient:
        with self._lock:
            self._connections = [each for each in self._connections if not each.is_closed()]
            connections = self._connections[::-1]
        for connection in connections:
            # This one may have all the sessions that the server allows.
            with suppress(asyncssh.ChannelOpenError):
                return self._session(connection)
        connection = _connected(self._options)
        with self._lock:
            self._connections.append(connection)
        return self._session(connection)

    def _session(self, connection: asyncssh.SSHClientConnection) -> SftpClient:
        request = start(connection.start_sftp_client(path_errors="surrogateescape"))
        try:
            return SftpClient(connection, response(request, self._options.get("channel_timeout", _STEP_TIMEOUT)))
        except TimeoutError:
            self._abort(connection)
            raise

    def _abort(self, connection: asyncssh.SSHClientConnection) -> None:
        """Ends a connection. No thread gets another session on it, though it has not ended yet."""
        with self._lock:
            self._connections = [each for each in self._connections if each is not connection]
            self._idle = [sftp for sftp in self._idle if sftp.connection is not connection]
        get_loop().call_soon_threadsafe(connection.abort)


def _connected(options: Mapping[str, Any]) -> asyncssh.SSHClientConnection:
    """A connection to a host that showed a known key, logged in. Raises Refused, asyncssh.Error, OSError."""
    # Servers limit attempts: unrelated keys of the user or the agent might use up all of them.
    by_default = not options.keys() & {"password", "pkey", "key_filename"}
    options = {"allow_agent": by_default, "look_for_keys": by_default, **options}
    with _agent_keys(is_allowed=options["allow_agent"]) as agent_keys:
        return _logged_in(options, agent_keys)


def _logged_in(options: Mapping[str, Any], agent_keys: list[Any]) -> asyncssh.SSHClientConnection:
    timeout, banner_timeout, auth_timeout = (options.get(name, _STEP_TIMEOUT) for name in _TIMEOUTS[:3])
    known = _known_keys(options)
    try:
        arguments = {**_login(options, agent_keys), **_algorithms(options, known)}
    except (TypeError, AttributeError, ValueError, OSError):
        # A key file is missing or invalid, or an option has the wrong type.
        raise Refused("Login", _CHECK_LOGIN) from None
    connected = socket.create_connection((options["host"], options["port"]), timeout)
    try:
        connected.settimeout(banner_timeout)
        connected.recv(1, socket.MSG_PEEK)
        connected.setblocking(False)
        request = start(
            asyncssh.connect(
                options["host"],
                options["port"],
                sock=connected,
                config=None,
                known_hosts=known,
                x509_trusted_certs=None,
                gss_host=None,
                agent_path=None,
                login_timeout=auth_timeout,
                keepalive_interval=_KEEP_ALIVE,
                **arguments,
            )
        )
        return response(request, auth_timeout + _STEP_TIMEOUT)
    except BaseException as error:
        connected.close()
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            raise Refused("HostKey", _CHECK_HOST) from None
        if isinstance(error, asyncssh.KeyExchangeFailed):
            raise Refused("Algorithms", _CHECK_ALGORITHMS) from None
        refused_too_often = isinstance(error, asyncssh.ProtocolError) and "authentication" in error.reason.lower()
        if refused_too_often or isinstance(error, asyncssh.PermissionDenied | TypeError | ValueError):
            raise Refused("Login", _CHECK_LOGIN) from None
        raise


def _login(options: Mapping[str, Any], agent_keys: list[Any]) -> dict[str, Any]:
    """The login arguments."""
    passphrase = options.get("passphrase", options.get("password"))
    named = options.get("key_filename") or []
    keys: list[Any] = [options["pkey"]] if options.get("pkey") else []
    files = [named] if isinstance(named, str) else named
    keys += [asyncssh.read_private_key(Path(file).expanduser(), passphrase) for file in files]
    keys += agent_keys
    if options["look_for_keys"]:
        for path in _OWN_KEYS:
            with suppress(OSError, ValueError):
                keys.append(asyncssh.read_private_key(Path(path).expanduser(), passphrase))
    try:
        own = getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name. asyncssh reads this variable even when a user name is given.
        own = os.environ["LNAME"] = "attachments"
    return {
        "username": options.get("username") or own,
        "password": options.get("password"),
        "client_keys": keys or None,
    }


@contextmanager
def _agent_keys(*, is_allowed: bool) -> Iterator[list[Any]]:
    """The keys of the user's agent, which signs with them for as long as the block lasts."""

    async def connected() -> tuple[asyncssh.SSHAgentClient, list[Any]]:
        agent = await asyncssh.connect_agent()
        return agent, list(await agent.get_keys())

    agent: asyncssh.SSHAgentClient | None = None
    keys: list[Any] = []
    if is_allowed:
        with suppress(OSError, ValueError, asyncssh.Error):
            agent, keys = response(start(connected()), _STEP_TIMEOUT)
    try:
        yield keys
    finally:
        if agent is not None:
            get_loop().call_soon_threadsafe(agent.close)


def _algorithms(options: Mapping[str, Any], known: _HostKeys) -> dict[str, Any]:
    """The arguments that say which algorithms may be used."""
    disabled = options.get("disabled_algorithms") or {}
    # A host may have several keys: prefer the kinds for which a key is known.
    kinds = {key.get_algorithm() for key in known[0]}
    allowed = [name for name in _HOST_KEYS if name not in disabled.get("keys", ())]
    arguments: dict[str, Any] = {
        "server_host_key_algs": sorted(allowed, key=lambda name: _HOST_KEYS[name] not in kinds),
        "compression_algs": ["zlib@openssh.com", "zlib", "none"] if options.get("compress") else None,
        # These first: they take two thirds of the CPU time of asyncssh's own choice.
        "encryption_algs": "^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    }
    for kind, argument in _ALGORITHMS.items():
        if names := list(_known_algorithms(argument, disabled.get(kind, ()))):
            arguments[argument] = f"-{','.join(names)}"
    return arguments


def _known_algorithms(argument: str, names: list[str]) -> Iterator[str]:
    """The names that asyncssh supports: it rejects any other."""
    for name in names:
        with suppress(ValueError):
            asyncssh.SSHClientConnectionOptions(config=None, **{argument: f"-{name}"})
            yield name


def _known_keys(options: Mapping[str, Any]) -> _HostKeys:
    """The keys that the host may show, and those that are revoked."""
    if "host_key" in options:
        return options["host_key"], [], []
    host, port = options["host"], options["port"]
    named = options.get("known_hosts")
    known: list[asyncssh.SSHKey] = []
    revoked: list[asyncssh.SSHKey] = []
    for path in [named] if named else _KNOWN_HOSTS:
        try:
            listed = asyncssh.read_known_hosts(str(Path(path).expanduser()))
            # Match by name only, as ssh does: an attacker who controls DNS could point the name to a known address.
            found = listed.match(host, "", port if port != PORT else None)
        except (OSError, TypeError, ValueError):
            if named:
                raise Refused("KnownHosts", "the file in the option known_hosts cannot be read") from None
        else:
            known += found[0]
            revoked += found[2]
    return known, [], revoked


def host_keys(text: str) -> list[asyncssh.SSHKey]:
    """Keys as in ``known_hosts``, one a line, with or without the host before them. Raises UnsupportedStore."""
    keys: list[asyncssh.SSHKey] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        for words in (line.split(), line.split()[1:]):
            with suppress(asyncssh.KeyImportError):
                keys.append(asyncssh.import_public_key(" ".join(words[:2])))
                break
        else:
            raise UnsupportedStore(
                "the option host_key is not a host key; write it as in known_hosts: ssh-ed25519 AAAA…"
            )
    if not keys:
        raise UnsupportedStore("the option host_key is empty; write it as in known_hosts: ssh-ed25519 AAAA…")
    return keys


def private_key(text: str, passphrase: str | None) -> asyncssh.SSHKey:
    """A private key in any of OpenSSH's formats. Raises UnsupportedStore."""
    with suppress(asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
        return asyncssh.import_private_key(text, passphrase)
    raise UnsupportedStore("the option pkey is not a private key, or the option passphrase does not decrypt it")
