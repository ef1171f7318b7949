"""The connections to an SFTP server, and what paramiko's client lacks: codes, extensions, pipelined files."""

from __future__ import annotations

import errno
import io
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import paramiko
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
    SFTP_BAD_MESSAGE,
    SFTP_EOF,
    SFTP_FLAG_CREATE,
    SFTP_FLAG_READ,
    SFTP_NO_SUCH_FILE,
    SFTP_OK,
    SFTP_OP_UNSUPPORTED,
    SFTP_PERMISSION_DENIED,
    SFTPError,
    int64,
)

from attachments.storage.backends.base import Conflict
from attachments.storage.errors import UnsupportedStore
from attachments.storage.local.folders import FILE_MODE, FOLDER_MODE

PORT = 22
_ANSWER = 60.0  # seconds to wait for an answer
_CONNECT = 15.0  # the same for each step of connecting
_KEEP_ALIVE = 30
_CHANNELS = 8  # on one connection; OpenSSH allows 10 (MaxSessions)
_PIECE = 32_000  # bytes a request: every server takes 32 KiB, and so it is one packet of SSH as well
_UNDER_WAY = 64  # requests not answered yet, as OpenSSH's own client has it
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
_TIMEOUTS = ("timeout", "banner_timeout", "auth_timeout", "channel_timeout")
_LOGIN = frozenset(
    {"username", "password", "key_filename", "passphrase", "pkey", "look_for_keys", "allow_agent"}
    | {"compress", "disabled_algorithms"}
)
OPTIONS = _LOGIN | {"host", "port", "known_hosts", "host_key", *_TIMEOUTS}
_CHECK_HOST = "the host's key is not a known one; find out why, then set the option host_key or known_hosts"
_CHECK_ALGORITHMS = (
    "the server and this client have no algorithm in common; update the server, or see the option disabled_algorithms"
)
_CHECK_LOGIN = "check user name, password and key in the store's options"
_ROOM = 1024 * 1024  # bytes; a disk with less is full


class Refused(Exception):
    """No connection, and trying again would not help."""

    def __init__(self, symbol: str, advice: str) -> None:
        super().__init__(symbol)
        self.symbol = symbol
        self.advice = advice


class RootGone(Exception):
    """The root is not where it was."""


class Failed(OSError):
    """The server says no, and in version 3 of the protocol that is all it can say."""


class Unsupported(Exception):
    """The server does not do what is asked, ever."""


ANSWERED = (Failed, Unsupported, RootGone, Conflict, FileNotFoundError, PermissionError, FileExistsError)
"""What leaves a channel in step: the server has answered."""


class SftpClient(paramiko.SFTPClient):  # type: ignore[misc]  # paramiko ships no types
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
        return list(self._each(path))

    def folders(self, path: str) -> list[str]:
        """The names alone: of a million folders all that is known takes half a gigabyte. A link to one is none."""
        return [told.filename for told in self._each(path) if stat.S_ISDIR(told.st_mode or 0)]

    def _each(self, path: str) -> Iterator[paramiko.SFTPAttributes]:
        # Some servers miss the folder only when it is read.
        with suppress(FileNotFoundError):
            handle = self._asked(CMD_HANDLE, CMD_OPENDIR, self._adjust_cwd(path)).get_binary()
            with suppress(EOFError):
                while True:
                    for told in _attributes(self._asked(CMD_NAME, CMD_READDIR, handle)):
                        if told.filename not in {".", ".."}:
                            if told.st_mode is None:  # a server need not tell what an entry is
                                told.st_mode = self._mode(f"{path}/{told.filename}")
                            yield told
            self._request(CMD_CLOSE, handle)

    def _mode(self, path: str) -> int | None:
        try:
            mode: int | None = self.lstat(path).st_mode
        except FileNotFoundError:
            return None
        return mode

    def bytes_of(self, path: str, most: int) -> bytes | None:
        """A small file as a whole, None when there is none; of a larger file the first `most` bytes."""
        try:
            file = RemoteFile(self, path, SFTP_FLAG_READ)
        except FileNotFoundError:
            return None
        data = b"".join(file.blocks(most))
        file.close()
        return data

    def replace(self, source: str, target: str) -> None:
        """Renames a file over another."""
        if b"posix-rename@openssh.com" in self.extensions:
            with suppress(Unsupported):
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

    def write_error(self, path: str) -> int | None:
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
            raise Unsupported
        number = {SFTP_NO_SUCH_FILE: errno.ENOENT, SFTP_PERMISSION_DENIED: errno.EACCES}.get(code)
        text = msg.get_binary().lower()
        # The words are no part of the protocol, but some servers have no other way to tell.
        if b"no space" in text or b"quota" in text:
            number = errno.ENOSPC
        if b"name too long" in text:
            raise Failed(errno.ENAMETOOLONG, "status")
        if code == SFTP_BAD_MESSAGE:  # OpenSSH's word for EINVAL and ENAMETOOLONG
            raise Failed(errno.EINVAL, "status")
        raise OSError(number, "status") if number else Failed()

    def _adjust_cwd(self, path: str | bytes) -> bytes:
        return path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path

    def _log(self, level: int, msg: Any, *args: Any) -> None:
        """Nothing: it would be paths."""


