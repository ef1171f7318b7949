"""A call ends at its deadline, whatever the other side does, and when it is aborted."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpcore
import httpx
import pytest

from attachments.emailgistics import (
    Aborted,
    ConnectionFailed,
    DeadlineExceeded,
    EmailgisticsClient,
    TimedOut,
    Truncated,
)
from attachments.emailgistics.deadline import Call, DeadlineStream

from .raw_server import SOON, RawServer, head, ok, sent

HALF = head("Content-Length: 1000000") + b"x" * 1000
BARE = head("Connection: close") + b"x" * 1000


def timed_out(vendor: RawServer, error: type[Exception], **limits: float) -> float:
    """Download until this error comes; return the seconds that it took."""
    with EmailgisticsClient(vendor.url, "key", **limits) as client:
        started = time.monotonic()
        with pytest.raises(error), client.download("m", "a", listed_size=1000) as download:
            list(download)
        return time.monotonic() - started


@pytest.fixture(params=["plain", "tls"])
def either(request: pytest.FixtureRequest) -> RawServer:
    """The vendor without and with TLS."""
    server: RawServer = request.getfixturevalue("vendor" if request.param == "plain" else "tls_vendor")
    return server


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\n", HALF, BARE])
def test_a_stall_ends_at_the_deadline(either: RawServer, beginning: bytes) -> None:
    """Even with a longer read time-out, before the headers as after them, and framed or not."""
    either.answer(either.stalled(beginning))
    assert 0.25 <= timed_out(either, DeadlineExceeded, download_timeout=60, download_deadline=0.3) < SOON


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        pytest.param(HALF, b"x", id="body"),
        pytest.param(BARE, b"x", id="body without framing"),
        pytest.param(head("Transfer-Encoding: chunked"), b"1\r\nx\r\n", id="chunks"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"x", id="headers"),
    ],
)
def test_a_drip_ends_at_the_deadline(either: RawServer, beginning: bytes, drop: bytes) -> None:
    """Bytes that keep coming satisfy every read, and do not keep the call alive."""
    either.answer(either.dripping(beginning, drop, 0.02))
    assert 0.25 <= timed_out(either, DeadlineExceeded, download_timeout=60, download_deadline=0.3) < SOON


@pytest.mark.parametrize("beginning", [b"", HALF])
def test_a_stall_ends_at_the_read_timeout(either: RawServer, beginning: bytes) -> None:
    """A single wait is limited, too, and says so."""
    either.answer(either.stalled(beginning))
    assert 0.15 <= timed_out(either, TimedOut, download_timeout=0.2, download_deadline=60) < SOON


def test_a_listing_ends_at_its_timeout(vendor: RawServer) -> None:
    """The listing's time-out is for all of it, drip or stall."""
    with EmailgisticsClient(vendor.url, "key", list_timeout=0.3) as client:
        for script in (vendor.stalled(), vendor.dripping(head("Content-Length: 999"), b" ", 0.02)):
            vendor.answer(script)
            started = time.monotonic()
            with pytest.raises(TimedOut):
                client.list_attachments("message")
            assert 0.25 <= time.monotonic() - started < SOON


def test_the_deadline_holds_on_a_reused_connection(vendor: RawServer) -> None:
    """A connection that is used again has the deadline of its new call, not of the one before."""
    vendor.answer(sent(ok(b"one"), keep=True), sent(ok(b"two"), keep=True), vendor.stalled())
    with EmailgisticsClient(vendor.url, "key", download_deadline=0.5) as client:
        for body in (b"one", b"two"):
            with client.download("m", "a") as download:
                assert b"".join(download) == body
            time.sleep(0.3)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded), client.download("m", "a"):
            pass
        assert time.monotonic() - started >= 0.45
    assert vendor.connections == 1


def test_a_body_that_was_all_there_in_time_is_complete(vendor: RawServer) -> None:
    """A consumer that takes its time over the last bytes does not lose them."""
    vendor.answer(sent(ok(b"hello")))
    with (
        EmailgisticsClient(vendor.url, "key", download_deadline=0.2) as client,
        client.download("m", "a") as download,
    ):
        pieces = []
        for piece in download:
            pieces.append(piece)
            time.sleep(0.3)
    assert b"".join(pieces) == b"hello"


def test_no_read_begins_after_the_deadline(vendor: RawServer) -> None:
    """A consumer that was slow, with bytes still to come, gets the deadline's error and no other."""
    vendor.answer(vendor.stalled(HALF))
    with (
        EmailgisticsClient(vendor.url, "key", download_deadline=0.2) as client,
        client.download("m", "a") as download,
    ):
        pieces = iter(download)
        next(pieces)
        time.sleep(0.3)
        with pytest.raises(DeadlineExceeded):
            list(pieces)


