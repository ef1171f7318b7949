"""What the client sends, what it makes of the answers, and what it refuses to do."""

import contextlib
import json
import logging
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import respx

from attachments.emailgistics import (
    Attachment,
    BadAnswer,
    BadRequest,
    EmailgisticsClient,
    EmailgisticsError,
    Forbidden,
    InvalidArgument,
    InvalidKey,
    NotFound,
    RateLimited,
    ServerError,
    TimedOut,
    Truncated,
    UnexpectedStatus,
)
from attachments.emailgistics import client as client_module
from attachments.emailgistics.status_errors import ERROR_BODY_BYTES

from .raw_server import RawServer, head, ok, sent

BASE = "https://c1.emailgistics.com/api/v1"
KEY = "k3y-CANARY"
MESSAGE = "msg-CANARY"
ATTACHMENT = "att-CANARY"
LISTING = f"{BASE}/messages/{MESSAGE}/attachments"
DOWNLOAD = f"{BASE}/messages/{MESSAGE}/attachments/{ATTACHMENT}/download"


def error_body(code: object = "404", message: object = "CANARY Jane Doe.pdf") -> dict[str, object]:
    return {"_links": {}, "status": "error", "error": {"code": code, "message": message}}


@pytest.fixture
def client() -> EmailgisticsClient:
    return EmailgisticsClient(BASE, KEY)


@respx.mock
def test_a_listing(client: EmailgisticsClient) -> None:
    """The attachments come in the vendor's order; the key and nothing else identifies us."""
    route = respx.get(LISTING).respond(
        json={"attachments": [{"id": "b", "name": "b.pdf"}, {"id": "a", "attachmentType": "itemAttachment"}]}
    )
    assert client.list_attachments(MESSAGE) == (
        Attachment(id="b", name="b.pdf"),
        Attachment(id="a", kind="itemAttachment"),
    )
    headers = route.calls.last.request.headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["accept-encoding"] == "identity"


@respx.mock
def test_a_download(client: EmailgisticsClient) -> None:
    """Name, type and length come from the headers; the bytes follow."""
    respx.get(DOWNLOAD).respond(
        content=b"hello",
        headers={"Content-Disposition": "attachment; filename*=UTF-8''%E2%82%AC.pdf", "Content-Type": "a/b; c=d"},
    )
    with client.download(MESSAGE, ATTACHMENT) as download:
        assert download.file_name == "€.pdf"
        assert download.content_type == "a/b; c=d"
        assert download.length == 5
        assert b"".join(download) == b"hello"
        assert "€" not in repr(download)


@respx.mock
def test_a_download_without_headers(client: EmailgisticsClient) -> None:
    """What the answer does not say is None."""
    respx.get(DOWNLOAD).respond(stream=[b"hel", b"lo"], headers={"Transfer-Encoding": "chunked"})
    with client.download(MESSAGE, ATTACHMENT) as download:
        assert (download.file_name, download.content_type, download.length) == (None, None, None)
        assert b"".join(download) == b"hello"


def test_a_name_in_raw_utf8(vendor: RawServer) -> None:
    """A name sent as plain UTF-8 comes out right, also when another header is in Latin-1."""
    for extra in ("X-Other: plain", "X-Other: na\xefve"):
        answer = ok(b"", extra).replace(
            b"\r\n\r\n", '\r\nContent-Disposition: attachment; filename="日本.pdf"\r\n\r\n'.encode()
        )
        vendor.answer(sent(answer))
        with EmailgisticsClient(vendor.url, KEY) as client, client.download("m", "a") as download:
            assert download.file_name == "日本.pdf"


STATUSES = [
    (400, BadRequest, False),
    (401, InvalidKey, False),
    (403, Forbidden, False),
    (404, NotFound, False),
    (402, UnexpectedStatus, False),
    (407, UnexpectedStatus, False),
    (410, UnexpectedStatus, False),
    (418, UnexpectedStatus, False),
    (429, RateLimited, True),
    (500, ServerError, True),
    (502, ServerError, True),
    (503, ServerError, True),
    (504, ServerError, True),
    (599, ServerError, True),
    (201, BadAnswer, True),
    (204, BadAnswer, True),
    (206, BadAnswer, True),
    (300, UnexpectedStatus, False),
    (301, UnexpectedStatus, False),
    (304, UnexpectedStatus, False),
]


