"""The servers of the stores' tests: each is what it is taken for, and ends when it is told to.

What they do otherwise than the services they stand for is pinned as well, for the stores' tests must know it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import botocore.exceptions
import fsspec
import paramiko
import pytest
import requests
from azure.core.exceptions import ResourceExistsError
from gcsfs.core import GCSFileSystem

from tests.servers import kinds
from tests.servers.kinds import Azurite, FakeGcs, Moto, Rclone, Sftp
from tests.servers.proxy import Proxy
from tests.servers.server import Server

KINDS: tuple[type[Server], ...] = (Moto, Rclone, Azurite, FakeGcs, Sftp)
CONTENT = bytes(range(256)) * 1000
LARGE = CONTENT * 24  # 6.1 MB, more than one part


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[type[Server]], Any]]:
    """One of a kind, started when it is first asked for."""
    servers: dict[type[Server], Server] = {}

    def of(kind: type[Server]) -> Server:
        if kind not in servers:
            server = kind(tmp_path_factory.mktemp(kind.__name__))
            server.start()
            servers[kind] = server
        return servers[kind]

    try:
        yield of
    finally:
        for server in servers.values():
            server.stop()


@contextmanager
def own(kind: type[Server], folder: Path) -> Iterator[Any]:
    """One that the test may kill."""
    server = kind(folder / kind.__name__)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def file_system(server: Server, port: int | None = None) -> Any:
    """fsspec's, new, without listings from before."""
    if isinstance(server, FakeGcs):
        # The class that fsspec has for gs:// asks Google by gRPC what kind of bucket it is.
        return GCSFileSystem(**server.options(port), skip_instance_cache=True)
    protocol = server.url("x").partition(":")[0]
    options = server.options(port)
    if isinstance(server, Sftp):
        del options["host_key"]  # ours, not fsspec's
        options["host"] = "127.0.0.1"
    fs = fsspec.filesystem(protocol, **options, skip_instance_cache=True)
    if isinstance(server, Sftp):
        # Else each of its requests waits 40 ms for the acknowledgement of the one before.
        fs.client.get_transport().sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return fs


def in_place(server: Server, name: str) -> str:
    """The path of `name` in its place, as fsspec's file system has it."""
    return f"/{name}" if isinstance(server, Sftp) else name


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", CONTENT, LARGE], ids=["empty", "small", "large"])
def test_it_takes_an_object_and_gives_it_back(
    started: Callable[[type[Server]], Any], kind: type[Server], content: bytes
) -> None:
    """Through fsspec, with the options that the class has for it."""
    server = started(kind)
    name = f"bucket-{len(content)}"
    server.make_place(name)
    fs = file_system(server)
    path = in_place(server, f"{name}/übung & more.pdf")
    fs.pipe_file(path, content)
    assert fs.cat_file(path) == content
    assert fs.size(path) == len(content)
    assert [found.rpartition("/")[2] for found in fs.find(in_place(server, name))] == ["übung & more.pdf"]


@pytest.mark.soak  # of the servers that the tests use
@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_on_the_same_port(tmp_path: Path, kind: type[Server]) -> None:
    """Killed and restarted it takes what it is given; what it had is there, where `keeps_data` says so."""
    with own(kind, tmp_path) as server:
        server.make_place("before")
        file_system(server).pipe_file(in_place(server, "before/a.pdf"), CONTENT)
        port, first = server.port, server._process.pid
        server.restart()
        assert server.port == port
        assert not runs(first)
        if server.keeps_data:
            assert file_system(server).cat_file(in_place(server, "before/a.pdf")) == CONTENT
        server.make_place("after-it")
        file_system(server).pipe_file(in_place(server, "after-it/a.pdf"), CONTENT)


@pytest.mark.soak  # of the servers that the tests use
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_it(tmp_path: Path, kind: type[Server]) -> None:
    """Stopped or killed, there is no process and nobody on the port; to end it twice is no error."""
    with own(kind, tmp_path) as server:
        for end in (server.stop, server.kill):
            process = server._process.pid
            end()
            assert not runs(process)
            with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port), 5):
                pass
            server.start()


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    """What it printed is in the error."""

    class Misspelt(Rclone):
        def command(self) -> list[str | Path]:
            return [*super().command(), "--no-such-option"]

    with pytest.raises(RuntimeError, match=r"(?s)Misspelt did not start:.*no-such-option"), own(Misspelt, tmp_path):
        pass


