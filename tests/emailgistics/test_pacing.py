"""Every call waits for its turn, and only the pacer decides when that is."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from attachments.emailgistics import Aborted, ConnectionFailed, EmailgisticsClient, NotFound, RateLimited, ServerError

from .raw_server import RawServer, head, ok, sent


class Diary:
    """A pacer that writes down what happens."""

    def __init__(self, wait: float = 0) -> None:
        self.entries: list[str] = []
        self._wait = wait

    @contextmanager
    def call(self) -> Iterator[None]:
        time.sleep(self._wait)
        self.entries.append("turn")
        try:
            yield
        finally:
            self.entries.append("done")

    def rate_limited(self) -> None:
        self.entries.append("limited")


def answer(status: str) -> bytes:
    return head("Content-Length: 0", status=status)


def test_each_call_takes_one_turn(vendor: RawServer) -> None:
    """Listing and downloading alike; the turn ends when the answer begins, not when the body ends."""
    diary = Diary()
    vendor.answer(sent(ok(b'{"attachments": []}'), keep=True), sent(ok(b"hello"), keep=True))
    with EmailgisticsClient(vendor.url, "key", pacer=diary) as client:
        client.list_attachments("m")
        with client.download("m", "a") as download:
            assert diary.entries == ["turn", "done"] * 2
            list(download)
    assert diary.entries == ["turn", "done"] * 2


@pytest.mark.parametrize(
    ("status", "error", "limited"),
    [
        ("429 Too Many Requests", RateLimited, ["limited"]),
        ("404 Not Found", NotFound, []),
        ("503 Busy", ServerError, []),
    ],
)
def test_a_429_is_told(vendor: RawServer, status: str, error: type[Exception], limited: list[str]) -> None:
    """The pacer learns of a 429, and of nothing else, before its turn ends: the next caller must know of it."""
    diary = Diary()
    vendor.answer(sent(answer(status)))
    with EmailgisticsClient(vendor.url, "key", pacer=diary) as client, pytest.raises(error):
        client.list_attachments("m")
    assert diary.entries == ["turn", *limited, "done"]


def test_a_failed_call_gives_its_turn_back() -> None:
    """Leaving the context is certain."""
    diary = Diary()
    with RawServer() as closed:
        url = closed.url
    with EmailgisticsClient(url, "key", pacer=diary) as client, pytest.raises(ConnectionFailed):
        client.list_attachments("m")
    assert diary.entries == ["turn", "done"]


def test_waiting_for_a_turn_is_not_the_vendors_time(vendor: RawServer) -> None:
    """Deadlines start with the turn, which may take a minute to come."""
    vendor.answer(sent(ok(b'{"attachments": []}'), keep=True), sent(ok(b"hello"), keep=True))
    with EmailgisticsClient(
        vendor.url, "key", pacer=Diary(0.4), list_timeout=0.3, download_timeout=0.3, download_deadline=0.3
    ) as client:
        client.list_attachments("m")
        with client.download("m", "a") as download:
            assert b"".join(download) == b"hello"


class Closed:
    """A pacer that has no turns to give."""

    def call(self) -> "Closed":
        return self

    def __enter__(self) -> None:
        raise TimeoutError("no turn within a minute")

    def __exit__(self, *_: object) -> None:
        raise AssertionError

    def rate_limited(self) -> None:
        raise AssertionError


def test_a_pacers_own_errors_pass(vendor: RawServer) -> None:
    """They are not taken for the vendor's, though both be a TimeoutError; nothing is sent."""
    with (
        EmailgisticsClient(vendor.url, "key", pacer=Closed()) as client,
        pytest.raises(TimeoutError, match="no turn"),
    ):
        client.list_attachments("m")
    assert vendor.heads == []


def test_a_call_that_is_aborted_while_it_waits_is_not_sent(vendor: RawServer) -> None:
    """A turn that comes too late is not used, on a new connection or an open one."""

    class Aborting(Diary):
        @contextmanager
        def call(self) -> Iterator[None]:
            if vendor.heads or self.entries:
                client.abort()
            yield

    diary = Aborting()
    vendor.answer(sent(ok(b'{"attachments": []}'), keep=True))
    with EmailgisticsClient(vendor.url, "key", pacer=diary) as client:
        client.list_attachments("m")
        with pytest.raises(Aborted):
            client.list_attachments("m")
    diary.entries.append("already aborting")
    with EmailgisticsClient(vendor.url, "key", pacer=diary) as client, pytest.raises(Aborted):
        client.list_attachments("m")
    assert len(vendor.heads) == vendor.connections == 1


def test_only_the_opening_holds_a_turn(vendor: RawServer) -> None:
    """While a body is being read, others get their turn."""
    one_at_a_time = threading.Semaphore(1)

    class Strict(Diary):
        @contextmanager
        def call(self) -> Iterator[None]:
            assert one_at_a_time.acquire(timeout=1)
            try:
                yield
            finally:
                one_at_a_time.release()

    vendor.answer(sent(ok(b"hello"), keep=True))
    with (
        EmailgisticsClient(vendor.url, "key", pacer=Strict()) as client,
        client.download("m", "a") as one,
        client.download("m", "b") as two,
    ):
        assert b"".join(one) == b"".join(two) == b"hello"
