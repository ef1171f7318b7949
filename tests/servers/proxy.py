"""A proxy that breaks things, before any of the servers: on a thread of its own, on a free port.

It reads requests one by one, so a fault can be ordered for the nth request that looks so and so:

    with Proxy(server.port) as proxy:
        proxy.order("PUT", r"partNumber=2", Answer(503), times=2)
        ... store through proxy.port ...
        assert proxy.ordered == 0        # the fault was met
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_STEP = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """The proxy answers by itself; the server is told nothing."""

    status: int
    body: bytes = b""


@dataclass(frozen=True)
class Reset:
    """The connection breaks after so many bytes of the request's body; the server has seen as much."""

    after: int = 0


@dataclass(frozen=True)
class DropReply:
    """The server does what it is asked, and its answer is lost."""


@dataclass(frozen=True)
class Stall:
    """Nothing comes back until the client gives up."""


Fault = Answer | Reset | DropReply | Stall


@dataclass
class _Order:
    method: str
    target: re.Pattern[str]
    fault: Fault
    skip: int
    times: int


@dataclass
class Proxy:
    """Before the server on that port of this machine."""

    upstream: int
    requests: list[str] = field(default_factory=list)
    """Method and target of each request, as they came."""

    def __post_init__(self) -> None:
        self._orders: list[_Order] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    def order(self, method: str, target: str, fault: Fault, *, skip: int = 0, times: int = 1) -> None:
        """From now on the requests of that method whose target matches meet the fault, after `skip` that do not."""
        self._orders.append(_Order(method, re.compile(target), fault, skip, times))

    @property
    def ordered(self) -> int:
        """Faults that have not been met yet."""
        return sum(order.times for order in self._orders)

    def __enter__(self) -> Self:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1024 * 1024), self._loop
        ).result()
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether another may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.split(b" ", 2)[:2]
        self.requests.append(f"{method.decode()} {target.decode()}")
        fault = self._fault(method.decode(), target.decode())
        body = _Body(head, reader, writer)
        if isinstance(fault, Answer):
            async for _ in body:
                pass
            reply = f"HTTP/1.1 {fault.status} Ordered\r\nContent-Length: {len(fault.body)}\r\nConnection: close\r\n\r\n"
            writer.write(reply.encode() + fault.body)
            await writer.drain()
            return False
        if isinstance(fault, Stall):
            await asyncio.sleep(3600)
        return await self._forward(head, body, writer, fault)

    async def _forward(self, head: bytes, body: _Body, writer: asyncio.StreamWriter, fault: Fault | None) -> bool:
        upstream, server = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            # One request a connection to the server: then the end of its answer is the connection's.
            lines = [line for line in head[:-4].split(b"\r\n") if not re.match(rb"(?i)(connection|expect):", line)]
            server.write(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n")
            sent = 0
            async for piece in body:
                if isinstance(fault, Reset) and sent + len(piece) > fault.after:
                    server.write(piece[: fault.after - sent])
                    await server.drain()
                    return False
                server.write(piece)
                await server.drain()
                sent += len(piece)
            if isinstance(fault, Reset):
                return False
            while piece := await upstream.read(_STEP):
                if not isinstance(fault, DropReply):
                    writer.write(piece)
                    await writer.drain()
            return False
        finally:
            server.close()
            if not isinstance(fault, Reset | DropReply):
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def _fault(self, method: str, target: str) -> Fault | None:
        for order in self._orders:
            if order.method == method and order.target.search(target) and order.times:
                if order.skip:
                    order.skip -= 1
                    continue
                order.times -= 1
                return order.fault
        return None


class _Body:
    """A request's body as it came, framing included."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        self._length = int(length[1]) if length else 0
        self._chunked = re.search(rb"(?im)^transfer-encoding: *chunked", head) is not None
        self._expects = re.search(rb"(?im)^expect: *100-continue", head) is not None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._expects:
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = self._length
        while left:
            piece = await self._reader.read(min(left, _STEP))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
            yield piece
        while self._chunked:
            line = await self._reader.readline()
            yield line
            size = int(line.partition(b";")[0], 16)
            yield await self._reader.readexactly(size + 2)
            if not size:
                return