@respx.mock
@pytest.mark.parametrize(("status", "error", "retryable"), STATUSES)
def test_what_each_status_means(
    client: EmailgisticsClient, status: int, error: type[EmailgisticsError], retryable: bool
) -> None:
    """Each status is its own error, with the vendor's code, and its text in the attribute alone."""
    respx.get(LISTING).respond(status, json=error_body("Some.Code"))
    respx.get(DOWNLOAD).respond(status, json=error_body("Some.Code"))
    with pytest.raises(error) as listing:
        client.list_attachments(MESSAGE)
    with pytest.raises(error) as downloading, client.download(MESSAGE, ATTACHMENT):
        pass
    for raised in (listing, downloading):
        assert raised.value.status == status
        assert raised.value.code == "Some.Code"
        assert raised.value.vendor_message == "CANARY Jane Doe.pdf"
        assert raised.value.retryable is retryable
        shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
        for secret in ("CANARY", MESSAGE, ATTACHMENT, "emailgistics.com"):
            assert secret not in shown
    assert str(listing.value).startswith("Listing the attachments: ")


@respx.mock
@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", None, None),
        (b"<html><body>502 Bad Gateway</body></html>", None, None),
        (b"\xff\xfe\x00", None, None),
        (b"null", None, None),
        (b"[]", None, None),
        (b'{"error": null}', None, None),
        (b'{"error": "text"}', None, None),
        (b'{"error": {}}', None, None),
        (b'{"error": {"code": 502, "message": 7}}', "502", None),
        (b'{"error": {"code": true, "message": "m"}}', None, "m"),
        (b'{"error": {"code": "a sentence about Jane", "message": "m"}}', None, "m"),
        (b'{"error": {"code": "c", "message": "\\ud800"}}', "c", "\ufffd"),
        (b"[" * 60_000, None, None),
        (b'{"error": {"code": "c"}, "x": "' + b"x" * ERROR_BODY_BYTES + b'"}', None, None),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else None,
)
def test_an_unreadable_error_does_not_hide_the_status(
    client: EmailgisticsClient, content: bytes, code: str | None, message: str | None
) -> None:
    """A proxy in between answers with HTML or nothing: the status counts all the same."""
    respx.get(LISTING).respond(502, content=content)
    with pytest.raises(ServerError) as raised:
        client.list_attachments(MESSAGE)
    assert (raised.value.status, raised.value.code, raised.value.vendor_message) == (502, code, message)


@pytest.mark.parametrize(
    "answer",
    [
        head("Content-Length: 99", status="404 Not Found") + b"cut",
        head("Transfer-Encoding: chunked", status="404 Not Found") + b"5\r\nhel",
        head("Transfer-Encoding: chunked", status="404 Not Found") + b"xyz",
        head("Content-Encoding: gzip", status="404 Not Found") + b"not gzip",
        head(status="404 Not Found"),
        head(status="404"),
    ],
)
def test_a_broken_error_does_not_hide_the_status(vendor: RawServer, answer: bytes) -> None:
    """Nor does a body that is cut or encoded."""
    vendor.answer(sent(answer))
    with EmailgisticsClient(vendor.url, KEY) as client, pytest.raises(NotFound):
        client.list_attachments(MESSAGE)


def test_an_endless_error_does_not_hide_the_status(vendor: RawServer) -> None:
    """Little is read of an error, and not for long."""
    endless = head("Transfer-Encoding: chunked", status="429 Too Many Requests")
    with EmailgisticsClient(vendor.url, KEY, error_seconds=0.2) as client:
        for script in (
            vendor.stalled(endless),
            vendor.dripping(endless, b"1\r\nx\r\n", 0.01),
            vendor.dripping(endless, b"10000\r\n" + b"x" * 0x10000 + b"\r\n", 0.0),
        ):
            vendor.answer(script)
            with pytest.raises(RateLimited), client.download(MESSAGE, ATTACHMENT):
                pass


