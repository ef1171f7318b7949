"""Where a file of ids may be read from: no parameter of a run leads to a file, a host or a credential not meant for it.

Through the flow's own way to its messages, against real servers.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncssh
import fsspec
import pytest

from attachments.blocks import AttachmentStore
from attachments.domain.backfill_request import IdFile
from attachments.domain.message_ids import IdsError
from attachments.domain.message_ids_source import ALLOWED_FOLDERS_VARIABLE, DEFAULT_ALLOWED_FOLDERS
from attachments.flows import backfill_attachments as backfill
from attachments.runs.fan_out import DownloadDeployment
from attachments.storage import StoreError
from tests.servers.kinds import Rclone, Sftp
from tests.storage.memory import PROTOCOL

A, B = "AAMkAGI1/a+b_c-d==", "AAMkAGI2-B="
CANARY = "canary-7f3a91c2"
IDS_FILE_CONTENT = f"{A}\n{B}\n".encode()
PASSWORD = "correct horse"
TARGET = cast("DownloadDeployment", SimpleNamespace(store=SimpleNamespace(message_id=str)))

Blocks = Callable[..., None]


def read_message_ids(url: str, block: str | None = None) -> list[str]:
    """The ids, as a backfill gets them."""
    with backfill._messages(IdFile(url, block), TARGET) as messages:
        return [wanted.message_id for wanted in messages.stream]


def refusal_message(url: str, block: str | None = None) -> str:
    """Why there are none; without a word of the URL, which may hold a password."""
    with pytest.raises((IdsError, StoreError)) as caught:
        read_message_ids(url, block)
    assert caught.value.__cause__ is None
    assert CANARY not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Blocks:
    """Saves blocks, as Prefect would."""
    saved: dict[str, AttachmentStore] = {}

    def save(name: str, url: str, options: Mapping[str, object] | None = None) -> None:
        saved[name] = AttachmentStore(url=url, options=options or {})

    monkeypatch.setattr(backfill, "load_store", saved.__getitem__)
    return save


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the worker may read ids from."""
    made = tmp_path / "allowed"
    made.mkdir()
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, made.as_uri())
    return made


# --- A block's options


