"""Accepts connections so that an idle client, or one that never completes the TLS handshake, costs little memory."""

import asyncio
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable

from attachments.receiver.limits import ReceiverLimits
from attachments.receiver.unauthenticated import UnauthenticatedConnections

READ_BUFFER = 32 * 1024  # bytes for each TLS connection; twice TLS's largest record, and webhooks are smaller
ACCEPT_RETRY_DELAY = 0.5  # seconds, when the process or the system has no file descriptor left
BACKLOG = 2048  # connections that the kernel queues until they are accepted

sslproto.SSLProtocol.max_size = READ_BUFFER  # asyncio has no option for it; its default is 256 KiB


class Listener:
    """Hands each connection to a protocol once its first bytes arrive. uvicorn closes it as it would an
    `asyncio.Server`.

    asyncio's own TLS server allocates a connection's buffers on accept. Without `context`: plain HTTP.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        make_protocol: Callable[[UnauthenticatedConnections], asyncio.Protocol],
        limits: ReceiverLimits | None = None,
    ) -> None:
        self._limits = limits = limits or ReceiverLimits()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self.sockets = (listener,)
        self._ssl_context = context
        self._make_protocol = make_protocol
        self._unauthenticated = UnauthenticatedConnections(limits.max_unauthenticated, limits.eviction_grace)
        self._pending: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._accept_task = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Stop accepting, and close the connections that no protocol has taken over yet."""
        self._accept_task.cancel()
        for pending in self._pending:
            pending.cancel()

    async def wait_closed(self) -> None:
        """Wait until these connections are closed."""
        await asyncio.gather(self._accept_task, *self._pending, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            await self._unauthenticated.make_room()
            try:
                connection, _ = await self._loop.sock_accept(self.sockets[0])
            except OSError:
                await asyncio.sleep(ACCEPT_RETRY_DELAY)
                continue
            pending = self._loop.create_task(self._serve(connection))
            self._pending.add(pending)
            self._unauthenticated.add(pending, pending.cancel)
            pending.add_done_callback(self._on_task_done)
            await asyncio.sleep(0)  # yield: `sock_accept` does not suspend while connections are queued

    def _on_task_done(self, pending: asyncio.Task[None]) -> None:
        self._pending.discard(pending)
        self._unauthenticated.remove(pending)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._limits.first_byte_timeout):
                await self._wait_for_first_byte(connection)
            await self._loop.connect_accepted_socket(
                lambda: self._make_protocol(self._unauthenticated),
                connection,
                ssl=self._ssl_context,
                ssl_handshake_timeout=self._limits.handshake_timeout if self._ssl_context else None,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are among them
            connection.close()
            error.__traceback__ = None  # its frames would keep the buffers until the next garbage collection
        except asyncio.CancelledError as error:
            connection.close()
            error.__traceback__ = None  # likewise
            raise

    async def _wait_for_first_byte(self, connection: socket.socket) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(connection)
