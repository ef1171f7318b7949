"""Faults in how it is sent, seen on a bare socket byte by byte."""

import socket
import time
from typing import Any

import httpx
import pytest

from attachments.sandbox.process import Sandbox
from tests.sandbox.conftest import download_path, list_path

SIZE = 1_000_000
CLOSE = "Connection: close\r\n"


@pytest.fixture
def message(sandbox: Sandbox) -> dict[str, Any]:
    return sandbox.control.add_message(attachments=[{"name": "a", "bytes": SIZE, "seed": "s"}])


@pytest.fixture
def whole(message, api: httpx.Client, sandbox: Sandbox) -> bytes:
    content = api.get(download_path(message)).content
    sandbox.control.clear_requests()
    assert len(content) == SIZE
    return content


def order(sandbox: Sandbox, **fault: Any) -> None:
    sandbox.control.fault(endpoint="download", fault=fault)


def unchunked(body: bytes) -> tuple[bytes, bool]:
    """The content of a chunked body (RFC 9112, 7.1), and whether its last chunk is there."""
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return content, body == b"\r\n"
        assert body[length : length + 2] == b"\r\n"
        content, body = content + body[:length], body[length + 2 :]
    return content, False


def logged(sandbox: Sandbox) -> dict[str, Any]:
    """The log's row for the one download, once it has ended."""
    while True:
        (row,) = sandbox.control.requests("download")
        if not row["under_way"]:
            return row


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_cut_with_the_length_known(sandbox: Sandbox, raw, message, whole: bytes, how: str):
    """The true length is announced, exactly so many bytes arrive, then the connection ends or is reset."""
    order(sandbox, kind="cut", after_bytes=300_001, framing="length", how=how)
    answer = raw(download_path(message))
    assert (answer.status, answer.header("Content-Length")) == (200, str(SIZE))
    assert answer.body == whole[:300_001]
    assert answer.reset == (how == "reset")
    row = logged(sandbox)
    assert (row["bytes_sent"], row["complete"], row["status"]) == (300_001, False, 200)


def test_a_reset_discards_nothing_that_was_sent(sandbox: Sandbox, api: httpx.Client, message, whole: bytes):
    """Also a client that reads late gets every byte before the reset."""
    order(sandbox, kind="cut", after_bytes=300_001, how="reset")
    received = b""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((api.base_url.host, api.base_url.port))
        call = f"GET {api.base_url.path[:-1]}{download_path(message)} HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(f"{call}Authorization: Bearer {sandbox.key}\r\n\r\n".encode())
        while not (rows := sandbox.control.requests("download")) or rows[0]["bytes_sent"] < 300_001:
            pass
        while len(received.partition(b"\r\n\r\n")[2]) < 300_001:
            received += connection.recv(65536)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert received.partition(b"\r\n\r\n")[2] == whole[:300_001]