@respx.mock
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("99999", 3600.0),
        ("9" * 5000, None),
        ("-1", None),
        ("soon", None),
        ("٣", None),
        (None, None),
    ],
)
def test_how_long_to_wait(client: EmailgisticsClient, value: str | None, seconds: float | None) -> None:
    """A `Retry-After` in seconds is passed on, an hour at most."""
    headers = {"Retry-After": value.encode()} if value is not None else {}
    respx.get(LISTING).mock(httpx.Response(429, headers=headers))
    with pytest.raises(RateLimited) as raised:
        client.list_attachments(MESSAGE)
    assert raised.value.retry_after == seconds


@pytest.mark.parametrize("location", ["https://evil.example/x", "/api/v1/other", "http://[broken", "", None])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(vendor: RawServer, status: int, location: str | None) -> None:
    """Not to another host, not to the same one, and a broken target is no other error."""
    headers = [] if location is None else [f"Location: {location}"]
    vendor.answer(sent(head(*headers, "Content-Length: 0", status=f"{status} Moved")))
    with EmailgisticsClient(vendor.url, KEY) as client, pytest.raises(UnexpectedStatus, match="redirect"):
        client.list_attachments(MESSAGE)
    assert len(vendor.heads) == 1


@pytest.mark.parametrize(
    ("identifier", "segment"),
    [
        ("AAMkAD=", b"AAMkAD%3D"),
        ("a/b+c=d-e_f", b"a%2Fb%2Bc%3Dd-e_f"),
        ("..", b"%2E%2E"),
        (".", b"%2E"),
        ("../../admin", b"..%2F..%2Fadmin"),
        ("a%2Fb", b"a%252Fb"),
        ("%", b"%25"),
        ("a?b#c", b"a%3Fb%23c"),
        ("a b\r\nX: y\x00", b"a%20b%0D%0AX%3A%20y%00"),
        ("日", b"%E6%97%A5"),
        ("x" * 2048, b"x" * 2048),
        ("~a.b", b"~a.b"),
        ("\\..\\", b"%5C..%5C"),
        (":@!$&'()*,;[]", b"%3A%40%21%24%26%27%28%29%2A%2C%3B%5B%5D"),
    ],
)
def test_an_id_is_one_segment_on_the_wire(vendor: RawServer, identifier: str, segment: bytes) -> None:
    """Whatever an id holds, it arrives as one segment of the path, encoded once."""
    vendor.answer(sent(ok(b'{"attachments": []}'), keep=True))
    with EmailgisticsClient(vendor.url, KEY) as client:
        client.list_attachments(identifier)
        with client.download(identifier, identifier) as download:
            list(download)
    targets = [request.split(b"\r\n")[0] for request in vendor.heads]
    assert targets == [
        b"GET /api/v1/messages/" + segment + b"/attachments HTTP/1.1",
        b"GET /api/v1/messages/" + segment + b"/attachments/" + segment + b"/download HTTP/1.1",
    ]


@pytest.mark.parametrize("identifier", ["", "\ud800"])
def test_an_impossible_id_is_refused(client: EmailgisticsClient, identifier: str) -> None:
    """An empty id would ask for something else; nothing is sent."""
    with pytest.raises(InvalidArgument):
        client.list_attachments(identifier)
    with pytest.raises(InvalidArgument), client.download(MESSAGE, identifier):
        pass
    with pytest.raises(InvalidArgument), client.download(identifier, ATTACHMENT):
        pass


def test_an_id_too_long_for_a_url_is_refused(client: EmailgisticsClient) -> None:
    """Without quoting it."""
    with pytest.raises(BadRequest) as raised:
        client.list_attachments(MESSAGE * 20_000)
    assert "CANARY" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    "url",
    [
        "https://c1.emailgistics.com/api/v1",
        "https://c1.emailgistics.com/api/v1/",
        " https://c1.emailgistics.com ",
        "HTTPS://C1.EMAILGISTICS.COM:8443/x",
        "http://localhost:8080/api/v1",
        "http://LOCALHOST",
        "http://127.0.0.1:1/",
        "http://127.9.9.9",
        "http://[::1]:8080/api/v1",
    ],
)
def test_https_or_this_machine(url: str) -> None:
    """Plain HTTP goes nowhere but to this machine."""
    EmailgisticsClient(url, KEY).close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "c1.emailgistics.com",
        "/api/v1",
        "http://c1.emailgistics.com/api/v1",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://2130706433",
        "http://[::ffff:10.0.0.1]",
        "ftp://localhost",
        "https://",
        "https:///api",
        "https://user:CANARY@c1.emailgistics.com",
        "https://c1.emailgistics.com/?key=CANARY",
        "https://c1.emailgistics.com/#CANARY",
        "https://c1.emailgistics.com:port",
        "https://c1.emailgistics.com/\x00CANARY",
    ],
)
def test_other_base_urls_are_refused(url: str) -> None:
    """With a ValueError that says why and shows nothing of it."""
    with pytest.raises(ValueError, match="base URL") as raised:
        EmailgisticsClient(url, KEY)
    assert isinstance(raised.value, InvalidArgument)
    assert "CANARY" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("key", ["", " ", "CANARY k", "CANARY\n", "\tCANARY", "CANARYé", "CANARY\0", "CANARY\ud800"])
