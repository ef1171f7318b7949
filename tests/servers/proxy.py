"""A proxy that breaks things, before any of the HTTP servers: on a thread of its own, on a free port.

It reads requests one by one, so a fault can be ordered for the nth request that looks so and so:

    with Proxy(server.port) as proxy:
        proxy.order("PUT", r"partNumber=2", Answer(503), times=2)
        ... store through proxy.port ...
        assert proxy.ordered == 0        # the fault was met

WebSockets are passed on untouched. `Wire` breaks connections of any protocol, by bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tests.servers.listener import STEP, Listener, close


@dataclass(frozen=True)
class Answer:
    """The proxy answers by itself; the server is told nothing."""

    status: int
    body: bytes = b""


@dataclass(frozen=True)
class Reset:
    """The connection breaks before the server is told anything; or after so many bytes of the body, which it has seen.

    A body that is not longer is seen whole, and the server may act on it.
    """

    after: int | None = None


@dataclass(frozen=True)
class DropReply:
    """The server does what it is asked, and its answer is lost."""


@dataclass(frozen=True)
class Stall:
    """Nothing comes back until the client gives up; the server is told nothing."""


@dataclass(frozen=True)
class Strike:
    """A request gets no response: the fault strikes before the server receives it, or after it has acted."""

    strike: Callable[[], object]
    """Called on the proxy's thread, which waits for it."""
    after_reply: bool = False


Fault = Answer | Reset | DropReply | Stall | Strike


@dataclass
class _Order:
    method: str
    target: re.Pattern[str]
    fault: Fault
    skip: int
    times: int
    header: re.Pattern[str] | None


class Proxy(Listener):
    """Before the server on that port of this machine. It passes on `Host` as it came, for that is signed."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.requests: list[str] = []
        """Method and target of each request, as they came."""
        self._orders: list[_Order] = []

    def order(
        self, method: str, target: str, fault: Fault, *, skip: int = 0, times: int = 1, header: str | None = None
    ) -> None:
        """From now on the requests of that method whose target matches meet the fault, after `skip` that do not.

        With `header`, only those that have a header line which begins so, in any case.
        """
        pattern = re.compile(rf"(?im)^{header}") if header else None
        self._orders.append(_Order(method, re.compile(target), fault, skip, times, pattern))

    @property
    def ordered(self) -> int:
        """Faults that have not been met yet."""
        return sum(order.times for order in self._orders)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer; the client is told that no other may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = (word.decode() for word in head.split(b" ", 2)[:2])
        self.requests.append(f"{method} {target}")
        if re.search(rb"(?im)^upgrade: *websocket", head):
            await self._tunnel(head, reader, writer)
            return
        body = _Body(head, reader, writer)
        match self._fault(method, target, head.decode("latin-1")):
            case Reset(after=None):
                return
            case Strike(strike, after_reply=False):
                await asyncio.to_thread(strike)
                return
            case Stall():
                while await reader.read(STEP):
                    pass
                return
            case Answer(status, content):
                async for _ in body:
                    pass
                reply = f"HTTP/1.1 {status} Ordered\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
                writer.write(reply.encode() + content)
            case Strike(strike):
                await self._forward(head, body, writer, DropReply())
                await asyncio.to_thread(strike)
                return
            case fault:
                if not await self._forward(head, body, writer, fault):
                    return
        await close(writer)

    async def _tunnel(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what both sides say, until one of them has said all."""
        upstream, server = await asyncio.open_connection("127.0.0.1", self.upstream)
        server.write(head)
        ways = [asyncio.create_task(_relay(*way, lost=False)) for way in ((reader, server), (upstream, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await close(server)

    async def _forward(self, head: bytes, body: _Body, writer: asyncio.StreamWriter, fault: Fault | None) -> bool:
        """Whether the client got an answer."""
        upstream, server = await asyncio.open_connection("127.0.0.1", self.upstream)
        reply = asyncio.create_task(_relay(upstream, writer, lost=isinstance(fault, Reset | DropReply)))
        try:
            # One request a connection to the server: then the end of its answer is the connection's.
            lines = [line for line in head[:-4].split(b"\r\n") if not re.match(rb"(?i)(connection|expect):", line)]
            server.write(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n")
            left = fault.after if isinstance(fault, Reset) else None
            async for piece in body:
                if server.is_closing():
                    continue  # it has refused; the rest is taken so that the client reads why
                server.write(piece[:left])
                try:
                    await server.drain()
                except OSError:
                    if not await reply:
                        return False
                if left is not None and (left := left - len(piece)) < 0:
                    return False
            return left is None and await reply
        finally:
            reply.cancel()
            await close(server)

    def _fault(self, method: str, target: str, head: str) -> Fault | None:
        for order in self._orders:
            if order.header and not order.header.search(head):
                continue
            if order.method == method and order.target.search(target) and order.times:
                if order.skip:
                    order.skip -= 1
                    continue
                order.times -= 1
                return order.fault
        return None


async def _relay(upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lost: bool) -> bool:
    """Whether the client got an answer, to its end as far as can be told."""
    came = False
    with contextlib.suppress(OSError):
        while piece := await upstream.read(STEP):
            came = True
            if not lost:
                writer.write(piece)
                await writer.drain()
        return came and not lost
    return False


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
            piece = await self._reader.read(min(left, STEP))
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