@dataclass
class UntrustedSshServer:
    """An SSH server that nobody vouches for, and what it was told."""

    port: int = 0
    connections: int = 0
    logins: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def stranger() -> Iterator[UntrustedSshServer]:
    seen = UntrustedSshServer()
    connections: list[asyncssh.SSHServerConnection] = []

    class Login(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            seen.connections += 1
            connections.append(conn)

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            seen.logins.append((username, password))
            return False

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    key = asyncssh.generate_private_key("ssh-ed25519")

    async def listening() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen("127.0.0.1", 0, server_host_keys=[key], server_factory=Login)

    server = asyncio.run_coroutine_threadsafe(listening(), loop).result()
    seen.port = server.get_port()
    yield seen

    async def close() -> None:
        server.close()
        for connection in connections:
            connection.abort()
        await asyncio.gather(server.wait_closed(), *(connection.wait_closed() for connection in connections))

    asyncio.run_coroutine_threadsafe(close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize(
    "url",
    [
        "sftp://127.0.0.1:{port}/in/x",
        "ssh://127.0.0.1:{port}/in/x",
        "sftp://files.corp.example@127.0.0.1:{port}/in/x",
        "sftp://files.corp.example:22@127.0.0.1:{port}/in/x",
        "sftp://127.0.0.1:{port}/files.corp.example/in/x",
        "sftp://127.0.0.1:{port}/sftp://files.corp.example/in/x",
        "sftp://files.corp.example:{port}/in/x",
    ],
)
def test_a_blocks_password_goes_to_no_other_host(url: str, stranger: UntrustedSshServer, blocks: Blocks) -> None:
    """Whichever way it is written; nobody even knocks there."""
    blocks("corp", "sftp://files.corp.example/in", {"username": "mail", "password": PASSWORD})
    said = refusal_message(url.format(port=stranger.port), "corp")
    assert stranger.logins == []
    assert stranger.connections == 0
    assert "is not in the folder of the block attachment-store/corp" in said


def test_a_password_goes_to_no_host_with_another_key(stranger: UntrustedSshServer, blocks: Blocks) -> None:
    """The block's own host, or what says that it is: its key is compared before anything is told to it."""
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    login = {"username": "mail", "password": PASSWORD}
    url = f"sftp://127.0.0.1:{stranger.port}/in"
    blocks("changed", url, {**login, "host_key": other})
    blocks("unknown", url, {**login, "known_hosts": "/dev/null"})
    for block in ("changed", "unknown"):
        said = refusal_message(f"{url}/ids.txt", block)
        assert stranger.logins == []
        assert said == (
            "could not read the file of ids (HostKey): the host's key is not a known one; find out why, then set the "
            "option host_key or known_hosts"
        )
    assert stranger.connections == 2


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("sftp://files.corp.example/in", "sftp://files.corp.example/in/../out/x"),
        ("sftp://files.corp.example/in", "sftp://files.corp.example/in/%2E%2e/out/x"),
        ("sftp://files.corp.example/in", "sftp://files.corp.example/inner/x"),
        ("sftp://files.corp.example/in", "sftp://files.corp.example/in"),
        ("sftp://files.corp.example/in", "sftp://other@files.corp.example/in/x"),
        ("s3://bucket/in", "s3://other/in/x"),
        ("s3://bucket/in", "s3://bucket/x"),
        ("s3://bucket/in", "s3://bucket/in/a//x"),
        ("s3://bucket/in", "s3://bucket/in/..%2fx"),
        ("s3://bucket/in", "s3://bucket/in\\..\\x"),
        ("s3://bucket/in", "simplecache::s3://bucket/in/x"),
        ("s3://bucket/in", "s3://bucket/in/x::file:///etc/passwd"),
        ("s3://bucket/in", "gs://bucket/in/x"),
        ("s3://bucket/in", "memory://bucket/in/x"),
        ("s3://bucket/in", "https://bucket/in/x"),
        ("s3://bucket/in", "file:///bucket/in/x"),
        ("s3://bucket/in", "/bucket/in/x"),
        ("abfs://box@corp.dfs.core.windows.net/in", "abfs://box@other.dfs.core.windows.net/in/x"),
        ("abfs://box@corp.dfs.core.windows.net/in", "abfs://other@corp.dfs.core.windows.net/in/x"),
        ("gs://bucket/in", "gs://other/in/x"),
        ("file:///srv", "file:///srv/x"),
    ],
)
def test_a_blocks_options_are_for_its_own_folder(url: str, asked: str, blocks: Blocks) -> None:
    """The same host or bucket is not enough, nor is what may mean another folder; it is said what to do."""
    blocks("corp", url)
    said = refusal_message(asked, "corp")
    assert any(word in said for word in ("Begin ids_url as the block's URL", "Write", "Remove it", "Remove ids_block"))


@pytest.fixture(scope="module")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sftp]:
    server = Sftp(tmp_path_factory.mktemp("sftp"))
    server.start()
    server.make_place("place")
    (server.folder / "data/place/root").mkdir()
    yield server
    server.stop()


@pytest.fixture
def served(sftp: Sftp, blocks: Blocks) -> Path:
    """The folder of a block, past SFTP."""
    blocks("corp", sftp.url("place"), sftp.options())
    return sftp.folder / "data/place/root"


def test_a_file_in_an_sftp_blocks_folder_is_read(sftp: Sftp, served: Path, blocks: Blocks) -> None:
    """With the block's login, by the client that knows the host's key; in any spelling of the folder."""
    (served / "many").mkdir(exist_ok=True)
    (served / "many/ids.gz").write_bytes(gzip.compress(IDS_FILE_CONTENT))
    url = sftp.url("place")
    assert read_message_ids(f"{url}/many/ids.gz", "corp") == [A, B]
    assert read_message_ids(f"{url.replace('sftp:', 'ssh:')}//many//ids.gz", "corp") == [A, B]
    options = {name: value for name, value in sftp.options().items() if name != "port"}
    blocks("other", f"sftp://127.0.0.1:{sftp.port}/place", options)
    assert read_message_ids(f"{url}/many/ids.gz", "other") == [A, B]
    blocks("by-option", "sftp://127.0.0.1/place", sftp.options())
    assert read_message_ids(f"{url}/many/ids.gz", "by-option") == [A, B]
    assert read_message_ids("sftp://127.0.0.1:22/place/root/many/ids.gz", "by-option") == [A, B]


def test_what_is_no_file_on_an_sftp_server_is_not_read(sftp: Sftp, served: Path) -> None:
    """A folder, a pipe, a link to elsewhere, a link on the way there, and nothing at all."""
    secret = sftp.folder / "data/place/secret.txt"
    secret.write_bytes(IDS_FILE_CONTENT)
    (served / "link.txt").symlink_to(secret)
    (served / "inner").symlink_to(secret.parent)
    os.mkfifo(served / "pipe")
    for name in ("link.txt", "inner/secret.txt", "pipe", "inner", "missing.txt", "pipe/x"):
        assert "There is no file of ids at that URL" in refusal_message(f"{sftp.url('place')}/{name}", "corp")


