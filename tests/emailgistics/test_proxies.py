"""The way through a proxy that the environment names."""

import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from attachments.emailgistics import (
    ConnectionFailed,
    DeadlineExceeded,
    EmailgisticsClient,
    InvalidArgument,
)

from .raw_server import SOON, RawServer, head, ok, sent

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(tls_vendor: RawServer) -> Iterator[RawServer]:
    """A proxy that leads every CONNECT to the vendor."""

    def tunnel(connection: socket.socket) -> bool:
        target = urlsplit(tls_vendor.url)
        assert target.hostname is not None
        with socket.create_connection((target.hostname, target.port or 0)) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=copy, args=(onward, connection))
            back.start()
            copy(connection, onward)
            back.join(10)
        return False

    with RawServer() as server:
        server.answer(tunnel)
        yield server


def copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_the_vendor_is_reached_through_the_proxy(
    proxy: RawServer, tls_vendor: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By CONNECT, so that the proxy sees neither the key nor an id; its own login goes to it alone."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://jane:secret@127.0.0.1:{proxy.port}")
    tls_vendor.answer(sent(ok(b"hello")))
    with (
        EmailgisticsClient("https://vendor.test/api/v1", "key") as client,
        client.download("MSG", "ATT") as download,
    ):
        assert b"".join(download) == b"hello"
    (asked,) = proxy.heads
    assert asked.startswith(b"CONNECT vendor.test:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic" in asked
    assert b"Bearer" not in asked
    (asked,) = tls_vendor.heads
    assert b"Authorization: Bearer key" in asked
    assert b"Proxy-Authorization" not in asked


def test_the_deadline_holds_through_the_proxy(
    proxy: RawServer, tls_vendor: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drip through a tunnel ends in time, as does a proxy that never answers."""
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
    tls_vendor.answer(tls_vendor.dripping(head("Content-Length: 999"), b"x", 0.02))
    with EmailgisticsClient("https://vendor.test", "key", download_deadline=0.4) as client:
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded), client.download("MSG", "ATT") as download:
                list(download)
            assert time.monotonic() - started < SOON
            proxy.answer(proxy.stalled())


def test_a_proxy_that_refuses(proxy: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its refusal is a failed connection, not the vendor's."""
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
    proxy.answer(sent(head("Content-Length: 0", status="407 Proxy Authentication Required")))
    with (
        EmailgisticsClient("https://vendor.test", "key") as client,
        pytest.raises(ConnectionFailed, match="the proxy refused"),
    ):
        client.list_attachments("MSG")


def test_this_machine_is_reached_without_a_proxy(tls_vendor: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy elsewhere could not know what this machine's addresses mean."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    tls_vendor.answer(sent(ok(b'{"attachments": []}')))
    with EmailgisticsClient(tls_vendor.url, "key") as client:
        assert client.list_attachments("MSG") == ()


def test_no_proxy_is_obeyed(proxy: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is excepted is not reached through the proxy."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", "example.com,vendor.test")
    with (
        EmailgisticsClient("https://vendor.test", "key", list_timeout=2) as client,
        pytest.raises(ConnectionFailed),
    ):
        client.list_attachments("MSG")
    assert proxy.heads == []


@pytest.mark.parametrize("address", ["socks5://CANARY:1080", "ftp://CANARY", "http://CANARY:port", "http://:8080"])
def test_an_unusable_proxy_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """At once, and without showing its address."""
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(InvalidArgument, match="proxy") as raised:
        EmailgisticsClient("https://vendor.test", "key")
    assert "CANARY" not in str(raised.value)


def test_an_untrusted_certificate_is_named(tls_vendor: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's certificate is checked, and a person is told that this is what failed."""
    monkeypatch.delenv("SSL_CERT_FILE")
    with (
        EmailgisticsClient(tls_vendor.url, "key") as client,
        pytest.raises(ConnectionFailed, match="SSLCertVerificationError"),
    ):
        client.list_attachments("MSG")
    assert tls_vendor.heads == []
