"""A pool of connections in which every wait is limited by the deadline of its call.

httpx's own `HTTPTransport` takes no network backend, which `deadline.py` needs, so this puts httpcore's pool (public
API) under httpx's interface. `httpx.Client` is not used: it logs every URL, keeps cookies, reads logins from URLs, and
parses a redirect's target even when it does not follow it.
"""

from collections.abc import Iterable, Iterator
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from attachments.emailgistics.deadline import CURRENT, Call, DeadlineBackend, DeadlineStream
from attachments.emailgistics.errors import InvalidArgument
from attachments.emailgistics.framing import framing_of
from attachments.foundation.loopback import is_loopback

CALL = "emailgistics.call"
"""The extension of a request that holds its `Call`."""

MAX_CONNECTIONS = 100
"""More than the downloads that run at once (32), so that no call waits here while it holds the pacer's turn."""
MAX_KEEPALIVE_CONNECTIONS = 40
KEEPALIVE_SECONDS = 30.0
"""Idle connections are closed before a server closes them (usually after 60 s or more) under a new request."""

LARGE_BYTES = 64 * 1024 * 1024
"""From this length on, a body is read directly from the socket: httpcore copies each byte three times.

A download of 1 GB, relative to `curl -o`: 0.69 through httpcore, 0.86 directly, on 2 busy cores. The connection cannot
be reused, because httpcore does not know that the body has ended; a new one takes about as long as copying so many
bytes.
"""
PIECE_BYTES = 1024 * 1024
"""Most bytes of one read of a large body."""
ALLOCATOR_THRESHOLD = 8 * 1024 * 1024
"""Bytes of a block that is allocated and freed once, unused, so that glibc keeps freed blocks of `PIECE_BYTES`.

Until it has seen a larger block freed, it returns each to the system and takes a page fault for every 4 KiB of the next
one (mallopt(3), M_MMAP_THRESHOLD). `make bench PART=throughput` on 2 cores, relative to `curl -o`: 0.72 to 0.99 in five
runs without this, 0.995 to 1.03 in five runs with it.
"""


class SocketTransport(httpx.BaseTransport):
    """HTTP/1.1 over pooled connections; safe to share between threads. Raises httpcore's errors.

    All requests go to `url`: its proxy and certificates are taken from the environment once.
    """

    def __init__(self, url: httpx.URL) -> None:
        proxy = proxy_for(url)
        self._pool = httpcore.ConnectionPool(
            # Reading the certificates takes 20 ms and more.
            ssl_context=httpx.create_ssl_context() if url.scheme == "https" else None,
            proxy=None
            if proxy is None
            else httpcore.Proxy(
                str(proxy.url), auth=proxy.raw_auth, headers=proxy.headers.raw, ssl_context=proxy.ssl_context
            ),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_KEEPALIVE_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=DeadlineBackend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        call: Call = request.extensions[CALL]
        opened = CURRENT.set(call)
        try:
            answer = self._pool.handle_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        finally:
            CURRENT.reset(opened)
        body = _Body(answer, request.extensions["timeout"]["read"])
        return httpx.Response(answer.status, headers=answer.headers, stream=body, extensions=answer.extensions)

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    """The response's bytes from the socket, through as few layers as possible."""

    def __init__(self, answer: httpcore.Response, timeout: float | None) -> None:
        self._answer = answer
        self._timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        stream = self._answer.stream
        assert isinstance(stream, Iterable)  # noqa: S101 - httpcore types the sync and async kinds as one
        wire = self._answer.extensions.get("network_stream")
        length = framing_of(httpx.Headers(self._answer.headers), "Reading the answer").length
        if isinstance(wire, DeadlineStream) and length is not None and length >= LARGE_BYTES:
            return self._large(iter(stream), wire, length)
        return iter(stream)

    def _large(self, stream: Iterator[bytes], wire: DeadlineStream, length: int) -> Iterator[bytes]:
        bytes(ALLOCATOR_THRESHOLD)
        # httpcore has the bytes that arrived with the headers. It returns them all at once, and never more than the
        # length. If it kept some, the body would be too short at its end, which is an error.
        piece = next(stream, b"")
        while piece:
            length -= len(piece)
            yield piece
            piece = wire.read_some(min(length, PIECE_BYTES), self._timeout) if length else b""

    def close(self) -> None:
        self._answer.close()


def proxy_for(url: httpx.URL) -> httpx.Proxy | None:
    """The proxy that the environment names for this URL (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), if any.

    Plain HTTP is for loopback hosts alone and never goes through one. Raises `InvalidArgument` for a proxy
    that cannot be used, without showing its address, which may hold a password.
    """
    if url.scheme != "https" or is_loopback(url.host) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    address = proxies.get("https") or proxies.get("all")
    if not address:
        return None
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL):
        raise InvalidArgument("The proxy that the environment names is no valid URL") from None
    if proxy.url.scheme not in {"http", "https"} or not proxy.url.host:
        raise InvalidArgument("The proxy that the environment names is not an HTTP proxy")
    return proxy
