"""A body is complete only when it is proven to be, by each way that HTTP has of ending one."""

import pytest

from attachments.emailgistics import (
    BadAnswer,
    ConnectionFailed,
    Download,
    EmailgisticsClient,
    EmailgisticsError,
    Truncated,
)

from .raw_server import RawServer, head, ok, reset, sent

CHUNKED = head("Transfer-Encoding: chunked")
BARE = head("Connection: close")


def fetch(vendor: RawServer, *, listed_size: int | None = None) -> bytes:
    with (
        EmailgisticsClient(vendor.url, "key", list_timeout=5, download_timeout=5) as client,
        client.download("message", "attachment", listed_size=listed_size) as download,
    ):
        return b"".join(download)


@pytest.mark.parametrize(
    ("answer", "listed_size", "body"),
    [
        pytest.param(ok(b"hello"), None, b"hello", id="all of the length"),
        pytest.param(ok(b"hello"), 99, b"hello", id="the listed size is no length"),
        pytest.param(ok(b""), 99, b"", id="empty, with its length"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", None, b"hello", id="the last chunk came"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", 99, b"hello", id="chunks, not the listed size"),
        pytest.param(CHUNKED + b"0\r\nTrailer: x\r\n\r\n", None, b"", id="no chunk but the last"),
        pytest.param(
            head("Transfer-Encoding: chunked", "Content-Length: 99") + b"5\r\nhello\r\n0\r\n\r\n",
            None,
            b"hello",
            id="chunks override a length",
        ),
        pytest.param(BARE + b"hello", 5, b"hello", id="no framing, but as many as listed"),
        pytest.param(BARE, 0, b"", id="no framing, none listed and none came"),
        pytest.param(head("Content-Length: 5", "Content-Length: 5") + b"hello", None, b"hello", id="one length twice"),
        pytest.param(head("Content-Length: 5, 5") + b"hello", None, b"hello", id="one length twice, in one"),
    ],
)
def test_a_proven_body_is_given(vendor: RawServer, answer: bytes, listed_size: int | None, body: bytes) -> None:
    """All the announced bytes, the last chunk, or, with neither, just the listed size: that is proof."""
    vendor.answer(sent(answer))
    assert fetch(vendor, listed_size=listed_size) == body


@pytest.mark.parametrize("hang_up", [sent, reset])
@pytest.mark.parametrize(
    ("answer", "listed_size"),
    [
        pytest.param(head("Content-Length: 6") + b"hello", None, id="a byte short of the length"),
        pytest.param(head("Content-Length: 6") + b"hello", 5, id="short, though the listed size fits"),
        pytest.param(head("Content-Length: 6"), None, id="none of the length"),
        pytest.param(CHUNKED + b"5\r\nhel", None, id="cut in a chunk"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", None, id="cut between chunks"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", 5, id="cut between chunks, though the listed size fits"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n", None, id="cut in the last chunk"),
        pytest.param(BARE + b"hello", None, id="no framing, nothing listed"),
        pytest.param(BARE + b"hello", 6, id="no framing, fewer than listed"),
        pytest.param(BARE + b"hello", 4, id="no framing, more than listed"),
    ],
)
def test_a_body_without_proof_is_refused(
    vendor: RawServer, answer: bytes, listed_size: int | None, hang_up: object
) -> None:
    """Whatever is cut, or might be, raises `Truncated` in the iteration and never ends it normally."""
    vendor.answer(hang_up(answer))  # type: ignore[operator]
    with pytest.raises(Truncated) as raised:
        fetch(vendor, listed_size=listed_size)
    assert raised.value.retryable
    assert raised.value.outcome_code == "truncated"


def test_what_came_before_the_cut_is_given_first(vendor: RawServer) -> None:
    """The consumer gets the bytes that came, and the error in place of the end."""
    vendor.answer(sent(head("Content-Length: 6") + b"hello"))
    came = []
    with (
        EmailgisticsClient(vendor.url, "key") as client,
        client.download("message", "attachment") as download,
        pytest.raises(Truncated),
    ):
        came.extend(download)
    assert b"".join(came) == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(head("Content-Length: 5", "Content-Length: 6") + b"hello", id="two lengths"),
        pytest.param(head("Content-Length: 5, 6") + b"hello", id="two lengths in one"),
        pytest.param(head("Content-Length: five") + b"hello", id="a word"),
        pytest.param(head("Content-Length: -5") + b"hello", id="negative"),
        pytest.param(head("Content-Length: +5") + b"hello", id="signed"),
        pytest.param(head("Content-Length: ") + b"hello", id="empty"),
        pytest.param(head("Transfer-Encoding: gzip, chunked") + b"5\r\nhello\r\n0\r\n\r\n", id="other coding"),
        pytest.param(CHUNKED + b"xyz\r\nhello\r\n0\r\n\r\n", id="a chunk without a size"),
        pytest.param(head("Content-Length: 5", "Content-Encoding: gzip") + b"hello", id="encoded"),
        pytest.param(head("Content-Length: 5", status="206 Partial Content") + b"hello", id="only a part"),
        pytest.param(head(status="204 No Content"), id="no content"),
        pytest.param(b"220 smtp.example.com ESMTP\r\n\r\n", id="not HTTP"),
    ],
)
def test_nonsense_is_a_bad_answer(vendor: RawServer, answer: bytes) -> None:
    """Framing that breaks the rules, and a success other than the documented one, are `BadAnswer`."""
    vendor.answer(sent(answer))
    with pytest.raises(BadAnswer) as raised:
        fetch(vendor, listed_size=5)
    assert raised.value.retryable


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 20", head("Content-Length: 5")[:-2]])
def test_no_answer_is_a_failed_connection(vendor: RawServer, answer: bytes) -> None:
    """A connection that ends before the headers do has failed."""
    vendor.answer(sent(answer))
    with pytest.raises(ConnectionFailed):
        fetch(vendor)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ok(b"hello"), None),
        (head("Content-Length: 6") + b"hello", Truncated),
        (BARE + b"hello", Truncated),
        (CHUNKED + b"5\r\nhello\r\n", Truncated),
    ],
)
def test_it_holds_behind_tls(tls_vendor: RawServer, answer: bytes, expected: type[EmailgisticsError]) -> None:
    """A TLS connection that ends without saying so proves no more than one without TLS."""
    tls_vendor.answer(sent(answer))
    if expected is None:
        assert fetch(tls_vendor) == b"hello"
    else:
        with pytest.raises(expected):
            fetch(tls_vendor)