def test_a_file_in_an_s3_blocks_folder_is_read(tmp_path: Path, blocks: Blocks) -> None:
    """As ever, without anything in the worker's environment."""
    server = Rclone(tmp_path)
    server.start()
    try:
        server.make_place("bucket")
        blocks("corp", "s3://bucket/in", server.options())
        for key in ("in/ids.csv", "out/ids.csv"):
            server.client().put_object(Bucket="bucket", Key=key, Body=b"messageId\n" + IDS_FILE_CONTENT)
        assert read_message_ids("s3://bucket/in/ids.csv", "corp") == [A, B]
        assert read_message_ids("s3a://bucket/in/ids.csv", "corp") == [A, B]
        assert "There is no file of ids at that URL" in refusal_message("s3://bucket/in/missing.csv", "corp")
        assert "is not in the folder of the block" in refusal_message("s3://bucket/out/ids.csv", "corp")
    finally:
        server.stop()


# --- What the worker allows


def test_nothing_is_read_that_the_worker_does_not_allow(
    tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with secrets, as it stands on many hosts: it is not even opened."""
    monkeypatch.delenv(ALLOWED_FOLDERS_VARIABLE, raising=False)
    secret = tmp_path / "environment"
    secret.write_text(f"API_KEY={CANARY}\n{CANARY}\n")
    secret.chmod(0)
    blocks("here", tmp_path.as_uri())
    for url in (str(secret), secret.as_uri(), f"file://localhost{secret}", f"local://{secret}", f"local:{secret}"):
        said = refusal_message(url)
        assert said.startswith("The worker may not read ids from there. Put the file into /srv/attachments-ids on ")
        assert ALLOWED_FOLDERS_VARIABLE in said
        assert "Remove ids_block" in refusal_message(url, "here")
    for url in ("s3://bucket/ids.txt", "http://127.0.0.1:1/x", "memory://x/y", "ftp://host/x", "github://o:r@main/x"):
        assert "The worker may not read ids from there" in refusal_message(url)
    for url in (
        f"simplecache::{secret.as_uri()}",
        f"filecache::{secret}",
        f"zip://x::{secret}",
        "simplecache::http://x",
    ):
        assert "chains file systems with '::'" in refusal_message(url)
    for url in ("data:,AAMk", "data://,AAMk", "dir:///etc/hostname", "generic://file:///etc/hostname"):
        refusal_message(url)


def test_no_store_hands_a_block_on_to_another_file_system() -> None:
    """Its options or its path would name what no comparison of URLs sees."""
    for url in ("dir:///etc", "generic://file:///etc"):
        with pytest.raises(ValueError, match="only forwards to another one"):
            AttachmentStore(url=url, options={"path": "/etc", "target_protocol": "file"})


def test_a_folder_is_allowed_by_default() -> None:
    """Where operators put the files of ids, as docs/backfill.md says."""
    assert DEFAULT_ALLOWED_FOLDERS == "file:///srv/attachments-ids"
    documented = (Path(__file__).parents[2] / "docs/backfill.md").read_text()
    assert f"{DEFAULT_ALLOWED_FOLDERS}/" in documented
    assert ALLOWED_FOLDERS_VARIABLE in documented


def test_a_file_in_an_allowed_folder_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By path or URL, packed or not, below it, by a link that stays in it; and in each folder that is named."""
    (folder / "2026").mkdir()
    path = folder / "2026/ids.csv.gz"
    path.write_bytes(gzip.compress(b"messageId\n" + IDS_FILE_CONTENT))
    (folder / "latest").symlink_to("2026/ids.csv.gz")
    for url in (str(path), path.as_uri(), f"file://localhost{path}", f"local://{path}", f"file:///{path}"):
        assert read_message_ids(url) == [A, B]
    assert read_message_ids(f"{folder}/latest") == [A, B]
    (tmp_path / "linked").symlink_to(folder)
    fsspec.filesystem(PROTOCOL).pipe("/ids-of-a-test/ids.txt", IDS_FILE_CONTENT)
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, f" s3://bucket/in ,{tmp_path}/linked/,, {PROTOCOL}://ids-of-a-test ")
    assert read_message_ids(f"{tmp_path}/linked/2026/ids.csv.gz") == [A, B]
    assert read_message_ids(f"{PROTOCOL}://ids-of-a-test/ids.txt") == [A, B]
    assert "There is no file of ids at that URL" in refusal_message(f"{PROTOCOL}://ids-of-a-test/missing.txt")
    assert "may not read" in refusal_message(str(path))