def test_an_impossible_key_is_refused(key: str) -> None:
    """Clearly, and without showing it."""
    with pytest.raises(InvalidArgument, match="API key") as raised:
        EmailgisticsClient(BASE, key)
    assert "CANARY" not in str(raised.value) + repr(raised.value)


def test_repr_shows_no_key(client: EmailgisticsClient) -> None:
    """Only the host, which is no secret."""
    assert repr(client) == "EmailgisticsClient(host='c1.emailgistics.com')"


def test_neither_netrc_nor_cookies_nor_a_proxy_matter_on_this_machine(
    vendor: RawServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The key is the only credential that is sent, straight to the host."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login jane password CANARY\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    vendor.answer(sent(ok(b'{"attachments": []}', "Set-Cookie: session=CANARY; Path=/"), keep=True))
    with EmailgisticsClient(vendor.url, KEY) as client:
        client.list_attachments(MESSAGE)
        client.list_attachments(MESSAGE)
    for request in vendor.heads:
        headers = {line.split(b":")[0].lower(): line for line in request.split(b"\r\n")[1:] if line}
        assert headers.keys() == {b"host", b"authorization", b"accept-encoding", b"user-agent"}
        assert headers[b"authorization"].endswith(f"Bearer {KEY}".encode())


def test_connections_are_reused(vendor: RawServer) -> None:
    """Listing, downloading and refusals share a connection, one after another."""
    vendor.answer(
        sent(ok(b'{"attachments": []}'), keep=True),
        sent(ok(b"hello"), keep=True),
        sent(head("Content-Length: 2", status="404 Not Found") + b"{}", keep=True),
        sent(head("Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", keep=True),
    )
    with EmailgisticsClient(vendor.url, KEY) as client:
        client.list_attachments(MESSAGE)
        with client.download(MESSAGE, ATTACHMENT) as download:
            assert b"".join(download) == b"hello"
        with pytest.raises(NotFound), client.download(MESSAGE, ATTACHMENT):
            pass
        with client.download(MESSAGE, ATTACHMENT) as download:
            assert b"".join(download) == b"hello"
    assert vendor.connections == 1


def test_one_client_serves_many_threads(vendor: RawServer) -> None:
    """32 downloads at once each get their own body, whole, over at most so many connections."""
    body = bytes(range(256)) * 400

    def echo(connection: object) -> bool:
        return sent(ok(body), keep=True)(connection)  # type: ignore[arg-type]

    vendor.answer(echo)
    barrier = threading.Barrier(32)

    def fetch(_: int) -> bool:
        barrier.wait(10)
        for _ in range(3):
            with client.download(MESSAGE, ATTACHMENT) as download:
                if b"".join(download) != body:
                    return False
        return True

    with EmailgisticsClient(vendor.url, KEY) as client, ThreadPoolExecutor(32) as threads:
        assert all(threads.map(fetch, range(32)))
    assert len(vendor.heads) == 96
    assert vendor.connections <= 32


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "gzip, identity"])
def test_an_encoded_body_is_refused(vendor: RawServer, encoding: str) -> None:
    """Decoded or not, it could be other bytes than the sender's: we asked for them as they are."""
    vendor.answer(sent(ok(b"hello", f"Content-Encoding: {encoding}")))
    with EmailgisticsClient(vendor.url, KEY) as client:
        with pytest.raises(BadAnswer), client.download(MESSAGE, ATTACHMENT):
            pass
        with pytest.raises(BadAnswer):
            client.list_attachments(MESSAGE)


