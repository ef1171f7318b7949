"""A body that is read past httpcore, for its announced length, is held to all that a small one is held to.

The answers announce `LARGE` bytes, so none of this would be met by a smaller length.
"""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from attachments.emailgistics import (
    Aborted,
    BadAnswer,
    DeadlineExceeded,
    EmailgisticsClient,
    EmailgisticsError,
    TimedOut,
    Truncated,
)
from attachments.emailgistics.deadline import READ_BYTES
from attachments.emailgistics.transport import LARGE_BYTES, PIECE_BYTES

from .raw_server import SOON, RawServer, Script, head, ok, reset, sent

BLOCK = bytes(range(251)) * 4177
LARGE = LARGE_BYTES + 12_345
LARGE_HEAD = head(f"Content-Length: {LARGE}")
BEGUN = LARGE_HEAD + b"x" * 1000


@pytest.fixture(params=["plain", "tls"])
def either(request: pytest.FixtureRequest) -> RawServer:
    """The vendor without and with TLS."""
    server: RawServer = request.getfixturevalue("vendor" if request.param == "plain" else "tls_vendor")
    return server


def blocks(size: int) -> Iterator[bytes]:
    """So many bytes, whose order shows."""
    while size:
        block = BLOCK[:size]
        size -= len(block)
        yield block


