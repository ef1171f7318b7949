"""What SFTP does beyond the contract: host keys, connections that die, locks, and servers that differ.

Against two servers: asyncssh's, which the other stores' tests start as well, and OpenSSH's own where it is installed
(`apt-get install openssh-server`). A third one, asyncssh's with faults, answers late, short, or no.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import asyncssh
import pytest

from attachments.storage import Store, StoreError, attachment_key, open_store
from attachments.storage.backends.sftp import LOCKS, PROOF, SftpBackend
from attachments.storage.backends.sftp_client import Failed, SftpClient
from attachments.storage.encryption import Encryption
from attachments.storage.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutOfSpace,
    StoreUnavailable,
    UnsupportedStore,
)
from attachments.storage.retention import retention_cutoff
from tests.servers.kinds import Sftp
from tests.servers.server import Server, free_port
from tests.storage import processes
from tests.storage.contract import StoreContract
from tests.storage.samples import (
    ATTACHMENT,
    CANARY,
    CONTENT,
    MESSAGE,
    PLACE,
    entry,
    in_chunks,
    leftovers,
    manifest,
    objects,
)

MIB = 1024 * 1024
SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
OTHER_KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()


class OpenSsh(Server):
    """OpenSSH's server, for the user that runs the tests; with few channels to a connection."""

    def command(self) -> Sequence[str | Path]:
        (self.folder / "data").mkdir(exist_ok=True)
        for name in ("host_key", "user_key"):
            if not (self.folder / name).exists():
                words: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name]
                subprocess.run(words, check=True)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/user_key.pub",
            "PermitRootLogin yes",
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            "MaxSessions 2",
            "MaxStartups 100",
            "Subsystem sftp internal-sftp",
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        assert SSHD is not None, "OpenSSH's server is missing: `make sshd` installs it, or says what to do"
        return [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"]

    def url(self, name: str) -> str:
        return f"sftp://127.0.0.1:{self.port}{self.folder}/data/{name}/root"

    def options(self, port: int | None = None) -> dict[str, Any]:
        return {
            "username": pwd.getpwuid(os.geteuid()).pw_name,
            "pkey": (self.folder / "user_key").read_text(),
            "host_key": (self.folder / "host_key.pub").read_text(),
        }

    def make_place(self, name: str) -> None:
        (self.folder / "data" / name).mkdir()


class Spot:
    """A fresh root on a server, and a look at it past SFTP."""

    def __init__(self, server: Server) -> None:
        self.server = server
        name = f"spot-{random.randbytes(6).hex()}"
        server.make_place(name)
        self.root = server.folder / "data" / name / "root"
        self.url = server.url(name)

    def open(self, **options: Any) -> Store:
        return open_store(self.url, {**self.server.options(), **options})


KINDS: Mapping[str, type[Server]] = {"asyncssh": Sftp, "openssh": OpenSsh}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    started: dict[str, Server] = {}

    def get(kind: str) -> Server:
        if kind not in started:
            started[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
            started[kind].start()
        return started[kind]

    yield get
    for server in started.values():
        server.stop()


@pytest.fixture(params=KINDS)
def spot(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Spot:
    return Spot(servers(request.param))


@pytest.fixture
def one(servers: Callable[[str], Server]) -> Spot:
    """Where it does not matter which server it is."""
    return Spot(servers("asyncssh"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Spot]:
    """A server that may be killed."""
    server = Sftp(tmp_path)
    server.start()
    try:
        yield Spot(server)
    finally:
        server.stop()


class TestOpenSsh(StoreContract):
    """The contract, against the server that most people have; asyncssh's is among "every store"."""

    spot: Spot

    @pytest.fixture
    def store(self, servers: Callable[[str], Server]) -> Store:
        self.spot = Spot(servers("openssh"))
        return self.spot.open()

    def visible(self, store: Store) -> Mapping[str, bytes]:
        try:
            return {key: data for key, data in objects(self.spot.root).items() if not key.endswith(f"/{PROOF}")}
        except FileNotFoundError:  # renamed between listing and reading
            return self.visible(store)

    def pending(self, store: Store) -> list[str]:
        return leftovers(self.spot.root) if self.spot.root.exists() else []

    def plant(self, store: Store, key: str, content: bytes) -> None:
        path = self.spot.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def visible(spot: Spot) -> dict[str, bytes]:
    return {key: data for key, data in objects(spot.root).items() if not key.endswith(f"/{PROOF}")}


def test_twelve_mib_are_stored_whole(spot: Spot) -> None:
    """Several hundred requests, many under way at once; read back the same."""
    content = random.Random(12).randbytes(12 * MIB + 7)
    store = spot.open()
    key = store.write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(content, 100_001)).key
    assert (spot.root / key).read_bytes() == content
    assert b"".join(store.read(key)) == content


def test_nobody_else_may_read_what_is_stored(spot: Spot) -> None:
    """0600 for files and 0700 for folders, all of them, whatever the server's umask."""
    store = spot.open()
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    store.update_manifest(MESSAGE, lambda current: manifest())
    found = [spot.root, *spot.root.rglob("*")]
    assert len(found) >= 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_file()} == {0o600}


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_source_that_fails_leaves_nothing_on_its_way(spot: Spot, part: float) -> None:
    """Requests that are under way then are waited for, and the folder goes."""
    content = bytes(5 * MIB)

    def failing() -> Iterator[bytes]:
        yield from in_chunks(content[: int(len(content) * part)], 200_000)
        raise RuntimeError("the vendor's")

    store = spot.open()
    store.write(MESSAGE, attachment_key("before"), "b.pdf", [b"b"])
    with pytest.raises(RuntimeError, match="the vendor's"):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", failing())
    assert list(visible(spot)) == [f"{MESSAGE}/{attachment_key('before')}/b.pdf"]
    assert leftovers(spot.root) == []


def test_a_killed_writer_leaves_what_is_found_and_cleared(spot: Spot) -> None:
    """Nothing that a reader sees; `orphans` names it by key, and `clear` removes it."""

    def write() -> None:
        def dying() -> Iterator[bytes]:
            yield from in_chunks(bytes(3 * MIB), 100_000)
            processes.kill_me()

        spot.open().write(MESSAGE, ATTACHMENT, CANARY, dying())

    assert processes.ended(processes.start(write)) == -signal.SIGKILL
    assert visible(spot) == {}
    store = spot.open()
    assert list(store.orphans(older_than=timedelta(hours=1))) == []
    [left] = store.orphans(older_than=timedelta(0))
    assert (left.what, left.key) == ("temporary file", PLACE)
    assert CANARY not in f"{left!r} {left.path}"
    (spot.root / left.path / "sub").mkdir()
    (spot.root / left.path / "sub" / "x").touch()
    store.clear(left)
    store.clear(left)
    assert leftovers(spot.root) == []
    assert list(store.orphans(older_than=timedelta(0))) == []


def test_a_server_that_restarts_in_mid_write_is_ridden_out(own: Spot) -> None:
    """The write may be tried again; the same store does so, on a new connection, and tidies up."""
    content = random.Random(1).randbytes(6 * MIB)
    store = own.open()

    def interrupted() -> Iterator[bytes]:
        for number, chunk in enumerate(in_chunks(content, MIB)):
            if number == 3:
                own.server.restart()
            yield chunk

    with pytest.raises(StoreUnavailable) as caught:
        store.write(MESSAGE, ATTACHMENT, "a.pdf", interrupted())
    assert caught.value.retryable
    assert visible(own) == {}
    store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(content, MIB))
    assert visible(own) == {f"{PLACE}/a.pdf": content}
    assert leftovers(own.root) == []


def test_idle_connections_that_died_are_replaced(own: Spot) -> None:
    """Eight of them at once, on a server that was restarted; at most one call each fails."""
    store = own.open()

    def write(number: int) -> None:
        store.write(MESSAGE, attachment_key(str(number)), "a.pdf", [b"x"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    own.server.restart()
    failed = 0
    for number in range(8, 12):
        try:
            write(number)
        except StoreUnavailable:
            failed += 1
            write(number)
    assert failed <= 1
    assert len(visible(own)) == 12


@pytest.mark.parametrize("count", [1, 16])
def test_many_threads_share_few_connections(spot: Spot, count: int) -> None:
    """Whatever the server allows to a connection (OpenSSH has two channels here), all get through."""
    store = spot.open()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda n: store.write(MESSAGE, attachment_key(str(n)), "a.pdf", [CONTENT] * 5), range(24)))
    assert len(visible(spot)) == 24
    assert set(visible(spot).values()) == {CONTENT * 5}


def test_two_processes_that_race_leave_one_folder_with_one_file(spot: Spot) -> None:
    """Each with another name for the attachment; both succeed."""
    for turn in range(4):
        key = attachment_key(str(turn))
        start = time.time() + 1.0

        def race(name: str, key: str = key, start: float = start) -> None:
            def source() -> Iterator[bytes]:
                yield CONTENT
                time.sleep(max(0.0, start - time.time()))

            store = spot.open()
            list(store.message_keys())
            store.write(MESSAGE, key, name, source())

        racers = [processes.start(lambda name=name: race(name)) for name in ("a.pdf", "b.pdf")]  # type: ignore[misc]
        assert [processes.ended(racer) for racer in racers] == [0, 0]
        [folder] = [path for path in (spot.root / MESSAGE).iterdir() if path.name == key]
        [file] = [path for path in folder.iterdir() if path.name != PROOF]
        assert file.read_bytes() == CONTENT
        assert (folder / PROOF).exists()
    assert leftovers(spot.root) == []


def _file(place: Path) -> None:
    place.write_bytes(b"theirs")


def _folder_in_it(place: Path) -> None:
    (place / "sub").mkdir(parents=True)


def _hidden(place: Path) -> None:
    place.mkdir()
    (place / ".DS_Store").write_bytes(b"theirs")


def _symlink(place: Path) -> None:
    place.symlink_to("/nowhere")


def _other(place: Path) -> None:
    place.mkdir()
    (place / "z.pdf").write_bytes(b"theirs")


@pytest.mark.parametrize("plant", [_file, _folder_in_it, _hidden, _symlink, _other])
def test_what_is_not_ours_under_the_key_stays(spot: Spot, plant: Callable[[Path], None]) -> None:
    """A file, a folder, a link: an error that names the key alone, and it stands there as before."""
    place = spot.root / PLACE
    place.parent.mkdir(parents=True)
    plant(place)

    def sight() -> list[tuple[str, bool, bytes]]:
        paths = [place, *place.rglob("*")]
        return [(str(path), path.is_symlink(), path.read_bytes() if path.is_file() else b"") for path in paths]

    before = sight()
    with pytest.raises(AlreadyExists) as caught:
        spot.open().write(MESSAGE, ATTACHMENT, CANARY, [CONTENT])
    assert caught.value.key == PLACE
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert sight() == before
    assert leftovers(spot.root) == []


@pytest.mark.parametrize("left", [(), (PROOF,)])
def test_a_folder_without_its_file_is_no_conflict(spot: Spot, left: Sequence[str]) -> None:
    """Somebody purged the file, or a server died; the attachment is stored again."""
    (spot.root / PLACE).mkdir(parents=True)
    for name in left:
        (spot.root / PLACE / name).write_text("{}")
    store = spot.open()
    written = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert visible(spot) == {f"{PLACE}/a.pdf": CONTENT}
    assert store.stored(MESSAGE) == {ATTACHMENT: written}


@pytest.mark.parametrize("proof", [b"", b"[]", b"[" * 60_000, b"\xff", b'{"name": 1, "metadata": []}', b"x" * 100_000])
def test_a_proof_that_is_none_proves_nothing(one: Spot, proof: bytes) -> None:
    """The file stands unproven, and is recognised by its content."""
    store = one.open()
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    (one.root / PLACE / PROOF).write_bytes(proof)
    assert one.open().stored(MESSAGE) == {}
    assert one.open().write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]).key == f"{PLACE}/a.pdf"