def test_nothing_is_allowed_where_the_variable_is_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator may switch it off."""
    (folder / "ids.txt").write_bytes(IDS_FILE_CONTENT)
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, "")
    assert "The worker may not read ids" in refusal_message(f"{folder}/ids.txt")
    assert "The worker may not read ids" in refusal_message(f"{DEFAULT_ALLOWED_FOLDERS}/ids.txt")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("srv/ids", f"Entry 2 of the worker's {ALLOWED_FOLDERS_VARIABLE} is a path relative to the working directory"),
        ("s3:/bucket", "lacks the :// after its protocol; write it as s3://bucket"),
        ("simplecache::file:///srv", "chains file systems"),
        ("data:,x", "has no :// after its protocol"),
    ],
)
def test_an_entry_that_cannot_be_right_is_said(entry: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number, and where to correct it."""
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, f"s3://bucket,{entry}")
    told = refusal_message("file:///srv/ids.txt")
    assert said in told
    assert told.endswith("Correct it in the worker's environment.")


@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would keep the worker for ever."""
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder)  # a socket's path may have 100 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name in ("pipe", "socket", "sub"):
            assert (
                refusal_message(f"{folder}/{name}")
                == "That URL does not name a regular file. Give the URL of a file of ids."
            )


@pytest.mark.timeout(30)
@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/environ", "/sys/kernel/mm"])
def test_nothing_of_the_kernels_is_read(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where all of the disk is allowed, nor by a link to it."""
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, "/")
    (folder / "link").symlink_to(path)
    for url in (path, f"{folder}/link"):
        assert refusal_message(url) in {
            "The file of ids belongs to a kernel file system. Give the URL of a regular file.",
            "There is no file of ids at that URL, or its server does not respond to the worker. Check host and path.",
        }


def test_no_link_leads_out_of_an_allowed_folder(folder: Path, tmp_path: Path) -> None:
    """A file's, a folder's, a chain of them, nor a way up."""
    secret = tmp_path / "secret.txt"
    secret.write_bytes(IDS_FILE_CONTENT)
    (folder / "link").symlink_to("../secret.txt")
    (folder / "chain").symlink_to("link")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    for name in ("link", "chain", "up/secret.txt"):
        assert "is a link to a file outside its folder" in refusal_message(f"{folder}/{name}")
    for name in ("../secret.txt", "x/../../secret.txt", "./../secret.txt"):
        assert "has an empty, . or .. segment, or an escaped slash" in refusal_message(f"{folder}/{name}")
    assert "may not read" in refusal_message(str(secret))
    assert "may not read" in refusal_message(f"{folder}-too/x")
    refusal_message(f"{folder}/loop")


