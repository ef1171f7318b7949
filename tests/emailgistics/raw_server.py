"""A server on a real socket that writes exactly what it is told, for what no mock can show.

Each request is answered by the next script in the queue, the last one over and over. A script writes to the
connection and returns whether to keep it open.
"""

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Script = Callable[[socket.socket], bool]

SOON = 15.0
"""Seconds for what takes a fraction of one, on a busy machine; what it is told apart from takes 20, 60, or for ever."""


class RawServer:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        """The head of each request, as it arrived."""
        self.connections = 0
        self.asked = threading.Semaphore(0)
        """Released once for each request."""
        self.over = threading.Event()
        self._tls = tls
        self._scripts: list[Script] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/api/v1"

    def answer(self, *scripts: Script) -> None:
        with self._lock:
            self._scripts = list(scripts)

    def stalled(self, beginning: bytes = b"") -> Script:
        """Write this much, then nothing more until the server is closed."""

        def script(connection: socket.socket) -> bool:
            connection.sendall(beginning)
            self.over.wait(20)
            return False

        return script

    def dripping(self, beginning: bytes, drop: bytes, seconds: float) -> Script:
        """Write this much, then a drop at a time for ever."""

        def script(connection: socket.socket) -> bool:
            connection.sendall(beginning)
            while not self.over.wait(seconds):
                connection.sendall(drop)
            return False

        return script

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.over.set()
        # Closing alone would not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for connection in self._open:
                _shut_down(connection)
        for thread in self._threads:
            thread.join(20)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            with self._lock:
                self.connections += 1
                self._open.append(connection)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._open.append(connection)
            with connection:
                while (head := _head(connection)) and self._next(head)(connection):
                    pass
                if self._tls is None:
                    _shut_down(connection)
        except OSError:
            connection.close()  # the client has hung up, as some tests want

    def _next(self, head: bytes) -> Script:
        with self._lock:
            self.heads.append(head)
            script = self._scripts[0] if len(self._scripts) == 1 else self._scripts.pop(0)
        self.asked.release()
        return script


def sent(answer: bytes, *, keep: bool = False) -> Script:
    """Write this, then hang up, or keep the connection."""

    def script(connection: socket.socket) -> bool:
        connection.sendall(answer)
        return keep

    return script


def reset(answer: bytes) -> Script:
    """Write this, then break the connection with an RST."""

    def script(connection: socket.socket) -> bool:
        connection.sendall(answer)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        return False

    return script


def ok(body: bytes, *headers: str) -> bytes:
    """A complete 200 with its length."""
    return head(f"Content-Length: {len(body)}", *headers) + body


def head(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode("latin-1")


def _head(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        some = connection.recv(65536)
        if not some:
            return b""
        received += some
    return received


def _shut_down(connection: socket.socket) -> None:
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        return
