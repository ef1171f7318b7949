"""Accepts TLS connections, such that a client that never completes its handshake costs next to nothing."""

import asyncio
import socket
import ssl
from collections.abc import Callable

HANDSHAKE_TIMEOUT = 10.0  # seconds from a connection's first byte until it is encrypted; asyncio's default is 60
SILENCE_TIMEOUT = 10.0  # seconds that a connection may take until its first byte
PENDING_LIMIT = 256  # connections that have not completed their handshake; the next one closes the oldest
ACCEPT_PAUSE = 0.5  # seconds, when the process or the system has no file handle left


class TlsListener:
    """Starts TLS on a connection when its first bytes arrive; a server in uvicorn's sense (`close`, `wait_closed`).

    asyncio's own TLS server reserves 256 KiB for a connection as soon as it is accepted.
    """

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext, make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        listener.setblocking(False)
        self.sockets = (listener,)
        self._context = context
        self._make_protocol = make_protocol
        self._pending: dict[asyncio.Task[None], None] = {}  # a dictionary keeps them in order, oldest first
        self._loop = asyncio.get_running_loop()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more connections, and close those that have not completed their handshake."""
        self._accepting.cancel()
        for pending in self._pending:
            pending.cancel()

    async def wait_closed(self) -> None:
        """Wait until all of these are closed."""
        await asyncio.gather(self._accepting, *self._pending, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self.sockets[0])
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if len(self._pending) >= PENDING_LIMIT:
                oldest = next(iter(self._pending))
                del self._pending[oldest]
                oldest.cancel()
            pending = self._loop.create_task(self._start_tls(connection))
            self._pending[pending] = None
            pending.add_done_callback(lambda ended: self._pending.pop(ended, None))
            await asyncio.sleep(0)  # a connection that is already waiting is accepted without a pause

    async def _start_tls(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(SILENCE_TIMEOUT):
                await self._first_byte(connection)
            await self._loop.connect_accepted_socket(
                self._make_protocol, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
        except OSError:  # ssl.SSLError and TimeoutError are among them
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    async def _first_byte(self, connection: socket.socket) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(connection)