def test_a_link_that_is_put_there_meanwhile_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the path and the opening."""
    (tmp_path / "secret").write_bytes(IDS_FILE_CONTENT)
    (folder / "sub").mkdir()
    looks = iter([folder, folder / "sub/ids.txt"])
    monkeypatch.setattr(Path, "resolve", lambda _: next(looks))
    (folder / "sub/ids.txt").symlink_to(tmp_path / "secret")
    assert "does not name a regular file" in refusal_message(f"{folder}/sub/ids.txt")
    (folder / "sub/ids.txt").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(tmp_path)
    (tmp_path / "ids.txt").write_bytes(IDS_FILE_CONTENT)
    looks = iter([folder, folder / "sub/ids.txt"])
    assert "(NotADirectoryError)" in refusal_message(f"{folder}/sub/ids.txt")


def test_lines_of_a_wrong_file_get_nowhere(folder: Path) -> None:
    """An environment file in the right folder: its first line is refused, by number, and none becomes a parameter."""
    for text in (f"API_KEY={CANARY}\n", f"{A}\nSECRET={CANARY}==\n", f"{A}\n{CANARY}:x:0:0\n", f"{A}\n{CANARY}=x=\n"):
        (folder / "env").write_text(text)
        assert f"Line {text.count(chr(10))} is not a message id" in refusal_message(f"{folder}/env")


# --- Web servers


@dataclass
class WebServer:
    """A web server, and what it was asked."""

    port: int
    requests: list[tuple[str, Mapping[str, str]]]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def running_web_server(answers: Mapping[str, tuple[int, Mapping[str, str], bytes]]) -> Iterator[WebServer]:
    seen: list[tuple[str, Mapping[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, dict(self.headers)))
            status, headers, body = answers.get(self.path.partition("?")[0], (404, {}, b""))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, 0.01))
    thread.start()
    try:
        yield WebServer(server.server_port, seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def exports() -> Iterator[WebServer]:
    with running_web_server({"/latest/meta-data": (200, {}, IDS_FILE_CONTENT)}) as inner:
        answers: dict[str, tuple[int, Mapping[str, str], bytes]] = {
            "/exports/ids.txt": (200, {}, IDS_FILE_CONTENT),
            "/exports/ids.gz": (200, {"Content-Encoding": "gzip"}, gzip.compress(IDS_FILE_CONTENT)),
            "/exports/moved": (302, {"Location": inner.url("/latest/meta-data")}, b""),
            "/exports/there": (307, {"Location": "/exports/ids.txt"}, IDS_FILE_CONTENT),
            "/exports/broken": (500, {}, CANARY.encode()),
            "/exports/short": (200, {"Content-Length": "1000"}, IDS_FILE_CONTENT),
            "/private/ids.txt": (200, {}, IDS_FILE_CONTENT),
        }
        with running_web_server(answers) as outer:
            yield outer
            assert inner.requests == []


def test_a_web_server_is_asked_where_the_worker_allows_it(exports: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proxy, a login or a cookie; what it has packed is unpacked here."""
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, exports.url("/exports/"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", "/dev/null")
    assert read_message_ids(exports.url("/exports/ids.txt?signature=a%2Bb&x=é")) == [A, B]
    assert read_message_ids(exports.url("/exports/ids.gz")) == [A, B]
    (asked, headers), _ = exports.requests
    assert asked == "/exports/ids.txt?signature=a%2Bb&x=%C3%A9"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"authorization", "cookie", "proxy-authorization"} & {name.lower() for name in headers}


def test_no_redirect_is_followed(exports: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """To another host, such as one that hands out the machine's credentials, or to the same."""
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, exports.url("/exports"))
    for path in ("/exports/moved", "/exports/there"):
        assert "responds with a redirect, which is not followed" in refusal_message(exports.url(path))
    assert [path for path, _ in exports.requests] == ["/exports/moved", "/exports/there"]


def test_what_a_web_server_does_not_hand_out_is_said(exports: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its status; nothing of its answer is shown, and a cut one is no file."""
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, f"{exports.url('')},http://127.0.0.1:1/x")
    assert "responds with status 500 instead of the file of ids" in refusal_message(exports.url("/exports/broken"))
    assert "There is no file of ids at that URL" in refusal_message(exports.url("/missing"))
    assert "(RemoteProtocolError)" in refusal_message(exports.url("/exports/short"))
    assert "(ConnectError)" in refusal_message("http://127.0.0.1:1/x/y")


def test_no_other_web_server_is_asked(exports: WebServer, blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another host, port, scheme or folder, nor one that only looks like it."""
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, "http://exports.corp.example/exports, https://127.0.0.1/exports")
    port = exports.port
    blocks("corp", "s3://bucket/in", {"endpoint_url": exports.url(""), "key": "k", "secret": "s"})
    for url in (
        exports.url("/exports/ids.txt"),
        f"http://exports.corp.example@127.0.0.1:{port}/exports/ids.txt",
        f"http://exports.corp.example:80@127.0.0.1:{port}/exports/ids.txt",
        f"http://127.0.0.1:{port}\\@exports.corp.example/exports/ids.txt",
        f"http://127.0.0.1:{port}#@exports.corp.example/exports/ids.txt",
        f"http://127.0.0.1:{port}?@exports.corp.example/exports/ids.txt",
        f"HTTP://127.0.0.1:{port}/exports/ids.txt",
    ):
        refusal_message(url)
        refusal_message(url, "corp")
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, exports.url("/exports"))
    for path in (
        "/private/ids.txt",
        "/exports/../private/ids.txt",
        "/exports/%2e%2e/private/ids.txt",
        "/exports/%252e%252e/private/ids.txt",
        "/exports/..;/private/ids.txt",
        "/exports/%2e.%3Bx/private/ids.txt",
        "/exports/..%252fprivate/ids.txt",
        "/exportsx/ids",
    ):
        refusal_message(exports.url(path))
    assert exports.requests == []
