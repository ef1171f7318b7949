"""Limits the connections that have not presented a valid secret; when full, the oldest one is closed."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

EVENT_LOOP_PASSES = 10  # event-loop passes; more than a request needs from its arrival to the check of its secret


class UnauthenticatedConnections:
    """The open connections of clients that have not authenticated, oldest first.

    At most `limit` are open. None is closed in its first `grace` seconds, even if others wait: a client with the secret
    needs a round trip or two, and the process may be busy with a burst of webhooks.
    """

    def __init__(self, limit: int, grace: float) -> None:
        self._limit = limit
        self._grace = grace
        self._connections: dict[object, tuple[float, Callable[[], object]]] = {}  # in the order of opening
        self._connection_removed = asyncio.Event()

    def add(self, connection: object, close: Callable[[], object]) -> None:
        """Count a connection; `close` is called to make room for another one."""
        self._connections[connection] = (asyncio.get_running_loop().time(), close)

    def remove(self, connection: object) -> None:
        """Stop counting a connection: it has ended, or its client has presented the secret."""
        if self._connections.pop(connection, None):
            self._connection_removed.set()

    async def make_room(self) -> None:
        """Wait until one more may be added. Closes the oldest connection if it is past its grace period."""
        while len(self._connections) >= self._limit:
            oldest = next(iter(self._connections))
            since, _ = self._connections[oldest]
            remaining = since + self._grace - asyncio.get_running_loop().time()
            if remaining > 0:
                self._connection_removed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(remaining):
                        await self._connection_removed.wait()
                continue
            for _ in range(
                EVENT_LOOP_PASSES
            ):  # requests that have already arrived may authenticate first, however busy the process is
                await asyncio.sleep(0)
            if oldest in self._connections and len(self._connections) >= self._limit:
                _, close = self._connections.pop(oldest)
                close()