class RemoteFile:
    """An open file with several requests under way, whose answers may come in any order.

    paramiko's own forgets the errors of pipelined writes, and leaves threads behind that read ahead.
    """

    def __init__(self, sftp: SftpClient, path: str, flags: int) -> None:
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
            with suppress(Unsupported):
                self._sftp._request(CMD_EXTENDED, "fsync@openssh.com", self._handle)

    def close(self) -> None:
        """Raises what became of the last pieces."""
        self._settle()
        self._sftp._request(CMD_CLOSE, self._handle)

    def abandon(self) -> None:
        """Closes it, if it is open, whatever became of it."""
        with suppress(*ANSWERED):
            while self._under_way:
                self._receive(tolerant=True)
            self._sftp._request(CMD_CLOSE, self._handle)

    def blocks(self, most: int | None = None) -> Iterator[bytes]:
        """What is in it; of more than `most` bytes the first ones."""
        size = self._sftp_size()
        if most is not None:
            size = min(size, most)
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
        except (OSError, EOFError, Unsupported) as error:
            self._error = self._error or error


class Connections:
    """Connections to one server, each with several channels; a channel is for one user at a time."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._idle: list[SftpClient] = []
        self._links: list[_Link] = []
        self._failed: tuple[float, Exception] | None = None

    def taken(self) -> SftpClient:
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
            except (paramiko.SSHException, OSError, EOFError, Refused) as error:
                self._failed = (time.monotonic(), error.with_traceback(None))
                raise

    def given_back(self, sftp: SftpClient) -> None:
        """It is free for the next one."""
        with self._lock:
            if sftp.is_alive and len(self._idle) < _CHANNELS:
                self._idle.append(sftp)
                return
        self._close(sftp)

    def broken(self, sftp: SftpClient, error: BaseException) -> None:
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

    def close_apart(self) -> None:
        """Ends all of them in a thread of its own: one that cleans up memory may hold a lock of paramiko's."""
        threading.Thread(target=self.close, name="close-sftp", daemon=True).start()

    def _close(self, sftp: SftpClient) -> None:
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

    def _opened(self) -> SftpClient:
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


def _channel(client: paramiko.SSHClient) -> SftpClient:
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
        return SftpClient(channel)
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
    """A connection to a host that showed a known key, logged in. Raises Refused, SSHException, OSError, EOFError."""
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
            raise Refused("HostKey", _CHECK_HOST) from None
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            raise Refused("Algorithms", _CHECK_ALGORITHMS) from None
        # A server that is stopped in the middle of a login says nothing about the password.
        if isinstance(error, paramiko.AuthenticationException) and (not in_login or "timeout" in str(error)):
            raise paramiko.SSHException from None
        # No way to log in, a key file that is missing or no key, or an option of a wrong kind.
        wrong = (
            TypeError
            | AttributeError
            | ValueError
            | FileNotFoundError
            | PermissionError
            | paramiko.PasswordRequiredException
        )
        if isinstance(error, wrong) or (in_login and isinstance(error, paramiko.SSHException)):
            raise Refused("Login", _CHECK_LOGIN) from None
        raise
    return client


def _learn_host_keys(client: paramiko.SSHClient, options: Mapping[str, Any]) -> None:
    if "host_key" in options:
        host, port = options["host"], options["port"]
        for key in options["host_key"]:
            client.get_host_keys().add(host if port == PORT else f"[{host}]:{port}", key.get_name(), key)
        return
    named = options.get("known_hosts")
    for path in [named] if named else _KNOWN_HOSTS:
        try:
            client.get_host_keys().load(str(Path(path).expanduser()))
        except (OSError, TypeError, ValueError, InvalidHostKey):
            if named:
                raise Refused("KnownHosts", "the file that the option known_hosts names can't be read") from None


def host_keys(text: str) -> list[paramiko.PKey]:
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


def private_key(text: str, passphrase: str | None) -> paramiko.PKey:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        with suppress(paramiko.SSHException, ValueError, IndexError):
            return kind.from_private_key(io.StringIO(text), passphrase)
    raise UnsupportedStore("the option pkey is no private key, or the option passphrase does not open it")


def _attributes(answer: paramiko.Message) -> Iterator[paramiko.SFTPAttributes]:
    for _ in range(answer.get_int()):
        name = answer.get_binary().decode("utf-8", "surrogateescape")
        answer.get_binary()  # as `ls -l` has it
        yield paramiko.SFTPAttributes._from_msg(answer, name)
