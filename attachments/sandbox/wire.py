"""Writes a response to the socket byte by byte as planned, complete or broken.

aiohttp's own responses always finish what they began; a sandbox must be able not to. So the status line,
the headers and the framing (RFC 9112) are written here, straight to the transport.
"""

import array
import asyncio
import fcntl
import socket
import struct
import sys
import termios
import time
from email.utils import formatdate

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from attachments.sandbox.answers import phrase
from attachments.sandbox.plan import Ending, Plan
from attachments.sandbox.request_log import Entry

_PACED_PIECES_PER_SECOND = 20
_FLUSH_SECONDS = 5.0


class Sent(web.StreamResponse):
    """Tells aiohttp that the response was already sent, and whether the connection can be reused."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._is_kept_open = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._is_kept_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:  # noqa: ARG002  (aiohttp's name)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        pass


class Line:
    """One client's connection, with the body's framing and the count of what was sent."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.chunked = False

    @property
    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        return transport

    async def write(self, *pieces: bytes | memoryview) -> None:
        """Pass the pieces to the system; waits while the client reads too slowly."""
        transport = self._transport
        for piece in pieces:
            transport.write(piece)
        await self._request.writer.drain()

    async def write_body(self, piece: memoryview) -> None:
        """Writes a piece of the body, as a chunk of its own when the framing is chunked."""
        if self.chunked:
            await self.write(b"%x\r\n" % len(piece), piece, b"\r\n")
        else:
            await self.write(piece)

    async def flush(self) -> None:
        """Waits until everything written has left for the system."""
        self._transport.set_write_buffer_limits(high=0)
        await self._request.writer.drain()

    async def end(self, ending: Ending) -> None:
        """End the connection once everything written has arrived: in order (FIN), or with a reset (RST)."""
        await self.flush()
        transport = self._transport
        if ending == "fin":
            transport.close()
            return
        connection = transport.get_extra_info("socket")
        await _arrival(connection)
        # Lingering for zero seconds makes close() send RST.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


async def send(request: web.BaseRequest, plan: Plan, entry: Entry) -> Sent:
    """Execute the plan, and record the result in the log entry.

    Raises ConnectionError when the client leaves before the end.
    """
    line = Line(request)
    if plan.delay:
        await asyncio.sleep(plan.delay)
    if plan.drop is not None:
        await line.end(plan.drop)
        return Sent(keep_alive=False)

    bodiless = request.method == "HEAD" or plan.answer.status in (204, 304)
    size = 0 if bodiless else plan.answer.body.size
    whole = plan.framing == "length" and plan.announce in (None, size) and plan.cut is None
    keep_alive = request.keep_alive and (whole or (plan.framing == "chunked" and plan.cut is None))
    line.chunked = plan.framing == "chunked" and not bodiless
    entry.status = plan.answer.status
    await line.write(_head(plan, bodiless=bodiless, keep_alive=keep_alive))
    if not bodiless:
        await _send_body(line, plan, entry)
    if plan.cut is not None:
        await line.end(plan.cut.ending)
        return Sent(keep_alive=False)
    if line.chunked:
        await line.write(b"0\r\n\r\n")
    if not keep_alive:
        await line.end("fin")
    entry.complete = True
    return Sent(keep_alive=keep_alive)


def _head(plan: Plan, *, bodiless: bool, keep_alive: bool) -> bytes:
    answer = plan.answer
    lines = [f"HTTP/1.1 {answer.status} {phrase(answer.status)}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if plan.framing == "chunked" and not bodiless:
        lines.append("Transfer-Encoding: chunked")
    elif plan.framing == "length" and not (bodiless and answer.status in (204, 304)):
        lines.append(f"Content-Length: {answer.body.size if plan.announce is None else plan.announce}")
    if not keep_alive:
        lines.append("Connection: close")
    # A test may dictate a header value that is no ASCII: it goes out as UTF-8, as careless servers do it.
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


async def _send_body(line: Line, plan: Plan, entry: Entry) -> None:
    size = plan.answer.body.size
    end = size if plan.cut is None else plan.cut.position(size)
    hold_at = None if plan.hold is None else min(plan.hold.after_bytes, end)
    began = time.monotonic()
    for piece in plan.answer.body.pieces():
        rest = piece[: end - entry.bytes_sent]
        while rest:
            if entry.bytes_sent == hold_at:
                await _hold(plan)
            step = len(rest)
            if hold_at is not None and entry.bytes_sent < hold_at:
                step = min(step, hold_at - entry.bytes_sent)
            elif plan.hold is not None and plan.hold.dripping:
                await asyncio.sleep(plan.hold.seconds or 0)
                step = 1
            if plan.bytes_per_second is not None:
                step = min(step, max(1, int(plan.bytes_per_second / _PACED_PIECES_PER_SECOND)))
            await line.write_body(rest[:step])
            entry.bytes_sent += step
            rest = rest[step:]
            if plan.bytes_per_second is not None:
                due = began + entry.bytes_sent / plan.bytes_per_second
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        if entry.bytes_sent == end:
            break
    if entry.bytes_sent == hold_at == end:
        await _hold(plan)


async def _hold(plan: Plan) -> None:
    """Stays silent; a client that leaves cancels the wait."""
    if plan.hold is None or (plan.hold.dripping and plan.hold.seconds is not None):
        return
    if plan.hold.seconds is None:
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(plan.hold.seconds)


async def _arrival(connection: socket.socket) -> None:
    """Waits until the peer's system has acknowledged every byte: a reset discards what is under way."""
    if sys.platform != "linux":
        return
    deadline = time.monotonic() + _FLUSH_SECONDS
    pending = array.array("i", [1])
    while time.monotonic() < deadline:
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, pending)
        if not pending[0]:
            return
        await asyncio.sleep(0.002)