def test_a_proof_is_for_its_own_file(one: Spot) -> None:
    """Not for one of another name or size that stands beside it, nor for other bytes of the same size."""
    store = one.open()
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    file = one.root / PLACE / "a.pdf"
    file.write_bytes(CONTENT + b"x")
    assert one.open().stored(MESSAGE) == {}
    file.write_bytes(b"x" + CONTENT[1:])
    assert one.open().stored(MESSAGE) == {}
    file.write_bytes(CONTENT)
    file.rename(file.with_name("b.pdf"))
    assert one.open().stored(MESSAGE) == {}


def test_names_in_other_alphabets_and_encodings(spot: Spot) -> None:
    """Ours are UTF-8 on the server; a foreign one that is not does not break a listing."""
    store = spot.open()
    written = store.write(MESSAGE, ATTACHMENT, "日本語の請求書 ü.pdf", [CONTENT])
    assert "日本語の請求書 ü.pdf".encode() in [os.fsencode(path.name) for path in (spot.root / PLACE).iterdir()]
    two = attachment_key("two")
    for folder in (spot.root, spot.root / MESSAGE, spot.root / MESSAGE / two):
        folder.mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(folder) + b"/\xe4\xf6\xfc.txt")).write_bytes(b"theirs")
    store = spot.open()
    assert list(store.message_keys()) == [MESSAGE]
    assert store.stored(MESSAGE) == {ATTACHMENT: written}
    with pytest.raises(AlreadyExists):
        store.write(MESSAGE, two, "a.pdf", [CONTENT])


