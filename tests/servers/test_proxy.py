"""The faulty proxies do what they say: to a server that keeps account, and to clients that stores are made of."""

from __future__ import annotations

import http.client
import io
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import boto3
import botocore.exceptions
import paramiko
import pytest
from botocore.config import Config

from tests.servers.kinds import Rclone, Sftp
from tests.servers.proxy import Answer, DropReply, Proxy, Reset, Stall
from tests.servers.server import free_port
from tests.servers.test_servers import file_system
from tests.servers.wire import Wire

MIB = 1024 * 1024
LARGE = bytes(range(256)) * (6 * MIB // 256)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Account(ThreadingHTTPServer):
    """Notes each request, and as much of its body as came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.seen: list[tuple[str, bytes]] = []
        self.hosts: list[str] = []


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        account = cast(Account, self.server)
        account.hosts.append(self.headers["Host"])
        account.seen.append((f"{self.command} {self.path}", self._body()))
        answer = b"as you wish"
        try:
            self.send_response(201)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else answer)
        except OSError:  # nobody waits for it any more
            self.close_connection = True

    do_GET = do_POST = do_HEAD = do_PUT  # noqa: N815  http.server's names

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *args: object) -> None:  # it would go to stderr
        pass


class _ReadsAndLeaves(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.rfile.read(3)


@contextmanager
def served(server: Any) -> Iterator[Any]:
    """On a thread, until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def account() -> Iterator[Account]:
    with served(Account()) as server:
        yield server


@pytest.fixture
def proxy(account: Account) -> Iterator[Proxy]:
    with Proxy(account.server_address[1]) as made:
        yield made


def ask(port: int, method: str, target: str, body: Any = None, **options: Any) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, target, body, **options)
        answer = connection.getresponse()
        return answer.status, answer.read()


class TestProxy:
    """Faults by request."""

    @pytest.mark.parametrize("method", ["GET", "PUT", "POST", "HEAD"])
    def test_without_orders_it_changes_nothing(self, account: Account, proxy: Proxy, method: str) -> None:
        """The server is asked what the client asks, and the client is told what the server tells."""
        assert ask(proxy.port, method, "/a?b=%20c") == (201, b"" if method == "HEAD" else b"as you wish")
        assert account.seen == [(f"{method} /a?b=%20c", b"")]
        assert account.hosts == [f"127.0.0.1:{proxy.port}"]
        assert proxy.requests == [f"{method} /a?b=%20c"]

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    def test_a_body_passes_whole(self, account: Account, proxy: Proxy, framing: str) -> None:
        """However it is framed, and larger than any buffer."""
        body = LARGE if framing == "length" else iter([LARGE[:1], LARGE[1:MIB], LARGE[MIB:]])
        assert ask(proxy.port, "PUT", "/a", body) == (201, b"as you wish")
        assert account.seen == [("PUT /a", LARGE)]

    def test_who_waits_for_100_is_told_to_go_on(self, account: Account, proxy: Proxy) -> None:
        """By the proxy, for it takes the body in any case."""
        with socket.create_connection(("127.0.0.1", proxy.port), 20) as client, client.makefile("rb") as answers:
            client.sendall(b"PUT /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
            assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
            client.sendall(b"abc")
            assert b"201" in answers.read()
        assert account.seen == [("PUT /a", b"abc")]

    def test_an_answer_of_its_own(self, account: Account, proxy: Proxy) -> None:
        """The server is told nothing; the body is taken, so that the client reads the answer."""
        proxy.order("PUT", "/a", Answer(503, b"slow down"))
        assert ask(proxy.port, "PUT", "/a", LARGE) == (503, b"slow down")
        assert account.seen == []
        assert proxy.ordered == 0

    def test_the_nth_request_so_many_times(self, account: Account, proxy: Proxy) -> None:
        """Counted are those of that method whose target matches; each order by itself."""
        proxy.order("PUT", r"part=\d", Answer(500), skip=1, times=2)
        asked = [("PUT", "/?part=1"), ("GET", "/?part=1"), ("PUT", "/"), *[("PUT", f"/?part={n}") for n in (2, 3, 4)]]
        assert [ask(proxy.port, *each)[0] for each in asked] == [201, 201, 201, 500, 500, 201]
        assert proxy.ordered == 0
        assert proxy.requests == [f"{method} {target}" for method, target in asked]

    @pytest.mark.parametrize("body", [None, b"abc"])
    def test_a_reset_before_anything_is_done(self, account: Account, proxy: Proxy, body: bytes | None) -> None:
        """The server is told nothing, not even of a request without a body; the client sees a reset, not an end."""
        proxy.order("POST", "uploads", Reset())
        with pytest.raises(ConnectionResetError):
            ask(proxy.port, "POST", "/a?uploads", body)
        assert ask(proxy.port, "POST", "/next")[0] == 201
        assert account.seen == [("POST /next", b"")]

    @pytest.mark.parametrize("after", [0, 1, 100_000, 5 * MIB])
    def test_a_reset_in_mid_body(self, account: Account, proxy: Proxy, after: int) -> None:
        """The server has seen so many bytes, and no more."""
        proxy.order("PUT", "/a", Reset(after=after))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            ask(proxy.port, "PUT", "/a", LARGE)
        eventually(lambda: bool(account.seen))
        assert account.seen == [("PUT /a", LARGE[:after])]

    def test_a_lost_reply(self, account: Account, proxy: Proxy) -> None:
        """The server has done it when the client sees the reset."""
        proxy.order("POST", "uploadId", DropReply())
        with pytest.raises(ConnectionResetError):
            ask(proxy.port, "POST", "/a?uploadId=1", b"abc")
        assert account.seen == [("POST /a?uploadId=1", b"abc")]

    def test_a_stall(self, account: Account, proxy: Proxy) -> None:
        """Nothing comes; the server is told nothing."""
        proxy.order("PUT", "/a", Stall())
        with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=0.2)) as client:
            client.request("PUT", "/a", LARGE)
            with pytest.raises(TimeoutError):
                client.getresponse()
        assert account.seen == []

    def test_a_server_that_is_away(self) -> None:
        """The client sees a reset; the proxy goes on."""
        with Proxy(free_port()) as proxy:
            for _ in range(2):
                with pytest.raises(ConnectionResetError):
                    ask(proxy.port, "GET", "/")

    def test_a_server_that_dies_over_it(self) -> None:
        """One that has read the request and ends without an answer: the client sees a reset."""
        with (
            served(socketserver.TCPServer(("127.0.0.1", 0), _ReadsAndLeaves)) as server,
            Proxy(server.server_address[1]) as proxy,
            pytest.raises(ConnectionResetError),
        ):
            ask(proxy.port, "PUT", "/a", b"abc")

    def test_a_stalled_client_does_not_hold_it_up(self, account: Account) -> None:
        """It ends with connections open."""
        with Proxy(account.server_address[1]) as proxy:
            client = socket.create_connection(("127.0.0.1", proxy.port), 20)
            client.sendall(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
            eventually(lambda: bool(proxy.requests))
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rclone]:
    server = Rclone(tmp_path_factory.mktemp("rclone"))
    server.start()
    try:
        server.make_place("signed")
        yield server
    finally:
        server.stop()


