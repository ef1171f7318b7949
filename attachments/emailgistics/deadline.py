"""A deadline for a whole call, and the means to end it from another thread.

A read time-out is no deadline: one byte a second never trips it. So each wait on the socket is cut to what
is left of the call, and every wait is covered, from connecting over the headers to the last byte: httpcore
hands all of them to its network backend. No timers, no threads.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import httpcore

from attachments.emailgistics.errors import DeadlineExceeded, EmailgisticsError

READ_BYTES = 256 * 1024
"""Bytes asked of the socket at a time. httpcore asks for 64 KiB: 640 MB/s over loopback, against 1,110 with this."""


class Call:
    """One request and its answer: `seconds` for all of it, from `start()` on, or `too_late` is the outcome.

    Belongs to one thread, but for `abort()`, which any thread may call.
    """

    def __init__(self, seconds: float, too_late: type[EmailgisticsError] = DeadlineExceeded) -> None:
        self.seconds = seconds
        self.too_late = too_late
        self.aborted = False
        self.hung_up: bool | None = None
        """Whether the last read found that the other side had closed; None when nothing was read."""
        self._ends: float | None = None
        self._stream: DeadlineStream | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the clock: the request is about to be sent. Waiting for a turn does not count."""
        self._ends = time.monotonic() + self.seconds

    def remaining(self) -> float:
        """Seconds left; negative when over."""
        return self.seconds if self._ends is None else self._ends - time.monotonic()

    def shorten(self, seconds: float) -> None:
        """Leave no more than this many seconds from now on."""
        self._ends = time.monotonic() + min(seconds, self.remaining())

    def wait(self, timeout: float | None, timed_out: type[Exception]) -> float:
        """How long the next wait may be, in seconds. Raises `timed_out` when there is no time for any."""
        remaining = self.remaining()
        if self.aborted or remaining <= 0:
            raise timed_out
        return remaining if timeout is None else min(remaining, timeout)

    def abort(self) -> None:
        """End the call: whoever waits on its socket gets an error at once."""
        with self._lock:
            self.aborted = True
            if self._stream is not None:
                self._stream.shut_down()

    def use(self, stream: "DeadlineStream | None") -> None:
        """Take this stream as the one to shut down, or none any more."""
        with self._lock:
            self._stream = stream
            if self.aborted and stream is not None:
                stream.shut_down()


CURRENT: ContextVar[Call] = ContextVar("emailgistics_call")
"""The call that this thread is opening; httpcore's network backend is told of no request."""


class DeadlineStream(httpcore.NetworkStream):
    """A socket whose every wait is cut to the deadline of the call that uses it.

    Connections are reused, one call after another (HTTP/1.1): the one that wrote last owns what is read.
    """

    def __init__(self, inner: httpcore.NetworkStream, call: Call) -> None:
        self._inner = inner
        self._call = call
        call.use(self)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # More than httpcore asked for is fine: it takes all that it is given.
        return self.read_some(max(max_bytes, READ_BYTES), timeout)

    def read_some(self, most: int, timeout: float | None) -> bytes:
        """What is there, up to so many bytes; waits for the first. Empty when the other side has closed."""
        call = self._call
        data = self._inner.read(most, call.wait(timeout, httpcore.ReadTimeout))
        call.hung_up = not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        call = CURRENT.get(self._call)
        if call is not self._call:
            self._call = call
            call.use(self)
        self._inner.write(buffer, call.wait(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        wait = self._call.wait(timeout, httpcore.ConnectTimeout)
        secure = self._inner.start_tls(ssl_context, server_hostname, wait)
        return DeadlineStream(secure, self._call)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def shut_down(self) -> None:
        """Wake whoever reads or writes. The thread that owns the socket closes it."""
        sock = self._inner.get_extra_info("socket")
        try:
            # Not `SSLSocket.shutdown`, which drops the TLS layer: the reader would then get raw ciphertext.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more


class DeadlineBackend(httpcore.NetworkBackend):
    """httpcore's own backend, with `DeadlineStream`s. Every connection is opened for `CURRENT`."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        call = CURRENT.get()
        wait = call.wait(timeout, httpcore.ConnectTimeout)
        stream = self._inner.connect_tcp(host, port, wait, local_address, socket_options)
        return DeadlineStream(stream, call)