def test_a_root_that_is_missing_is_an_empty_store(spot: Spot) -> None:
    """It is made, with the folders above it, when something is written."""
    shutil.rmtree(spot.root.parent)
    store = spot.open()
    assert list(store.message_keys()) == []
    assert store.stored(MESSAGE) == {}
    assert store.read_manifest(MESSAGE) is None
    assert list(store.orphans(older_than=timedelta(0))) == []
    assert not spot.root.parent.exists()
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert visible(spot) == {f"{PLACE}/a.pdf": CONTENT}


def test_a_purge_does_not_make_the_store(spot: Spot) -> None:
    """Its URL may be a typing error. An empty folder is taken for a new store."""
    store = spot.open()
    for _ in range(2):
        with pytest.raises(NotFound, match="exist; check its URL, and that its disk is mounted"):
            retention_cutoff(timedelta(days=1), store)
        assert not spot.root.exists()
    spot.root.mkdir()
    retention_cutoff(timedelta(days=1), store)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    retention_cutoff(timedelta(days=1), store)
    assert list(visible(spot)) == [f"{PLACE}/a.pdf"]


@pytest.mark.parametrize("was", ["a store", "a folder"])
def test_a_root_that_vanishes_is_not_made_anew(spot: Spot, was: str) -> None:
    """The files might land on the disk below; it says so, and goes on when the root is back."""
    store = spot.open()
    if was == "a store":
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    else:
        spot.root.mkdir()
        assert list(store.message_keys()) == []
    away = spot.root.with_name("away")
    spot.root.rename(away)
    if was == "a store":
        spot.root.mkdir()  # the empty place to mount on
    calls: list[Callable[[], object]] = [
        lambda: store.write(MESSAGE, attachment_key("two"), "b.pdf", [CONTENT]),
        lambda: store.update_manifest(MESSAGE, lambda current: manifest()),
        lambda: store.read_manifest(MESSAGE),
        lambda: list(store.message_keys()),
        store.exists,
        lambda: list(store.orphans(older_than=timedelta(0))),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="root folder does not exist"):
            call()
    assert not spot.root.exists() or list(spot.root.iterdir()) == []
    if spot.root.exists():
        spot.root.rmdir()
    away.rename(spot.root)
    store.write(MESSAGE, attachment_key("two"), "b.pdf", [CONTENT])