class TestProxyBeforeS3:
    """With a server that checks signatures."""

    def test_an_upload_in_parts(self, rclone: Rclone) -> None:
        """Signed requests pass, and each step can be told from the others."""
        with Proxy(rclone.port) as proxy:
            proxy.order("POST", r"[?&]uploads", Answer(503))
            proxy.order("PUT", r"partNumber=2", Reset(after=1000))
            proxy.order("POST", r"uploadId=", Answer(500))
            file_system(rclone, proxy.port).pipe_file("signed/parts.pdf", LARGE * 2, chunksize=5 * MIB)
            assert proxy.ordered == 0
            for n in (1, 2, 3):
                assert any(f"partNumber={n}" in request for request in proxy.requests)
        assert file_system(rclone).cat_file("signed/parts.pdf") == LARGE * 2

    def test_aws_chunked(self, rclone: Rclone) -> None:
        """A body in signed pieces, with a checksum after its end."""
        with Proxy(rclone.port) as proxy, closing(_client(rclone, proxy.port)) as client:
            client.put_object(Bucket="signed", Key="a", Body=io.BytesIO(LARGE), ChecksumAlgorithm="CRC32")
            assert client.get_object(Bucket="signed", Key="a")["Body"].read() == LARGE

    def test_a_refusal_comes_through(self, rclone: Rclone) -> None:
        """Also when the server does not wait for the body's end: it may reset the connection then, so some tries."""
        with (
            Proxy(rclone.port) as proxy,
            closing(_client(rclone, proxy.port, secret="wrong", tries=5)) as client,
            pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"),
        ):
            client.put_object(Bucket="signed", Key="b", Body=LARGE)


def _client(server: Rclone, port: int, secret: str | None = None, tries: int = 1) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=server.key,
        aws_secret_access_key=secret or server.secret,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": tries}, s3={"addressing_style": "path"}),
    )


