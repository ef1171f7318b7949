"""A bad line before any server, whatever its protocol: slow, cut, stalled or broken. Counts bytes, not requests.

with Wire(server.port) as wire:
    wire.cut(to_server=100_000)      # or to_client=…; or wire.latency, wire.slices, wire.stall(), wire.reset()
    ... store through wire.port ...
    assert wire.cuts == 0            # the fault was met
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tests.servers.listener import STEP, Listener, close, reset

Way = Literal["to_server", "to_client"]


@dataclass
class _Cut:
    way: Way
    left: int


class _CutOff(ConnectionResetError):
    """The line has carried what it may."""


class Wire(Listener):
    """Before the server on that port of this machine."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.latency = 0.0
        """Seconds before each write, in both directions."""
        self.slices = STEP
        """Bytes at most in each write."""
        self.carried: Counter[Way] = Counter()
        """Bytes, in each direction."""
        self.connections = 0
        self._cuts: list[_Cut] = []
        self._flows = asyncio.Event()
        self._flows.set()

    def cut(self, *, to_server: int | None = None, to_client: int | None = None) -> None:
        """From now on it carries so many bytes that way, and breaks the connection that sends more; once.

        ``to_client=0`` loses the next answer, to whatever the server has done.
        """
        ways: tuple[tuple[Way, int | None], ...] = (("to_server", to_server), ("to_client", to_client))
        self._cuts += [_Cut(way, left) for way, left in ways if left is not None]

    @property
    def cuts(self) -> int:
        """Ordered, and not met yet."""
        return len(self._cuts)

    def stall(self) -> None:
        """Nothing passes, on old connections and new ones, until `resume`."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)

    def reset(self) -> None:
        """Breaks all connections that there are. New ones are taken."""
        asyncio.run_coroutine_threadsafe(self.end_connections(), self._loop).result()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        upstream, server = await asyncio.open_connection("127.0.0.1", self.upstream)
        ways = (
            asyncio.create_task(self._carry("to_server", reader, server)),
            asyncio.create_task(self._carry("to_client", upstream, writer)),
        )
        try:
            await asyncio.gather(*ways)
        except _CutOff:
            await close(server)  # what it was sent comes through, and no more
            raise
        finally:
            for way in ways:
                way.cancel()
            reset(server)
        await close(writer)

    async def _carry(self, way: Way, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await source.read(STEP):
            for at in range(0, len(piece), self.slices):
                await self._write(way, piece[at : at + self.slices], target)
        with contextlib.suppress(OSError):
            target.write_eof()

    async def _write(self, way: Way, piece: bytes, target: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.latency)
        await self._flows.wait()
        cut = next((cut for cut in self._cuts if cut.way == way), None)
        passed = piece if cut is None else piece[: cut.left]
        target.write(passed)
        await target.drain()
        self.carried[way] += len(passed)
        if cut is not None:
            cut.left -= len(passed)
            if len(passed) < len(piece):
                self._cuts.remove(cut)
                raise _CutOff
