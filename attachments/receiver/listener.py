"""Accepts connections, such that one whose client sends nothing, or never completes its handshake, costs little."""

import asyncio
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable

from attachments.receiver.limits import Limits
from attachments.receiver.strangers import Strangers

READ_BUFFER = 32 * 1024  # bytes of an encrypted connection; twice TLS's largest record, and webhooks are smaller
ACCEPT_PAUSE = 0.5  # seconds, when the process or the system has no file handle left
BACKLOG = 2048  # connections that the system keeps until they are accepted

sslproto.SSLProtocol.max_size = READ_BUFFER  # asyncio has no option for it; its own buffer is 256 KiB


class Listener:
    """Serves a connection when its first bytes arrive; a server in uvicorn's sense (`close`, `wait_closed`).

    asyncio's own TLS server makes a connection's buffers as soon as it is accepted. Without `context`: plain HTTP.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        make_protocol: Callable[[Strangers], asyncio.Protocol],
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits = limits or Limits()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self.sockets = (listener,)
        self._context = context
        self._make_protocol = make_protocol
        self._strangers = Strangers(limits.connections, limits.connection_grace)
        self._pending: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more connections, and close those that have not come to a request."""
        self._accepting.cancel()
        for pending in self._pending:
            pending.cancel()

    async def wait_closed(self) -> None:
        """Wait until all of these are closed."""
        await asyncio.gather(self._accepting, *self._pending, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            await self._strangers.make_room()
            try:
                connection, _ = await self._loop.sock_accept(self.sockets[0])
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            pending = self._loop.create_task(self._serve(connection))
            self._pending.add(pending)
            self._strangers.add(pending, pending.cancel)
            pending.add_done_callback(self._end)
            await asyncio.sleep(0)  # a connection that is already waiting is accepted without a pause

    def _end(self, pending: asyncio.Task[None]) -> None:
        self._pending.discard(pending)
        self._strangers.discard(pending)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._limits.silence_timeout):
                await self._first_byte(connection)
            await self._loop.connect_accepted_socket(
                lambda: self._make_protocol(self._strangers),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_timeout if self._context else None,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are among them
            connection.close()
            error.__traceback__ = None  # its frames would keep the buffers until the next garbage collection
        except asyncio.CancelledError as error:
            connection.close()
            error.__traceback__ = None  # likewise
            raise

    async def _first_byte(self, connection: socket.socket) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(connection)