def _known_hosts(tmp_path: Path, line: str) -> dict[str, Any]:
    path = tmp_path / "known"
    path.write_text(line)
    return {"known_hosts": str(path)}


WRONG: Mapping[str, Callable[[Path, Server], dict[str, Any]]] = {
    "another host key": lambda tmp, server: {"host_key": OTHER_KEY},
    "another known host": lambda tmp, server: _known_hosts(tmp, f"[127.0.0.1]:{server.port} {OTHER_KEY}"),
    "no known host": lambda tmp, server: _known_hosts(tmp, f"elsewhere {OTHER_KEY}"),
    "no file of known hosts": lambda tmp, server: {"known_hosts": str(tmp / "none")},
    "a damaged file of known hosts": lambda tmp, server: _known_hosts(tmp, "host ssh-ed25519 A"),
    "another password": lambda tmp, server: {"password": "not the password"},
    "another user": lambda tmp, server: {"username": "nobody"},
    "no key file": lambda tmp, server: {"password": None, "key_filename": str(tmp / "none")},
    "another key": lambda tmp, server: {
        "password": None,
        "pkey": asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode(),
    },
    "no way to log in": lambda tmp, server: {"password": None, "look_for_keys": False, "allow_agent": False},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_host_or_a_login_that_is_wrong_is_told_as_such(one: Spot, tmp_path: Path, wrong: str) -> None:
    """It is not tried again, nothing secret is shown, and it says which of the two to look at."""
    told = WRONG[wrong](tmp_path, one.server)
    options = {name: value for name, value in {**one.server.options(), **told}.items() if value is not None}
    if "known_hosts" in told:
        del options["host_key"]
    with pytest.raises(AccessDenied) as caught:
        open_store(one.url, options).write(MESSAGE, ATTACHMENT, CANARY, [b"x"])
    text = "".join(traceback.format_exception(caught.value))
    assert CANARY not in text
    assert "not the password" not in text
    assert str(tmp_path) not in str(caught.value)
    assert ("known_hosts" in str(caught.value)) == ("host" in wrong)


def test_an_unknown_host_is_refused_without_being_asked(
    one: Spot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own client would take any key. With no option, the user's own known hosts decide."""
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {name: value for name, value in one.server.options().items() if name != "host_key"}
    with pytest.raises(AccessDenied, match="host's key is not a known one"):
        open_store(one.url, options).write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
    (tmp_path / ".ssh").mkdir()
    key = (one.server.folder / "host_key.pub").read_text()
    (tmp_path / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{one.server.port} {key}")
    open_store(one.url, options).write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])


def test_known_hosts_and_several_host_keys(one: Spot, tmp_path: Path) -> None:
    """A file of one's own; or lines as `ssh-keyscan` prints them, of which one fits."""
    key = (one.server.folder / "host_key.pub").read_text()
    options = one.server.options()
    assert list(one.open(host_key=f"127.0.0.1 {key}").message_keys()) == []
    rsa = asyncssh.generate_private_key("ssh-rsa").export_public_key().decode()
    assert list(one.open(host_key=f"{rsa}\n{key}").message_keys()) == []
    del options["host_key"]
    options |= _known_hosts(tmp_path, f"# ours\n[127.0.0.1]:{one.server.port} {key}")
    assert list(open_store(one.url, options).message_keys()) == []


@pytest.mark.parametrize("named", ["127.0.0.1", "elsewhere", "@revoked *"])
def test_a_host_is_known_by_its_name_alone(one: Spot, tmp_path: Path, named: str) -> None:
    """Forged DNS could lead to an address whose key is known, so only the name counts; a revoked key is refused."""
    key = (one.server.folder / "host_key.pub").read_text()
    options = {name: value for name, value in one.server.options().items() if name != "host_key"}
    options |= _known_hosts(tmp_path, f"{named} {key}{'localhost ' + key if 'revoked' in named else ''}")
    with pytest.raises(AccessDenied, match="host's key is not a known one"):
        open_store(one.url.replace("127.0.0.1", "localhost"), options).stored(MESSAGE)
    options |= _known_hosts(tmp_path, f"local* {key}")
    assert open_store(one.url.replace("127.0.0.1", "localhost"), options).stored(MESSAGE) == {}


@pytest.mark.parametrize("way", ["key file", "keys of the user", "agent"])
def test_a_key_logs_in(
    servers: Callable[[str], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """From a file with a passphrase, from `~/.ssh`, or from the user's agent."""
    spot = Spot(servers("openssh"))
    options = {name: value for name, value in spot.server.options().items() if name != "pkey"}
    key = asyncssh.read_private_key(spot.server.folder / "user_key")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with pytest.raises(AccessDenied, match="check user name"):
        open_store(spot.url, options).stored(MESSAGE)
    if way == "key file":
        key.write_private_key(tmp_path / "key", passphrase="correct horse")
        with pytest.raises(AccessDenied, match="check user name"):
            open_store(spot.url, {**options, "key_filename": str(tmp_path / "key")}).stored(MESSAGE)
        options |= {"key_filename": str(tmp_path / "key"), "passphrase": "correct horse"}
    if way == "keys of the user":
        (tmp_path / ".ssh").mkdir()
        key.write_private_key(tmp_path / ".ssh" / "id_ed25519")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")]) if way == "agent" else None
    try:
        if agent is not None:
            wait_until((tmp_path / "agent").exists)
            subprocess.run(["ssh-add", "-q", spot.server.folder / "user_key"], check=True)
        assert open_store(spot.url, options).stored(MESSAGE) == {}
    finally:
        if agent is not None:
            agent.terminate()
            agent.wait()


def test_a_process_whose_user_has_no_name_logs_in(one: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a number alone."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")

    def unknown(number: int) -> Any:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert one.open().stored(MESSAGE) == {}


def test_a_server_that_is_not_there_is_told_quickly() -> None:
    """By all of eight threads: none waits for a connection of its own after another's has failed."""
    store = open_store(
        f"sftp://127.0.0.1:{free_port()}/root", {"username": "u", "password": "p", "host_key": OTHER_KEY}
    )
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        store.write(MESSAGE, ATTACHMENT, CANARY, [b"x"])
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert time.monotonic() - started < 15


def test_a_server_that_says_nothing_is_given_up() -> None:
    """It takes the connection and is silent; eight threads wait together, not one after the other."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        login = {"username": "u", "password": "p", "host_key": OTHER_KEY, "timeout": 1, "banner_timeout": 1}
        store = open_store(f"sftp://127.0.0.1:{silent.getsockname()[1]}/root", login)

        def ask(number: int) -> None:
            with pytest.raises(StoreUnavailable):
                list(store.message_keys())

        started = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        assert time.monotonic() - started < 7, "together: one after the other they take 8 s"


def test_a_server_that_freezes_is_given_up_and_left(own: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for a response has an end; the next call takes a new connection."""
    store = own.open(timeout=2, banner_timeout=2)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    process = own.server._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        monkeypatch.setattr("attachments.storage.backends.sftp_client.RESPONSE_TIMEOUT", 0.5)
        with pytest.raises(StoreUnavailable):
            store.write(MESSAGE, attachment_key("two"), "b.pdf", [CONTENT])
    finally:
        process.send_signal(signal.SIGCONT)
    monkeypatch.undo()
    store.write(MESSAGE, attachment_key("two"), "b.pdf", [CONTENT])
    assert len(visible(own)) == 2


def test_a_lock_that_its_writer_left_is_broken(spot: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before it has stood unchanged for all of a waiter's patience; two that wait both get in, one by one."""
    monkeypatch.setattr(SftpBackend, "patience", 0.6)
    store = spot.open()
    store.update_manifest(MESSAGE, lambda current: manifest(entry("first")))
    (spot.root / LOCKS / MESSAGE).write_bytes(b"a dead writer's")
    assert [left.key for left in store.orphans(older_than=timedelta(0))] == [MESSAGE]

    def add(name: str) -> None:
        def change(current: Any) -> Any:
            return current.merged_with(manifest(entry(name)))

        spot.open().update_manifest(MESSAGE, change)

    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, "abcd"))
    assert 0.5 < time.monotonic() - started < 20
    found = store.read_manifest(MESSAGE)
    assert found is not None
    assert len(found.attachments) == 5
    assert list((spot.root / LOCKS).iterdir()) == []
    for left in list(store.orphans(older_than=timedelta(0))):
        store.clear(left)
    assert leftovers(spot.root) == []


def test_a_lock_that_changes_hands_is_respected(one: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience counts from the last change, so a busy message is not taken for a dead one."""
    monkeypatch.setattr(SftpBackend, "patience", 2.0)
    store = one.open()
    store.update_manifest(MESSAGE, lambda current: manifest())
    lock = one.root / LOCKS / MESSAGE

    def pass_it_on(number: int) -> None:
        """In one step, as writers create a lock, so that a reader never finds half of one."""
        other = one.root.parent / "lock"
        other.write_bytes(str(number).encode())
        other.replace(lock)

    pass_it_on(0)
    waiter = threading.Thread(target=store.update_manifest, args=(MESSAGE, lambda current: manifest(entry("late"))))
    waiter.start()
    started = time.monotonic()
    for number in range(1, 200):
        if time.monotonic() - started > 1.5 * SftpBackend.patience:
            break
        time.sleep(0.1)
        pass_it_on(number)
        assert waiter.is_alive()
    lock.unlink()
    waiter.join(30)
    found = store.read_manifest(MESSAGE)
    assert found is not None
    assert len(found.attachments) == 1


def test_a_writer_whose_lock_was_broken_gives_up(one: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped for too long: it overwrites nothing, but starts again from what stands there now."""
    store = one.open()
    store.update_manifest(MESSAGE, lambda current: manifest())
    original, calls = SftpClient.make, 0

    def make(self: Any, path: str) -> None:
        nonlocal calls
        original(self, path)
        if path.endswith(MESSAGE):
            calls += 1
            if calls == 1:
                (one.root / LOCKS / MESSAGE).write_bytes(b"another's")
                threading.Timer(0.3, (one.root / LOCKS / MESSAGE).unlink).start()

    monkeypatch.setattr(SftpClient, "make", make)
    store.update_manifest(MESSAGE, lambda current: manifest(entry("mine")))
    assert calls == 2
    assert leftovers(one.root) == []


def test_a_server_need_not_say_what_an_entry_is(faulty: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry is looked at then: a store that seems empty would never be purged."""
    monkeypatch.setattr(Faulty, "fault", "no types")
    store = faulty.open()
    key = store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT]).key
    store.update_manifest(MESSAGE, lambda current: manifest())
    (faulty.root / ("b" * 32)).symlink_to(faulty.root / MESSAGE)
    assert list(store.message_keys()) == [MESSAGE]
    assert list(store.inventory(MESSAGE).objects) == [key]


def test_no_log_shows_a_file_name(one: Spot, caplog: pytest.LogCaptureFixture) -> None:
    """asyncssh's own client logs every path that it sends."""
    caplog.set_level(logging.DEBUG)
    store = one.open()
    key = store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT]).key
    assert b"".join(store.read(key)) == CONTENT
    store.stored(MESSAGE)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("sftp:///root", {}),
        ("sftp://host:port/root", {}),
        ("sftp://host/root", {"host_key_policy": "auto_add"}),
        ("sftp://host/root", {"gss_auth": True}),  # no option of ours
        ("sftp://host/root", {"port": "x"}),
        ("sftp://host/root?query", {}),
        ("sftp://host/root#fragment", {}),
        ("sftp://host/root", {"host_key": "ssh-ed25519 A"}),
        ("sftp://host/root", {"host_key": ""}),
        ("sftp://host/root", {"host_key": "secret words"}),
        ("sftp://host/root", {"pkey": "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n"}),
    ],
)
def test_what_cannot_be_right_is_refused_at_once(url: str, options: dict[str, Any]) -> None:
    """Before anything is connected; the value, which may be a secret, is not shown."""
    with pytest.raises(UnsupportedStore) as caught:
        open_store(url, options)
    assert "secret" not in "".join(traceback.format_exception(caught.value)).partition("Error")[2]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sftp://user:pass@host/root/", "sftp://host/root"),
        ("ssh://host:2222/a/b", "sftp://host:2222/a/b"),
        ("sftp://[::1]:2222/a", "sftp://[::1]:2222/a"),
        ("sftp://[::1]/a", "sftp://[::1]/a"),
    ],
)
def test_the_url_shows_no_credentials(url: str, shown: str) -> None:
    """Opening it connects to nothing."""
    assert SftpBackend.at(url, {}, Encryption()).url == shown