def test_cut_with_the_length_unknown(sandbox: Sandbox, raw, api: httpx.Client, message, whole: bytes):
    """Neither length nor chunks: nothing in the answer shows that the end is missing, and httpx is content."""
    sandbox.control.fault(
        endpoint="download", times=2, fault={"kind": "cut", "after_fraction": 0.25, "framing": "close"}
    )
    answer = raw(download_path(message))
    assert answer.header("Content-Length") is answer.header("Transfer-Encoding") is None
    assert answer.header("Connection") == "close"
    assert answer.body == whole[: SIZE // 4]
    assert not answer.reset
    assert api.get(download_path(message)).content == whole[: SIZE // 4]


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_cut_between_chunks(sandbox: Sandbox, raw, message, whole: bytes, how: str):
    """Chunked, and the last chunk never comes."""
    order(sandbox, kind="cut", after_bytes=70_000, framing="chunked", how=how)
    answer = raw(download_path(message))
    assert answer.header("Transfer-Encoding") == "chunked"
    assert answer.header("Content-Length") is None
    assert unchunked(answer.body) == (whole[:70_000], False)
    assert answer.reset == (how == "reset")


@pytest.mark.parametrize(("framing", "after"), [("length", 0), ("close", 0), ("chunked", SIZE), ("length", 10**9)])
def test_cut_at_either_end(sandbox: Sandbox, raw, message, whole: bytes, framing: str, after: int):
    """A cut before the first byte leaves the head alone; one after the last leaves out at most the last chunk."""
    order(sandbox, kind="cut", after_bytes=after, framing=framing)
    answer = raw(download_path(message))
    body = unchunked(answer.body)[0] if framing == "chunked" else answer.body
    assert body == whole[: min(after, SIZE)]
    assert not logged(sandbox)["complete"]


def test_httpx_notices_a_cut_when_it_can(sandbox: Sandbox, api: httpx.Client, message, whole: bytes):
    """A known length or a missing last chunk raises in the client; so the faults are what they claim to be."""
    for framing in ("length", "chunked"):
        order(sandbox, kind="cut", framing=framing)
        with pytest.raises(httpx.RemoteProtocolError):
            api.get(download_path(message))
    order(sandbox, kind="cut", framing="length", how="reset")
    with pytest.raises(httpx.ReadError):
        api.get(download_path(message))
    assert api.get(download_path(message)).content == whole


@pytest.mark.parametrize("framing", ["length", "close", "chunked"])
def test_the_whole_body_in_any_framing(sandbox: Sandbox, raw, api: httpx.Client, message, whole, framing: str):
    """Framing alone loses nothing."""
    sandbox.control.fault(endpoint="download", times=2, fault={"kind": "framing", "framing": framing})
    assert api.get(download_path(message)).content == whole
    answer = raw(download_path(message), headers=CLOSE)
    assert (unchunked(answer.body) if framing == "chunked" else (answer.body, True)) == (whole, True)
    assert (answer.header("Content-Length") is not None) == (framing == "length")
    assert all(row["complete"] for row in sandbox.control.requests("download"))


@pytest.mark.parametrize("announced", [SIZE + 10, SIZE - 10, 0])
def test_a_length_that_is_not_the_bodys(sandbox: Sandbox, raw, message, whole: bytes, announced: int):
    """Too much or too little is announced; the true body is sent whole, then the connection ends."""
    order(sandbox, kind="wrong_length", announce=announced)
    answer = raw(download_path(message))
    assert answer.header("Content-Length") == str(announced)
    assert answer.body == whole


def test_a_delay_before_the_answer(sandbox: Sandbox, api: httpx.Client, message):
    """Nothing comes before its time; a client that gives up ends the call."""
    sandbox.control.fault(endpoint="list", fault={"kind": "delay", "seconds": 0.3})
    began = time.monotonic()
    assert api.get(list_path(message)).status_code == 200
    assert time.monotonic() - began >= 0.3
    sandbox.control.fault(endpoint="list", fault={"kind": "delay", "seconds": 60})
    with pytest.raises(httpx.ReadTimeout):
        api.get(list_path(message), timeout=0.2)
    while (row := sandbox.control.requests("list")[-1])["under_way"]:
        pass
    assert (row["status"], row["complete"]) == (None, False)


def test_slow_keeps_its_pace(sandbox: Sandbox, api: httpx.Client, message, whole: bytes):
    """So many bytes a second, steadily, and all of them."""
    order(sandbox, kind="slow", bytes_per_second=2_000_000)
    arrivals, began, received = [], time.monotonic(), b""
    with api.stream("GET", download_path(message)) as answer:
        for piece in answer.iter_raw():
            received += piece
            arrivals.append(time.monotonic() - began)
    assert received == whole
    assert 0.4 <= arrivals[-1] < 2
    assert arrivals[0] < 0.2
    assert len(arrivals) >= 8


def test_a_stall_is_silence_on_an_open_connection(sandbox: Sandbox, raw, message, whole: bytes):
    """So many bytes arrive, then nothing, for as long as it was ordered; then the rest."""
    order(sandbox, kind="stall", after_bytes=1000, seconds=None)
    with pytest.raises(TimeoutError):
        raw(download_path(message), timeout=0.3)
    row = logged(sandbox)
    assert (row["bytes_sent"], row["complete"]) == (1000, False)
    order(sandbox, kind="stall", after_bytes=1000, seconds=0.3)
    assert raw(download_path(message), until=1000).body == whole[:1000]
    order(sandbox, kind="stall", after_bytes=1000, seconds=0.3)
    began = time.monotonic()
    assert raw(download_path(message), headers=CLOSE).body == whole
    assert time.monotonic() - began >= 0.3


def test_a_stall_at_the_end_withholds_the_ending(sandbox: Sandbox, api: httpx.Client, message, whole: bytes):
    """With chunks all bytes can be there and the end still be missing."""
    framing = {"kind": "framing", "framing": "chunked"}
    sandbox.control.fault(endpoint="download", fault=framing)
    order(sandbox, kind="stall", after_bytes=SIZE, seconds=None)
    received = b""
    with api.stream("GET", download_path(message), timeout=0.3) as answer:
        pieces = answer.iter_raw()
        while len(received) < SIZE:
            received += next(pieces)
        with pytest.raises(httpx.ReadTimeout):
            next(pieces)
    assert received == whole


def test_a_drip_never_strikes_a_read_time_out(sandbox: Sandbox, api: httpx.Client, message, whole: bytes):
    """One byte every so often: each read succeeds, and yet the download takes for ever."""
    order(sandbox, kind="drip", after_bytes=100, seconds=0.05)
    received, began = b"", time.monotonic()
    with api.stream("GET", download_path(message), timeout=0.25) as answer:
        for piece in answer.iter_raw():
            received += piece
            if len(received) >= 110:
                break
    assert received == whole[: len(received)]
    assert len(received) < 120
    assert time.monotonic() - began >= 0.45


def test_a_drip_without_seconds_is_a_stall(sandbox: Sandbox, raw, message):
    """Null for the seconds is silence until the client leaves."""
    order(sandbox, kind="drip", after_bytes=5, seconds=None)
    with pytest.raises(TimeoutError):
        raw(download_path(message), timeout=0.3)
    assert logged(sandbox)["bytes_sent"] == 5


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("counted", [True, False])
def test_drop_ends_without_an_answer(sandbox: Sandbox, raw, message, how: str, counted: bool):
    """Not a byte comes back; the rate limit has counted the call or has not."""
    order(sandbox, kind="drop", how=how, counted=counted)
    answer = raw(download_path(message))
    assert (answer.head, answer.body, answer.reset) == ("", b"", how == "reset")
    row = logged(sandbox)
    assert (row["status"], row["bytes_sent"], row["complete"], row["counted"]) == (None, 0, False, counted)


def test_faults_combine(sandbox: Sandbox, raw, message):
    """Every fault that matches a call happens to it: here late, as an HTML error, slowly, and cut."""
    order(sandbox, kind="delay", seconds=0.1)
    order(sandbox, kind="status", status=503, body="x" * 1000)
    order(sandbox, kind="slow", bytes_per_second=2000)
    order(sandbox, kind="cut", after_bytes=400, how="reset")
    began = time.monotonic()
    answer = raw(download_path(message))
    assert (answer.status, answer.body, answer.reset) == (503, b"x" * 400, True)
    assert time.monotonic() - began >= 0.25


def test_a_broken_call_harms_no_other(sandbox: Sandbox, api: httpx.Client, message, whole: bytes):
    """While one download hangs for ever others are served, and a new connection works after a reset."""
    order(sandbox, kind="stall", after_bytes=1, seconds=None)
    with httpx.stream("GET", str(api.base_url)[:-1] + download_path(message), headers=api.headers) as hanging:
        assert hanging.status_code == 200
        assert api.get(download_path(message)).content == whole
    address = api.base_url
    with socket.create_connection((address.host, address.port)) as nonsense:
        nonsense.sendall(b"\x16\x03\x01 no http\r\n\r\n")
    assert api.get(list_path(message)).status_code == 200