def test_a_connection_opened_after_an_abort_is_shut_down() -> None:
    """An abort while the connection is being made is not forgotten."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call = Call(60)
        call.abort()
        DeadlineStream(Wire(ours), call)
        assert theirs.recv(1) == b""


class Wire(httpcore.MockStream):
    """A stream with a real socket."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__([])
        self._connected = connected

    def get_extra_info(self, info: str) -> socket.socket:
        return self._connected


def test_connecting_has_less_time_than_reading() -> None:
    """A host that does not answer holds nobody up for as long as a large file may."""
    limits: list[dict[str, float]] = []

    def note(request: httpx.Request) -> httpx.Response:
        limits.append(request.extensions["timeout"])
        return httpx.Response(200, json={"attachments": []})

    client = EmailgisticsClient("https://vendor.test", "key", transport=httpx.MockTransport(note), list_timeout=5)
    client.list_attachments("m")
    with client.download("m", "a"):
        pass
    assert [(each["connect"], each["read"]) for each in limits] == [(5, 5), (30, 300)]


def test_a_refused_connection_is_no_timeout() -> None:
    """An error that comes at once is itself, even when the deadline is shorter than the time-out."""
    with RawServer() as closed:
        url = closed.url
    with EmailgisticsClient(url, "key", download_timeout=60, download_deadline=20) as client:
        with pytest.raises(ConnectionFailed, match="ECONNREFUSED"), client.download("m", "a"):
            pass
        with pytest.raises(ConnectionFailed, match="ECONNREFUSED"):
            client.list_attachments("m")


def test_a_cut_in_time_is_a_cut(vendor: RawServer) -> None:
    """A body that is cut before the deadline is `Truncated`, not late."""
    vendor.answer(sent(HALF))
    assert timed_out(vendor, Truncated, download_timeout=60, download_deadline=60) < SOON


@pytest.mark.parametrize("beginning", [HALF, BARE, head("Transfer-Encoding: chunked") + b"1\r\nx\r\n"])
def test_abort_ends_a_download(either: RawServer, beginning: bytes) -> None:
    """Another thread can end a download that waits for bytes; the reader gets `Aborted` at once."""
    either.answer(either.stalled(beginning))
    with EmailgisticsClient(either.url, "key") as client:
        started = time.monotonic()
        with client.download("m", "a", listed_size=10**9) as download:
            threading.Timer(0.2, download.abort).start()
            with pytest.raises(Aborted) as raised:
                list(download)
        assert time.monotonic() - started < SOON
    assert not raised.value.retryable


@pytest.mark.parametrize("beginning", [b"", HALF])
def test_abort_of_the_client_ends_all_its_calls(either: RawServer, beginning: bytes) -> None:
    """Also those whose answer has not begun; the client can be used again."""
    either.answer(either.stalled(beginning))
    with EmailgisticsClient(either.url, "key") as client:

        def fetch() -> type[BaseException]:
            with pytest.raises(Aborted) as raised, client.download("m", "a") as download:
                list(download)
            return raised.type

        with ThreadPoolExecutor(3) as threads:
            downloads = [threads.submit(fetch) for _ in range(3)]
            for _ in downloads:
                assert either.asked.acquire(timeout=5)
            time.sleep(0.1)
            client.abort()
            assert [each.result(5) for each in downloads] == [Aborted] * 3
        either.answer(sent(ok(b"hello")))
        with client.download("m", "a") as download:
            assert b"".join(download) == b"hello"


def test_abort_after_the_end_harms_no_other_call(vendor: RawServer) -> None:
    """A download that is over has no connection any more: aborting it leaves the next user's alone."""
    aborted = threading.Event()

    def in_two_parts(connection: socket.socket) -> bool:
        connection.sendall(head("Content-Length: 10") + b"hello")
        aborted.wait(5)
        connection.sendall(b"world")
        return False

    vendor.answer(sent(ok(b"hello"), keep=True), in_two_parts)
    with EmailgisticsClient(vendor.url, "key") as client:
        with client.download("m", "a") as first:
            list(first)
        with client.download("m", "a") as second:
            first.abort()
            aborted.set()
            assert b"".join(second) == b"helloworld"
    assert vendor.connections == 1


def test_abort_before_the_first_piece(vendor: RawServer) -> None:
    """Aborted before it was read: the iteration gives nothing."""
    vendor.answer(sent(ok(b"hello")))
    with EmailgisticsClient(vendor.url, "key") as client, client.download("m", "a") as download:
        download.abort()
        with pytest.raises(Aborted):
            list(download)