class Faulty(asyncssh.SFTPServer):
    """Answers late and out of order, short, or no."""

    fault = ""
    written = 0
    open_files: ClassVar[set[int]] = set()

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        opened = super().open(path, pflags, attrs)
        self.open_files.add(id(opened))
        return opened

    def close(self, file_obj: Any) -> None:
        self.open_files.discard(id(file_obj))
        super().close(file_obj)

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for found in super().scandir(path):
            if self.fault == "no types":
                found.attrs.permissions = None
            yield found

    async def write(self, file_obj: Any, offset: int, data: bytes) -> int:
        type(self).written += len(data)
        if type(self).written > MIB and self.fault in {"full", "failing", "full by statvfs"}:
            raise asyncssh.SFTPFailure("No space left on device" if self.fault == "full" else "Failure")
        if self.fault == "failing once" and MIB // 2 < type(self).written <= MIB // 2 + len(data):
            raise asyncssh.SFTPFailure("Failure")
        await asyncio.sleep(random.uniform(0, 0.005))
        return cast("int", super().write(file_obj, offset, data))

    async def read(self, file_obj: Any, offset: int, size: int) -> bytes:
        await asyncio.sleep(random.uniform(0, 0.005))
        return cast("bytes", super().read(file_obj, offset, random.randint(1, size) if size > 1000 else size))

    def fsync(self, file_obj: Any) -> None:
        if self.fault == "fsync fails":
            raise asyncssh.SFTPFailure("Failure")
        raise asyncssh.SFTPOpUnsupported("no")

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPOpUnsupported("no")

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        if self.fault == "no renaming":
            raise asyncssh.SFTPOpUnsupported("no")
        if os.path.lexists(self.map_path(newpath)):
            raise asyncssh.SFTPFailure("it stands there already")
        Path(os.fsdecode(self.map_path(oldpath))).rename(os.fsdecode(self.map_path(newpath)))

    def statvfs(self, path: bytes) -> Any:
        told: Any = super().statvfs(path)
        if self.fault != "full by statvfs":
            return told
        return os.statvfs_result([told.f_bsize, told.f_frsize, told.f_blocks, 0, 0, *list(told)[5:]])


