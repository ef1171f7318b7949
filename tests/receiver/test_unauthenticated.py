"""What clients without the secret can do to the receiver: neither fill its log nor its memory, nor have it write."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path

import pytest

from attachments.demo.processes import NotReady
from tests.servers.certificates import make_certificate

from .conftest import SECRET, Receiver
from .prefect_stub import PrefectStub
from .sockets import connect, raw_request, unverified_context

Make = Callable[..., Receiver]
LIMIT_SETTING = "max_unauthenticated"
GRACE_SETTING = "eviction_grace"
SHORT_INTERVAL = {"log_interval": 1.0}
CHUNKED = b"POST /webhooks/default HTTP/1.1\r\nHost: receiver\r\nTransfer-Encoding: chunked\r\n"
HEAD = b"GET /health HTTP/1.1\r\nHost: receiver\r\n"
HOSTILE_REQUESTS = {
    "no request": [b"\x00\xff\r\n\r\n"],
    "no target": [b"GET\r\n\r\n"],
    "no host": [b"GET /health HTTP/1.1\r\n\r\n"],
    "another version": [b"GET / HTTP/9.9\r\nHost: receiver\r\n\r\n"],
    "endless header": [b"GET / HTTP/1.1\r\nA: " + b"b" * 200_000],
    "many headers": [HEAD + b"A: b\r\n" * 20_000],
    "odd header": [HEAD + b"A\x00: b\r\n\r\n"],
    "two lengths": [HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"],
    "length that is no number": [HEAD + b"Content-Length: -1\r\n\r\n"],
    "length and chunks": [CHUNKED + b"Content-Length: 5\r\n\r\nzz"],
    "unknown coding": [HEAD + b"Transfer-Encoding: gzip\r\n\r\n"],
    "malformed chunk": [CHUNKED + b"\r\n", b"zz\r\n"],
    "malformed chunk at once": [CHUNKED + b"\r\nzz\r\n"],
    "malformed request after a good one": [HEAD + b"\r\n\x00\xff\r\n\r\n"],
    "malformed request after a refused one": [CHUNKED + b"\r\n0\r\n\r\n", b"\x00\xff\r\n\r\n"],
    "upgrade": [HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"],
    "other upgrade": [HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"],
    "tunnel": [b"CONNECT internal:80 HTTP/1.1\r\nHost: internal\r\n\r\n"],
    "unknown path": [b"GET /%ff%00/\x7e HTTP/1.1\r\nHost: receiver\r\n\r\n"],
    "unknown method": [b"BREW /webhooks/default HTTP/1.1\r\nHost: receiver\r\n\r\n"],
    "expectation": [b"POST / HTTP/1.1\r\nHost: receiver\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"],
    "no secret": [raw_request("POST", "/webhooks/default", b"{}", None)],
    "wrong secret in bytes": [raw_request("POST", "/webhooks/default", b"{}", b"Bearer \xff\xfe")],
    "half a body": [raw_request("POST", "/webhooks/default", b"x" * 1000, None)[:-900]],
    "half a request": [HEAD],
    "nothing": [],
}
"""What is sent, a piece after the receiver has had time for the one before."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "receiver.pem")


@pytest.fixture(params=["plain", "TLS"])
def make_either(request: pytest.FixtureRequest, make: Make, certificate: Path) -> Make:
    """Makes receivers of plain HTTP and of HTTPS, started."""
    tls = ("--tls-certificate", str(certificate), "--tls-key", str(certificate)) if request.param == "TLS" else ()

    def make_either(options: tuple[str, ...] = (), **others: object) -> Receiver:
        receiver = make(options=(*tls, *options), **others)
        receiver.process.start()
        return receiver

    return make_either


@contextmanager
def client(receiver: Receiver) -> Iterator[socket.socket]:
    """A connection to the receiver, encrypted where it serves HTTPS."""
    with ExitStack() as stack:
        connection = stack.enter_context(connect(receiver.url))
        if receiver.url.startswith("https:"):
            context = unverified_context()
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname="localhost"))
        yield connection


def attack(receiver: Receiver, pieces: list[bytes], *, abruptly: bool) -> None:
    """One connection that sends these, and ends without or with waiting for an answer."""
    with client(receiver) as connection:
        try:
            for index, piece in enumerate(pieces):
                if index:
                    connection.recv(65536)
                connection.sendall(piece)
            if not abruptly and pieces:
                connection.settimeout(0.2)
                connection.recv(65536)
        except OSError:  # cut off, or no answer yet: what is tested is the log
            pass


def test_lines_that_strangers_cause_are_counted(make_either: Make) -> None:
    """Hundreds of malformed, cut off and refused requests are told in a handful of lines, with their number."""
    receiver = make_either(tuning=SHORT_INTERVAL)
    lines = len(receiver.log.splitlines())
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for number, pieces in enumerate(islice(cycle(HOSTILE_REQUESTS.values()), 3 * len(HOSTILE_REQUESTS))):
            pool.submit(attack, receiver, pieces, abruptly=number % 3 == 0)
    assert receiver.process.stop() == 0
    written = receiver.log.splitlines()[lines:]
    assert "Traceback" not in receiver.log
    assert "defect" not in receiver.log
    told = [line for line in written if "WARNING" in line or "ERROR" in line or "CRITICAL" in line]
    kinds = {text(line) for line in told}
    assert {"Invalid HTTP request received.", "Requests without a valid secret were refused."} <= kinds
    assert len(kinds) <= 3, kinds
    assert any("more times" in line for line in told)
    seconds = time.monotonic() - began
    assert len(told) <= len(kinds) * (seconds + 2), "one of each in a second, and one at the end"