def test_what_is_not_installed_is_no_reason_to_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command that installs it."""
    monkeypatch.setattr(kinds, "AZURITE", tmp_path / "missing.js")
    with pytest.raises(RuntimeError, match=r"make build/azurite/\.installed"):
        Azurite(tmp_path).start()


def test_moto_supports_conditions(started: Callable[[type[Server]], Any]) -> None:
    """As S3: 412 on a plain write and on completing a multipart upload."""
    server = started(Moto)
    server.make_place("conditions")
    for write in (_put, _put_in_parts):
        key = write.__name__
        write(server.client(), key)
        with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
            write(server.client(), key)


def test_rclone_heeds_no_conditions(started: Callable[[type[Server]], Any]) -> None:
    """Otherwise than S3: If-None-Match is ignored, and what was there is overwritten."""
    server = started(Rclone)
    server.make_place("conditions")
    for write in (_put, _put_in_parts):
        key = write.__name__
        write(server.client(), key)
        write(server.client(), key)


def _put(client: Any, key: str) -> None:
    client.put_object(Bucket="conditions", Key=key, Body=b"x", IfNoneMatch="*")


def _put_in_parts(client: Any, key: str) -> None:
    where = {"Bucket": "conditions", "Key": key}
    upload = client.create_multipart_upload(**where)["UploadId"]
    part = client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts, IfNoneMatch="*")


def test_azurite_supports_conditions(started: Callable[[type[Server]], Any]) -> None:
    """As Azure: what stands is not replaced."""
    server = started(Azurite)
    server.make_place("conditions")
    blob = server.service().get_blob_client("conditions", "a.pdf")
    blob.upload_blob(b"x")
    with pytest.raises(ResourceExistsError):
        blob.upload_blob(b"y", overwrite=False)
    assert blob.download_blob().readall() == b"x"


def test_fake_gcs_supports_conditions_of_writes_in_one_request(started: Callable[[type[Server]], Any]) -> None:
    """As Google, in a body of two parts; uploads of media alone and resumable ones overwrite, otherwise than Google."""
    server = started(FakeGcs)
    server.make_place("conditions")

    def asked(kind: str, data: bytes, content_type: str) -> requests.Response:
        told = {"name": "a.pdf", "ifGenerationMatch": "0", "uploadType": kind}
        address = f"http://127.0.0.1:{server.port}/upload/storage/v1/b/conditions/o"
        return requests.post(address, data, params=told, headers={"Content-Type": content_type}, timeout=10)

    both = b'--=\r\nContent-Type: application/json\r\n\r\n{"name": "a.pdf"}\r\n--=\r\n\r\nx\r\n--=--\r\n'
    answers = [asked("multipart", both, 'multipart/related; boundary="="') for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 412]
    assert asked("media", b"yy", "application/pdf").status_code == 200
    session = asked("resumable", b"", "application/json").headers["Location"]
    assert requests.put(session, data=b"zzz", timeout=10).status_code == 200
    assert file_system(server).cat_file("conditions/a.pdf") == b"zzz"


def test_fake_gcs_announces_a_proxy(started: Callable[[type[Server]], Any]) -> None:
    """Upload sessions are at the address that it was told last."""
    server = started(FakeGcs)
    server.make_place("announced")
    with Proxy(server.port) as proxy:
        server.announce(proxy.port)
        try:
            file_system(server, proxy.port).pipe_file("announced/a.pdf", LARGE, chunksize=2 * 2**20)
        finally:
            server.announce(server.port)
        assert sum("upload_id" in request for request in proxy.requests) == 3
    assert file_system(server).cat_file("announced/a.pdf") == LARGE


@pytest.fixture
def sftp(started: Callable[[type[Server]], Any]) -> Iterator[tuple[Sftp, paramiko.SFTPClient]]:
    """The server, and somebody who has logged in and cleaned up."""
    server = started(Sftp)
    with closing(paramiko.Transport(("127.0.0.1", server.port))) as transport:
        transport.connect(username=server.username, password=server.password)
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        for name in client.listdir("/"):
            if not name.startswith("bucket"):
                client.remove(f"/{name}")
        yield server, client


def test_sftp_renames_as_openssh(sftp: tuple[Sftp, paramiko.SFTPClient]) -> None:
    """A plain rename replaces nothing; posix-rename does."""
    _, client = sftp
    for name in ("/a", "/b"):
        with client.open(name, "w") as file:
            file.write(name)
    with pytest.raises(OSError, match="it stands there already"):
        client.rename("/a", "/b")
    client.posix_rename("/a", "/b")
    with client.open("/b") as file:
        assert file.read() == b"/a"
    assert "a" not in client.listdir("/")


def test_sftp_shows_its_folder_alone(sftp: tuple[Sftp, paramiko.SFTPClient]) -> None:
    """What lies above or beside it can't be reached."""
    server, client = sftp
    (server.folder / "data" / "a").write_bytes(b"in")
    assert "a" in client.listdir("/../..")
    with pytest.raises(FileNotFoundError):
        client.open(str(server.folder / "data" / "a"))
    with pytest.raises(FileNotFoundError):
        client.open("/../host_key")


def test_sftp_lets_one_user_in(started: Callable[[type[Server]], Any]) -> None:
    """And shows the host key of `options`."""
    server = started(Sftp)
    with closing(paramiko.Transport(("127.0.0.1", server.port))) as transport:
        with pytest.raises(paramiko.AuthenticationException):
            transport.connect(username=server.username, password="wrong")
        shown = transport.get_remote_server_key()
    assert server.options()["host_key"].split()[:2] == [shown.get_name(), shown.get_base64()]


def test_sftp_syncs_files(started: Callable[[type[Server]], Any]) -> None:
    """fsync@openssh.com, as OpenSSH has it."""
    server = started(Sftp)

    async def synced() -> None:
        login = {"username": server.username, "password": server.password, "known_hosts": None}
        async with (
            asyncssh.connect("127.0.0.1", server.port, **login) as connection,
            connection.start_sftp_client() as client,
            client.open("/a", "wb") as file,
        ):
            await file.write(CONTENT)
            await file.fsync()

    asyncio.run(synced())
    assert (server.folder / "data" / "a").read_bytes() == CONTENT