class FaultyServer(Sftp):
    """In a thread of this process, so that a test can say what fails."""

    def start(self) -> None:
        (self.folder / "data").mkdir()
        key = asyncssh.generate_private_key("ssh-ed25519")
        (self.folder / "host_key.pub").write_bytes(key.export_public_key())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(key), self._loop).result(10)

    async def _listen(self, key: asyncssh.SSHKey) -> None:
        root = os.fsencode(self.folder / "data")
        connections: list[asyncssh.SSHServerConnection] = []
        self.connections = connections

        class Login(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                connections.append(conn)

            def begin_auth(self, username: str) -> bool:
                return False

        self._server = await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_host_keys=[key],
            server_factory=Login,
            sftp_factory=lambda channel: Faulty(channel, chroot=root),
        )

    def stop(self) -> None:
        async def close() -> None:
            self._server.close()
            for connection in self.connections:
                connection.abort()
            await self._server.wait_closed()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    server = FaultyServer(tmp_path / "faulty")
    server.start()
    monkeypatch.setattr(Faulty, "written", 0)
    try:
        yield Spot(server)
    finally:
        server.stop()


def test_answers_may_come_late_short_and_in_any_order(faulty: Spot) -> None:
    """And without fsync or a rename that replaces, a manifest is still replaced."""
    content = random.Random(2).randbytes(MIB)
    store = faulty.open()
    key = store.write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(content, 100_001)).key
    assert (faulty.root / key).read_bytes() == content
    assert b"".join(store.read(key)) == content
    for name in "ab":
        store.update_manifest(MESSAGE, lambda current, name=name: manifest(entry(name)))  # type: ignore[misc]
    found = store.read_manifest(MESSAGE)
    assert found is not None
    assert [attachment.name for attachment in found.attachments] == ["b"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("full", OutOfSpace),
        ("full by statvfs", OutOfSpace),
        ("failing", StoreUnavailable),
        ("failing once", StoreUnavailable),
        ("fsync fails", StoreUnavailable),
        ("no renaming", UnsupportedStore),
    ],
)
def test_a_write_that_fails_somewhere_is_not_committed(
    faulty: Spot, monkeypatch: pytest.MonkeyPatch, fault: str, kind: type[StoreError]
) -> None:
    """The error of any of the requests under way comes out before the commit, as what it means."""
    monkeypatch.setattr(Faulty, "fault", fault)
    store = faulty.open()
    with pytest.raises(kind) as caught:
        store.write(MESSAGE, ATTACHMENT, CANARY, in_chunks(bytes(MIB + 50_000), 400_000))
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert visible(faulty) == {}
    assert leftovers(faulty.root) == []
    monkeypatch.setattr(Faulty, "fault", "")
    store.write(MESSAGE, ATTACHMENT, "a.bin", [b"x"])