class Echo(socketserver.ThreadingTCPServer):
    """Sends back what it gets, and keeps it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echoes)
        self.got = bytearray()
        self.ended = threading.Event()


class _Echoes(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        echo = cast(Echo, self.server)
        try:
            while piece := self.request.recv(65536):
                echo.got += piece
                self.request.sendall(piece)
        except OSError:  # the wire is cut
            pass
        finally:
            echo.ended.set()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with served(Echo()) as server:
        yield server


@pytest.fixture
def wire(echo: Echo) -> Iterator[Wire]:
    with Wire(echo.server_address[1]) as made:
        yield made


@pytest.fixture
def client(wire: Wire) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", wire.port), 20) as connection:
        yield connection


def received(client: socket.socket, size: int) -> bytes:
    """That many bytes, or as many as come before the end."""
    got = b""
    while len(got) < size and (piece := client.recv(size - len(got))):
        got += piece
    return got


def send_until_it_breaks(client: socket.socket) -> None:
    while True:
        client.sendall(LARGE[:100_000])
        client.recv(100_000)


class TestWire:
    """Faults by byte."""

    def test_a_good_line_changes_nothing(self, wire: Wire, client: socket.socket) -> None:
        """All bytes come, both ways, and so does the end."""
        sender = threading.Thread(target=lambda: (client.sendall(LARGE), client.shutdown(socket.SHUT_WR)))
        sender.start()
        assert received(client, len(LARGE)) == LARGE
        assert client.recv(1) == b""
        sender.join()
        assert wire.carried == {"to_server": len(LARGE), "to_client": len(LARGE)}
        assert wire.connections == 1

    def test_latency(self, wire: Wire, client: socket.socket) -> None:
        """Each way takes so long."""
        wire.latency = 0.1
        began = time.monotonic()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert time.monotonic() - began >= 0.2

    def test_slices(self, wire: Wire, echo: Echo, client: socket.socket) -> None:
        """What was sent at once comes bit by bit."""
        wire.latency, wire.slices = 0.02, 2
        content = bytes(range(60))
        client.sendall(content)
        first = client.recv(len(content))
        assert 0 < len(first) < len(content)
        assert first + received(client, len(content) - len(first)) == content

    @pytest.mark.parametrize("size", [0, 1, 70_000])
    def test_a_cut_on_the_way_to_the_server(self, wire: Wire, echo: Echo, client: socket.socket, size: int) -> None:
        """The server gets so many bytes, and no more; the client sees a reset. The next connection is a good one."""
        wire.cut(to_server=size)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_it_breaks(client)
        assert echo.ended.wait(20)
        assert len(echo.got) == size
        assert wire.cuts == 0
        with socket.create_connection(("127.0.0.1", wire.port), 20) as other:
            other.sendall(b"again")
            assert received(other, 5) == b"again"

    def test_a_cut_on_the_way_back(self, wire: Wire, echo: Echo, client: socket.socket) -> None:
        """The server has got everything, and its answer is lost after so many bytes."""
        wire.cut(to_client=3)
        client.sendall(b"0123456789")
        with pytest.raises(ConnectionResetError):
            assert received(client, 10) == b"012"
        assert echo.ended.wait(20)
        assert echo.got == b"0123456789"

    def test_a_stall_ends(self, wire: Wire, client: socket.socket) -> None:
        """Nothing passes, and then all of it."""
        wire.stall()
        client.sendall(b"x")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        wire.resume()
        client.settimeout(20)
        assert client.recv(1) == b"x"

    def test_a_reset(self, wire: Wire, client: socket.socket) -> None:
        """All connections break at once; new ones are taken."""
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        wire.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with socket.create_connection(("127.0.0.1", wire.port), 20) as other:
            other.sendall(b"y")
            assert other.recv(1) == b"y"

    def test_sftp_over_a_bad_line(self, tmp_path: Path) -> None:
        """It carries any protocol: slow and in slices it comes through; cut, the client knows."""
        server = Sftp(tmp_path)
        server.start()
        try:
            with Wire(server.port) as wire:
                wire.latency, wire.slices = 0.001, 5000
                fs = file_system(server, wire.port)
                fs.pipe_file("/a", LARGE[:300_000])
                assert fs.cat_file("/a") == LARGE[:300_000]
                wire.latency = 0.0
                wire.cut(to_server=100_000)
                with pytest.raises((OSError, EOFError, paramiko.SSHException)):
                    fs.pipe_file("/b", LARGE)
                assert wire.cuts == 0
                fs.client.close()
        finally:
            server.stop()
        assert (tmp_path / "data/b").stat().st_size < 100_000