def whole(size: int, *, first: int = 0, more: bytes = b"") -> Script:
    """A large body, the first bytes of it together with the head, the rest when the client has had time to read."""

    def script(connection: socket.socket) -> bool:
        body = blocks(size)
        beginning = b"".join(next(body) for _ in range(-(-first // len(BLOCK))))
        connection.sendall(head(f"Content-Length: {size}") + beginning[:first])
        if first:
            time.sleep(0.05)
        connection.sendall(beginning[first:])
        for block in body:
            connection.sendall(block)
        connection.sendall(more)
        return True

    return script


def fetch(client: EmailgisticsClient) -> tuple[int, str]:
    """Size and SHA-256 of what comes."""
    digest, size = hashlib.sha256(), 0
    with client.download("message", "attachment") as download:
        for piece in download:
            assert 0 < len(piece) <= PIECE_BYTES
            size += len(piece)
            digest.update(piece)
    return size, digest.hexdigest()


def expected(size: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    for block in blocks(size):
        digest.update(block)
    return size, digest.hexdigest()


@pytest.mark.parametrize("first", [0, 1, READ_BYTES - len(LARGE_HEAD), 3 * READ_BYTES])
def test_every_byte_comes_once(vendor: RawServer, first: int) -> None:
    """However many of them came together with the headers, and were read with these."""
    vendor.answer(whole(LARGE, first=first))
    with EmailgisticsClient(vendor.url, "key") as client:
        assert fetch(client) == expected(LARGE)


def test_it_is_the_same_behind_tls(tls_vendor: RawServer) -> None:
    """Where bytes come in records of 16 KiB."""
    tls_vendor.answer(whole(LARGE))
    with EmailgisticsClient(tls_vendor.url, "key") as client:
        assert fetch(client) == expected(LARGE)


def test_the_limit_is_no_gap(vendor: RawServer) -> None:
    """A byte less is read the other way, which keeps its connection; from the limit on, each has its own."""
    vendor.answer(whole(LARGE_BYTES - 1), whole(LARGE_BYTES), whole(LARGE_BYTES - 1))
    with EmailgisticsClient(vendor.url, "key") as client:
        assert fetch(client) == expected(LARGE_BYTES - 1)
        assert vendor.connections == 1
        assert fetch(client) == expected(LARGE_BYTES)
        assert vendor.connections == 1
        assert fetch(client) == expected(LARGE_BYTES - 1)
        assert vendor.connections == 2


def test_more_than_the_length_is_not_the_bodys(vendor: RawServer) -> None:
    """What follows the body is left unread, and does not become the next answer either."""
    vendor.answer(whole(LARGE, more=ok(b"forged")), sent(ok(b"hello")))
    with EmailgisticsClient(vendor.url, "key") as client:
        assert fetch(client) == expected(LARGE)
        assert fetch(client) == (5, hashlib.sha256(b"hello").hexdigest())
    assert vendor.connections == 2


CUT = [LARGE_HEAD, BEGUN, LARGE_HEAD + b"x" * 5_000_000]


@pytest.mark.parametrize("came", CUT)
def test_a_cut_is_noticed(either: RawServer, came: bytes) -> None:
    """Before the first byte, after what came with the headers, and later; TLS ends without saying so."""
    either.answer(sent(came))
    with EmailgisticsClient(either.url, "key") as client, pytest.raises(Truncated):
        fetch(client)


@pytest.mark.parametrize("came", CUT)
def test_a_reset_is_a_cut(vendor: RawServer, came: bytes) -> None:
    """A connection that breaks with an RST proves no more."""
    vendor.answer(reset(came))
    with EmailgisticsClient(vendor.url, "key") as client, pytest.raises(Truncated):
        fetch(client)


def test_the_last_byte_missing_is_a_cut(vendor: RawServer) -> None:
    """All but one are not all."""

    def script(connection: socket.socket) -> bool:
        connection.sendall(LARGE_HEAD)
        for block in blocks(LARGE - 1):
            connection.sendall(block)
        return False

    vendor.answer(script)
    with EmailgisticsClient(vendor.url, "key") as client, pytest.raises(Truncated, match=f"{LARGE - 1} of {LARGE}"):
        fetch(client)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        pytest.param({"download_timeout": 60, "download_deadline": 0.3}, DeadlineExceeded, id="deadline"),
        pytest.param({"download_timeout": 0.3, "download_deadline": 60}, TimedOut, id="time-out of a read"),
    ],
)
def test_a_stall_ends_in_time(either: RawServer, limits: dict[str, float], error: type[EmailgisticsError]) -> None:
    """By the deadline as by the read's own time-out."""
    either.answer(either.stalled(BEGUN))
    with EmailgisticsClient(either.url, "key", **limits) as client:
        started = time.monotonic()
        with pytest.raises(error):
            fetch(client)
        assert 0.25 <= time.monotonic() - started < SOON


def test_a_drip_ends_at_the_deadline(either: RawServer) -> None:
    """Bytes that keep coming do not keep it alive."""
    either.answer(either.dripping(BEGUN, b"x", 0.02))
    with EmailgisticsClient(either.url, "key", download_timeout=60, download_deadline=0.3) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            fetch(client)
        assert 0.25 <= time.monotonic() - started < SOON


def test_no_read_begins_after_the_deadline(vendor: RawServer) -> None:
    """A consumer that was slow gets the deadline's error, not the rest."""
    vendor.answer(vendor.stalled(LARGE_HEAD + b"x" * 5_000_000))
    with (
        EmailgisticsClient(vendor.url, "key", download_deadline=0.2) as client,
        client.download("m", "a") as download,
    ):
        pieces = iter(download)
        next(pieces)
        time.sleep(0.3)
        with pytest.raises(DeadlineExceeded):
            next(pieces)


@pytest.mark.parametrize("whose", ["the download's", "the client's"])
def test_it_is_aborted_from_another_thread(either: RawServer, whose: str) -> None:
    """At once, while it waits for bytes; the client can be used again."""
    either.answer(either.stalled(BEGUN))
    with EmailgisticsClient(either.url, "key") as client:
        started = time.monotonic()
        with client.download("m", "a") as download:
            threading.Timer(0.2, client.abort if whose == "the client's" else download.abort).start()
            with pytest.raises(Aborted):
                list(download)
        assert time.monotonic() - started < SOON
        either.answer(sent(ok(b"hello")))
        assert fetch(client)[0] == 5


def test_stopping_early_is_silent(vendor: RawServer) -> None:
    """A consumer that has seen enough leaves without an error, and what it left unread is nobody's answer."""
    vendor.answer(whole(LARGE), sent(ok(b"hello")))
    with EmailgisticsClient(vendor.url, "key") as client:
        with client.download("m", "a") as download:
            pieces = iter(download)
            next(pieces)
            next(pieces)
        assert fetch(client) == (5, hashlib.sha256(b"hello").hexdigest())


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial Content"])
def test_another_success_is_refused(vendor: RawServer, status: str) -> None:
    """Whatever length it announces, and whether a body may follow or not."""
    vendor.answer(sent(head(f"Content-Length: {LARGE}", status=status)))
    with EmailgisticsClient(vendor.url, "key") as client, pytest.raises(BadAnswer):
        fetch(client)