def wait_until(condition: Callable[[], bool]) -> None:
    """For at most ten seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("size", [10_000, 3 * MIB])
def test_closing_a_reader_half_way_leaves_no_open_file(faulty: Spot, size: int) -> None:
    """Reads that are in transit are given up with the session, and the store goes on."""
    store = faulty.open()
    key = store.write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(bytes(size), 100_000)).key
    for _ in range(20):
        reader = store.read(key)
        next(reader)
        reader.close()  # type: ignore[attr-defined]
    wait_until(lambda: not Faulty.open_files)
    assert sum(map(len, store.read(key))) == size


def test_connections_end_with_their_store(faulty: Spot) -> None:
    """A worker opens many stores in its life."""
    server = cast("FaultyServer", faulty.server)
    for _ in range(3):
        assert list(faulty.open().message_keys()) == []
    gc.collect()
    assert len(server.connections) == 3
    wait_until(lambda: all(connection.is_closed() for connection in server.connections))


def test_connections_are_ended_by_the_event_loop(one: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is cleaned up in any thread, which may hold any lock; asyncssh's own work must not be done there."""
    ended_by: list[threading.Thread] = []
    abort = asyncssh.SSHClientConnection.abort

    def noted(connection: asyncssh.SSHClientConnection) -> None:
        ended_by.append(threading.current_thread())
        abort(connection)

    monkeypatch.setattr(asyncssh.SSHClientConnection, "abort", noted)
    store = one.open()
    assert store.read_manifest(MESSAGE) is None
    del store
    gc.collect()
    wait_until(lambda: bool(ended_by))
    assert threading.current_thread() not in ended_by


def test_every_error_of_the_system_has_a_meaning() -> None:
    """Rights and space are told apart; all else is tried again, under the system's own symbol."""
    backend = SftpBackend.at("sftp://host/root", {}, Encryption())
    told = {number: backend.failure(OSError(number, CANARY)) for number in errno.errorcode}
    assert told[errno.EACCES].kind is told[errno.EROFS].kind is AccessDenied
    assert told[errno.ENOSPC].kind is OutOfSpace
    assert told[errno.ECONNREFUSED].kind is told[errno.ETIMEDOUT].kind is StoreUnavailable
    assert told[errno.ECONNREFUSED].symbol == "ECONNREFUSED"
    assert told[errno.EINVAL].kind is StoreUnavailable  # the connection's socket may say so
    assert backend.failure(Failed(errno.EINVAL, "status")).kind is UnsupportedStore
    assert backend.failure(Failed()).kind is StoreUnavailable
    assert all(CANARY not in failure.symbol + failure.advice for failure in told.values())


