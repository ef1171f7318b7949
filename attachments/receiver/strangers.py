"""The connections on which no request has carried a valid secret: how many there may be, and which one gives way."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

TURNS = 10  # of the event loop; more than lie between the arrival of a request and the look at its secret


class Strangers:
    """The open connections of clients that have not authenticated, oldest first.

    There are `limit` of them at most. Each may stay for `grace` seconds, however many wait: a client with the secret
    needs a round trip or two, and the process may be busy with a burst of webhooks.
    """

    def __init__(self, limit: int, grace: float) -> None:
        self._limit = limit
        self._grace = grace
        self._open: dict[object, tuple[float, Callable[[], object]]] = {}  # a dictionary keeps them in order
        self._left = asyncio.Event()

    def add(self, connection: object, close: Callable[[], object]) -> None:
        """Count a connection; `close` is called when it has to give way."""
        self._open[connection] = (asyncio.get_running_loop().time(), close)

    def discard(self, connection: object) -> None:
        """Do not count a connection any more: it has ended, or its client has the secret."""
        if self._open.pop(connection, None):
            self._left.set()

    async def make_room(self) -> None:
        """Return when one more may be added: close the oldest for it, once that has been open for its grace."""
        while len(self._open) >= self._limit:
            oldest = next(iter(self._open))
            since, _ = self._open[oldest]
            remaining = since + self._grace - asyncio.get_running_loop().time()
            if remaining > 0:
                self._left.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(remaining):
                        await self._left.wait()
                continue
            for _ in range(TURNS):  # what has arrived is looked at first, however busy the process is
                await asyncio.sleep(0)
            if oldest in self._open and len(self._open) >= self._limit:
                _, close = self._open.pop(oldest)
                close()