def text(line: str) -> str:
    """The first sentence of a line, by which its kind is told."""
    return line.split("  ", 2)[-1].partition(".")[0] + "."


def test_a_thousand_malformed_requests_are_a_handful_of_lines(receiver: Receiver) -> None:
    """The first one is told at once, the others as a number when the interval is over; none is left out."""
    lines = len(receiver.log.splitlines())
    with ThreadPoolExecutor(8) as pool:
        for _ in range(1000):
            pool.submit(attack, receiver, [b"GET\r\n\r\n"], abruptly=False)
    assert receiver.process.stop() == 0
    told = [line for line in receiver.log.splitlines()[lines:] if "Invalid HTTP request received." in line]
    assert "more times" not in told[0]
    counted = [int(match.group(1)) for line in told if (match := re.search(r"\((\d+) more times", line))]
    # A line that ends an interval stands for the one that it counts from.
    assert sum(counted) + 1 == 1000
    assert len(told) < 20
    assert len(receiver.log.splitlines()) - lines < 30


def test_connections_without_the_secret_give_way_to_others(make_either: Make) -> None:
    """The oldest of those above the limit is closed; one that has shown the secret is left alone."""
    receiver = make_either(tuning={LIMIT_SETTING: 10, GRACE_SETTING: 0.2})
    body = b'{"id": "a", "event": "received"}'
    request = raw_request("POST", "/webhooks/default", body, f"Bearer {SECRET}".encode())
    refused = raw_request("POST", "/webhooks/default", body, b"Bearer wrong")
    for first in (b"", b"GET /health HTTP/1.1\r\n", refused):
        with ExitStack() as stack:
            known = stack.enter_context(client(receiver))
            known.sendall(request[:-5])
            opened = []
            for _ in range(30):
                opened.append(stack.enter_context(client(receiver)))
                opened[-1].sendall(first)
            for connection in opened[:15]:
                assert is_closed(connection)
            assert receiver.deliver("b").status_code == 200
            known.sendall(request[-5:])
            assert known.recv(65536).startswith(b"HTTP/1.1 200 ")


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes a connection, once what it has answered is read."""
    try:
        while connection.recv(65536):
            continue
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_a_burst_of_deliveries_is_taken_whatever_the_limit(make_either: Make, prefect: PrefectStub) -> None:
    """Connections that come at once and send their request soon wait for their turn; none is closed for another."""
    receiver = make_either(tuning={LIMIT_SETTING: 4})
    request = raw_request("POST", "/webhooks/default", b'{"id": "a", "event": "received"}', f"Bearer {SECRET}".encode())

    def deliver(_: int) -> bytes:
        with client(receiver) as connection:
            connection.sendall(request)
            return connection.recv(65536)[:13]

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(deliver, range(128))) == {b"HTTP/1.1 200 "}


# ---- the pages of monitors ----


def test_readiness_is_probed_once_in_some_seconds(receiver: Receiver) -> None:
    """However often somebody asks, the inbox's file is not written; a write that failed is told as often."""
    receiver.until(lambda: receiver.monitor("/ready").is_success, "the first probe")
    before = written(receiver)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        assert receiver.monitor("/ready").is_success
        assert receiver.monitor("/metrics").is_success
    assert written(receiver) - before < 100_000


def written(receiver: Receiver) -> int:
    """Bytes that it has had written to a disk."""
    io = Path(f"/proc/{receiver.process.pid}/io").read_text()
    (line,) = [line for line in io.splitlines() if line.startswith("write_bytes:")]
    return int(line.split()[1])


def test_over_https_the_pages_of_monitors_have_their_own_address(make: Make, certificate: Path) -> None:
    """Strangers who post webhooks reach /health alone; monitors read the others by plain HTTP, on loopback."""
    receiver = make(options=("--tls-certificate", str(certificate), "--tls-key", str(certificate)))
    receiver.process.start()
    for path in ("/ready", "/metrics"):
        answer = receiver.get(path)
        assert answer.status_code == 404
        assert "--monitoring-address" in answer.json()["message"]
        assert receiver.monitor(path).status_code == 200
        assert receiver.get(f"{path}/").status_code == 401
    for url in (receiver.get, receiver.monitor):
        assert url("/health").json() == {"status": "ok"}
    assert receiver.monitor("/webhooks/default").status_code == 404
    assert f"Listening on {receiver.monitoring_url}/ready and /metrics" in receiver.log
    assert receiver.process.stop() == 0


def test_an_address_for_monitors_is_taken_over_plain_http_too(make: Make) -> None:
    """Without the option the pages stay where webhooks go: that is what those behind a proxy have."""
    receiver = make(options=("--monitoring-address", "127.0.0.1:0"))
    receiver.process.is_ready = lambda: "/ready and /metrics" in receiver.log
    receiver.process.start()
    assert receiver.get("/ready").status_code == 404
    address = re.search(r"Listening on (http://127\.0\.0\.1:\d+)/ready", receiver.log)
    assert address is not None


def test_an_address_for_monitors_that_is_taken_is_told(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        receiver = make(options=("--monitoring-address", f"127.0.0.1:{port}"))
        with pytest.raises(NotReady, match=rf"exit status 1(.|\n)*Cannot listen on 127.0.0.1 port {port}"):
            receiver.process.start()
    assert "Choose another --monitoring-address" in receiver.log