@pytest.mark.parametrize("reply", [asyncssh.SFTPBadMessage("Bad message"), asyncssh.SFTPFailure("File name too long")])
def test_a_name_that_the_server_refuses_is_permanent(
    faulty: Spot, monkeypatch: pytest.MonkeyPatch, reply: Exception
) -> None:
    """OpenSSH has one answer to EINVAL and ENAMETOOLONG, and others have only words."""

    def refusing(self: Any, path: bytes, attrs: Any) -> None:
        raise reply

    monkeypatch.setattr(Faulty, "mkdir", refusing)
    with pytest.raises(
        UnsupportedStore, match="EINVAL" if isinstance(reply, asyncssh.SFTPBadMessage) else "ENAMETOOLONG"
    ):
        faulty.open().write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])


def test_a_server_without_a_common_algorithm_is_permanent(servers: Callable[[str], Server]) -> None:
    """Both would have to change; nothing passes by itself. What asyncssh does not know is disabled already."""
    spot = Spot(servers("openssh"))
    modern = [name.decode() for name in asyncssh.kex.get_kex_algs() if name != b"rsa2048-sha256"]
    assert list(spot.open(disabled_algorithms={"kex": ["one-of-2009", modern[0]]}).message_keys()) == []
    store = spot.open(disabled_algorithms={"kex": modern})

    def look() -> None:
        """Try again, as a run does: a server that hangs up first is to asyncssh a lost connection."""
        for _ in range(20):
            with suppress(StoreUnavailable):
                store.stored(MESSAGE)

    with pytest.raises(AccessDenied, match="no algorithm in common"):
        look()


@pytest.mark.parametrize("link", [MESSAGE, PLACE, f"{PLACE}/a.pdf"], ids=["message", "folder", "file"])
def test_removing_follows_no_link(spot: Spot, link: str) -> None:
    """Somebody on the server has put one in an attachment's place: what it leads to is none of ours."""
    store = spot.open()
    key = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]).key
    store.update_manifest(MESSAGE, lambda current: manifest())
    outside = spot.root.parent / "outside"
    (spot.root / link).rename(outside)
    (spot.root / link).symlink_to(outside)
    with pytest.raises(AlreadyExists, match="left alone"):
        store.remove(key)
    if link == MESSAGE:
        with pytest.raises(AlreadyExists, match="left alone"):
            store.remove_manifest(MESSAGE, lambda current: True)
        assert (outside / "manifest.json").exists()
    assert (spot.root / link).is_symlink()
    (kept,) = [outside] if outside.is_file() else outside.rglob("a.pdf")
    assert kept.read_bytes() == CONTENT


def test_only_a_folder_is_a_message(spot: Spot) -> None:
    """A link of such a name leads out of the store, and a file holds nothing: a purge does not look at them."""
    store = spot.open()
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    outside = spot.root.parent / "outside"
    outside.mkdir()
    (spot.root / ("0" * 32)).symlink_to(outside)
    (spot.root / ("1" * 32)).touch()
    assert list(store.message_keys()) == [MESSAGE]


@pytest.mark.parametrize("name", ["hold", "HOLD.txt"])
@pytest.mark.parametrize(
    "plant",
    [Path.mkdir, lambda place: place.symlink_to("/nowhere"), lambda place: place.symlink_to("..")],
    ids=["folder", "dead link", "link to a folder"],
)
def test_a_hold_may_be_anything(spot: Spot, plant: Callable[[Path], None], name: str) -> None:
    """An empty folder as well, or a link; below an attachment it is none."""
    store = spot.open()
    written = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    plant(spot.root / PLACE / name)
    assert not store.inventory(MESSAGE).is_held
    plant(spot.root / MESSAGE / name)
    found = store.inventory(MESSAGE)
    assert (found.is_held, list(found.objects)) == (True, [written.key])


def test_removing_leaves_no_folder_and_nothing_that_is_not_ours(spot: Spot) -> None:
    """An attachment's folder goes with its proof, and a message's with its manifest, unless somebody uses it."""
    store = spot.open()
    two = attachment_key("two")
    first, second = (store.write(MESSAGE, key, "a.pdf", [CONTENT]) for key in (ATTACHMENT, two))
    store.update_manifest(MESSAGE, lambda current: manifest())
    (spot.root / MESSAGE / two / "notes.txt").write_text("somebody's")
    store.remove(first.key)
    store.remove(second.key)
    assert sorted(path.name for path in (spot.root / MESSAGE).rglob("*")) == sorted([two, "manifest.json", "notes.txt"])
    (spot.root / MESSAGE / two / "notes.txt").unlink()
    store.remove(second.key)
    assert store.remove_manifest(MESSAGE, lambda current: True)
    assert not (spot.root / MESSAGE).exists()
