"""A deadline for a whole call, and the means to end it from another thread.

A read time-out is not a deadline: one byte a second never exceeds it. So each wait on the socket is limited to the time
that is left for the call, from connecting to the last byte: httpcore makes all of them through its network backend,
which is part of its public API. There are no timers and no threads.

httpx's own transport gives access to the socket only once the response has begun. With a check for each chunk of the
body, headers that arrive a byte at a time last for hours (httpcore reads up to 100 KiB of them), and an abort before
the response has no effect until the read time-out of 300 s.
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
"""Most bytes of one read. httpcore reads 64 KiB: 640 MB/s over loopback, against 1,110 with this size."""


class Call:
    """One request and its response: `too_late` is raised when they take more than `seconds` from `start()` on.

    Used by one thread, except for `abort()`, which any thread may call.
    """

    def __init__(self, seconds: float, too_late: type[EmailgisticsError] = DeadlineExceeded) -> None:
        self.seconds = seconds
        self.too_late = too_late
        self.aborted = False
        self.hung_up: bool | None = None
        """Whether the server had closed the connection at the last read; None when nothing was read."""
        self._ends: float | None = None
        self._stream: DeadlineStream | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the clock: the request is about to be sent. The wait for the pacer's turn does not count."""
        self._ends = time.monotonic() + self.seconds

    def remaining(self) -> float:
        """Seconds left; negative after the deadline."""
        return self.seconds if self._ends is None else self._ends - time.monotonic()

    def shorten(self, seconds: float) -> None:
        """Limit the time left to this many seconds."""
        self._ends = time.monotonic() + min(seconds, self.remaining())

    def wait(self, timeout: float | None, timed_out: type[Exception]) -> float:
        """The longest next wait, in seconds. Raises `timed_out` when no time is left."""
        remaining = self.remaining()
        if self.aborted or remaining <= 0:
            raise timed_out
        return remaining if timeout is None else min(remaining, timeout)

    def abort(self) -> None:
        """End the call: a thread that waits on its socket gets an error at once."""
        with self._lock:
            self.aborted = True
            if self._stream is not None:
                self._stream.shut_down()

    def use(self, stream: "DeadlineStream | None") -> None:
        """Set the stream that `abort()` shuts down; None when the call no longer has one."""
        with self._lock:
            self._stream = stream
            if self.aborted and stream is not None:
                stream.shut_down()


CURRENT: ContextVar[Call] = ContextVar("emailgistics_call")
"""The call that this thread is making; httpcore does not pass the request to its network backend."""


class DeadlineStream(httpcore.NetworkStream):
    """A socket whose every wait is limited to the deadline of the call that uses it.

    Calls reuse connections one after another (HTTP/1.1): the data read belongs to the call that wrote last.
    """

    def __init__(self, inner: httpcore.NetworkStream, call: Call) -> None:
        self._inner = inner
        self._call = call
        call.use(self)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # httpcore accepts more than it requested.
        return self.read_some(max(max_bytes, READ_BYTES), timeout)

    def read_some(self, most: int, timeout: float | None) -> bytes:
        """At least one byte, at most `most`. Empty when the server has closed the connection."""
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
        """End a read or write that waits. The thread that uses the socket closes it."""
        sock = self._inner.get_extra_info("socket")
        try:
            # `SSLSocket.shutdown` would drop the TLS layer, and the reader would get ciphertext.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # no longer connected


class DeadlineBackend(httpcore.NetworkBackend):
    """httpcore's own backend with `DeadlineStream`s. It opens each connection for the call in `CURRENT`."""

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
