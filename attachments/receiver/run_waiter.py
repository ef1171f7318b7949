"""Tells a webhook that waits for its run how that ended.

One look at Prefect for all that wait, twice a second: a hundred webhooks that wait cost no more than one.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from attachments.receiver.inbox import Entry
from attachments.receiver.prefect_api import Ending, FlowRuns, PrefectRefused, PrefectUnavailable

logger = logging.getLogger("attachments.receiver")

LOOK = 0.5  # seconds between looks at the runs that somebody waits for
ANSWER_DEADLINE = 10.0  # seconds; Prefect may hang without closing the connection
Waiting = asyncio.Future[Ending]
K = TypeVar("K")


class RunWaiter:
    """Who waits for which message, and for which run."""

    def __init__(self, flow_runs: FlowRuns) -> None:
        self._flow_runs = flow_runs
        self._messages: dict[tuple[str, str], set[Waiting]] = {}
        self._runs: dict[str, set[Waiting]] = {}
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look while the block runs."""
        task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def expecting(self, deployment: str, message_key: str) -> Iterator[Waiting]:
        """The ending of the run that the message's entry in the inbox leads to. Enter before the entry is made."""
        waiting: Waiting = asyncio.get_running_loop().create_future()
        self._messages.setdefault((deployment, message_key), set()).add(waiting)
        try:
            yield waiting
        finally:
            waiting.cancel()
            self._messages = _without(waiting, self._messages)
            self._runs = _without(waiting, self._runs)

    def begun(self, entry: Entry, run_id: str) -> None:
        """The entry has left the inbox for this run."""
        found = self._messages.pop((entry.deployment, entry.message_key), set())
        if found:
            self._runs.setdefault(run_id, set()).update(found)
            self._wake.set()

    async def _look(self) -> None:
        while True:
            if not self._runs:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(LOOK)
            try:
                async with asyncio.timeout(ANSWER_DEADLINE):
                    endings = await self._flow_runs.endings(list(self._runs))
            except (PrefectUnavailable, PrefectRefused, TimeoutError):
                continue  # the dispatcher says that Prefect is away; who waits is told at its deadline
            for run_id, ending in endings.items():
                for waiting in self._runs.pop(run_id, set()):
                    if not waiting.done():
                        waiting.set_result(ending)


def _without(waiting: Waiting, found: dict[K, set[Waiting]]) -> dict[K, set[Waiting]]:
    left = {key: others - {waiting} for key, others in found.items()}
    return {key: others for key, others in left.items() if others}