@respx.mock
@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_identity_is_no_encoding(client: EmailgisticsClient, encoding: str) -> None:
    """Saying that nothing was done changes nothing."""
    respx.get(DOWNLOAD).respond(content=b"hello", headers={"Content-Encoding": encoding})
    with client.download(MESSAGE, ATTACHMENT) as download:
        assert b"".join(download) == b"hello"


@respx.mock
def test_a_listing_without_end_is_refused() -> None:
    """Memory stays bounded."""
    respx.get(LISTING).respond(json={"attachments": []})
    with EmailgisticsClient(BASE, KEY, listing_bytes=10) as client, pytest.raises(BadAnswer, match="longer"):
        client.list_attachments(MESSAGE)


def test_any_transport_will_do() -> None:
    """A transport of httpx' interface can take the wire's place; completeness is checked all the same."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"Content-Length": "9"}, content=b"hello"))
    client = EmailgisticsClient(BASE, KEY, transport=transport)
    with pytest.raises(Truncated), client.download(MESSAGE, ATTACHMENT) as download:
        list(download)


@pytest.mark.parametrize("lengths", [["5", "6"], ["5, 6"], ["x"], [""], ["-5"], ["٥"]])
def test_any_transports_lengths_must_make_sense(lengths: list[str]) -> None:
    """Also when the transport has let them pass."""
    headers = [("Content-Length", length.encode()) for length in lengths]
    stream = httpx.ByteStream(b"hello")
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=stream))
    client = EmailgisticsClient(BASE, KEY, transport=transport)
    with pytest.raises(BadAnswer), client.download(MESSAGE, ATTACHMENT):
        pass


def test_a_transports_errors_are_translated() -> None:
    """Whatever it raises of httpx' errors."""

    def late(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout(str(request.url), request=request)

    client = EmailgisticsClient(BASE, KEY, transport=httpx.MockTransport(late))
    with pytest.raises(TimedOut) as raised:
        client.list_attachments(MESSAGE)
    assert "CANARY" not in "".join(traceback.format_exception(raised.value))


@respx.mock
def test_a_deprecation_is_logged_once(
    client: EmailgisticsClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a process and endpoint, without the message's id."""
    monkeypatch.setattr(client_module, "_announced", set())
    headers = {"Deprecation": "@1688169599 CANARY"}
    respx.get(LISTING).respond(json={"attachments": []}, headers=headers)
    respx.get(DOWNLOAD).respond(404, headers=headers)
    for _ in range(3):
        client.list_attachments(MESSAGE)
        with pytest.raises(NotFound), client.download(MESSAGE, ATTACHMENT):
            pass
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2
    assert not any(secret in text for text in warned for secret in (MESSAGE, ATTACHMENT, "CANARY"))


@contextlib.contextmanager
def logged(error: type[EmailgisticsError]) -> Iterator[None]:
    """Log this error with its traceback, as a flow would."""
    try:
        yield
    except error:
        logging.getLogger("flow").exception("It failed")


def test_nothing_reaches_the_logs(vendor: RawServer, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG on the root, no logger tells an id, a name, a URL or the key."""
    caplog.set_level(logging.DEBUG)
    name = 'Content-Disposition: attachment; filename="CANARY.pdf"'
    vendor.answer(
        sent(ok(json.dumps({"attachments": [{"id": "CANARY", "name": "CANARY"}]}).encode()), keep=True),
        sent(ok(b"CANARY", name), keep=True),
        sent(head("Content-Length: 3", status="404 Not Found") + b"CANARY"),
        sent(head("Content-Length: 99", name) + b"CANARY"),
    )
    with EmailgisticsClient(vendor.url, KEY) as client:
        client.list_attachments(MESSAGE)
        for error in (None, NotFound, Truncated):
            with (
                contextlib.nullcontext() if error is None else logged(error),
                client.download(MESSAGE, ATTACHMENT) as download,
            ):
                list(download)
    assert caplog.text.count("It failed") == 2
    for secret in ("CANARY", "127.0.0.1", "messages/", "api/v1"):
        assert secret not in caplog.text


def test_the_wires_loggers_stay_quiet_when_the_root_is_not() -> None:
    """The loggers have their own level, which that of the root does not change."""
    EmailgisticsClient(BASE, KEY).close()
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection", "httpcore.proxy"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