def test_stopping_early_is_silent(vendor: RawServer) -> None:
    """A consumer that has seen enough leaves without an error, and the client goes on working."""
    vendor.answer(vendor.stalled(head("Content-Length: 1000000") + b"x" * 1000))
    with EmailgisticsClient(vendor.url, "key") as client:
        with client.download("message", "attachment") as download:
            assert next(iter(download))
        vendor.answer(sent(ok(b"hello")))
        with client.download("message", "attachment") as download:
            assert b"".join(download) == b"hello"


def test_the_consumers_own_errors_pass(vendor: RawServer) -> None:
    """What the consumer raises (a full disk, say) is not taken for the vendor's fault."""
    vendor.answer(sent(ok(b"hello")))

    def keep(download: Download) -> None:
        for _ in download:
            raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space"),
        EmailgisticsClient(vendor.url, "key") as client,
        client.download("message", "attachment") as download,
    ):
        keep(download)


def test_a_second_iteration_gives_no_second_body(vendor: RawServer) -> None:
    """The body can be read once; reading again raises instead of giving an empty file."""
    vendor.answer(sent(ok(b"hello")))
    with EmailgisticsClient(vendor.url, "key") as client, client.download("m", "a") as download:
        assert b"".join(download) == b"hello"
        with pytest.raises(RuntimeError, match="read only once"):
            b"".join(download)


def test_a_large_body_comes_in_large_pieces(vendor: RawServer) -> None:
    """Bytes come as they arrive, none lost or doubled, and no piece holds the whole."""
    body = bytes(range(256)) * 40_000
    vendor.answer(sent(ok(body)))
    with EmailgisticsClient(vendor.url, "key") as client, client.download("m", "a") as download:
        pieces = list(download)
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= 1024 * 1024


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(head("Content-Length: 19") + b'{"attachments": []}', id="length"),
        pytest.param(CHUNKED + b'13\r\n{"attachments": []}\r\n0\r\n\r\n', id="chunks"),
        pytest.param(BARE + b'{"attachments": []}', id="complete JSON is its own proof"),
    ],
)
def test_a_complete_listing_is_read(vendor: RawServer, answer: bytes) -> None:
    """A listing may be framed in any way."""
    vendor.answer(sent(answer))
    with EmailgisticsClient(vendor.url, "key") as client:
        assert client.list_attachments("message") == ()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(head("Content-Length: 99") + b'{"attachments": []}', Truncated, id="length"),
        pytest.param(CHUNKED + b'13\r\n{"attachments": []}\r\n', Truncated, id="chunks"),
        pytest.param(BARE + b'{"attachments": [', BadAnswer, id="no framing"),
    ],
)
def test_a_cut_listing_is_refused(vendor: RawServer, answer: bytes, expected: type[EmailgisticsError]) -> None:
    """A listing that is cut is never taken for "no attachments"."""
    vendor.answer(sent(answer))
    with EmailgisticsClient(vendor.url, "key") as client, pytest.raises(expected):
        client.list_attachments("message")
