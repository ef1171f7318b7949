"""Reports the outcome of a run to the webhook requests that wait for it.

One query to Prefect, twice a second, serves all of them: a hundred waiting requests cost no more than one.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from attachments.receiver.flow_runs import FlowRuns, PrefectRefused, PrefectUnavailable, RunOutcome
from attachments.receiver.inbox import Entry

logger = logging.getLogger("attachments.receiver")

POLL_INTERVAL = 0.5  # seconds between queries for the runs
RESPONSE_TIMEOUT = 10.0  # seconds; Prefect may hang without closing the connection
RunFuture = asyncio.Future[RunOutcome]
K = TypeVar("K")


class RunWaiter:
    """The requests that wait, by message until its run is created, then by run."""

    def __init__(self, flow_runs: FlowRuns) -> None:
        self._flow_runs = flow_runs
        self._messages: dict[tuple[str, str], set[RunFuture]] = {}
        self._runs: dict[str, set[RunFuture]] = {}
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Poll Prefect while the block runs."""
        task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def expect_run(self, deployment: str, message_key: str) -> Iterator[RunFuture]:
        """Yield a future for the outcome of the message's next run. Enter before the inbox entry is written."""
        waiting: RunFuture = asyncio.get_running_loop().create_future()
        self._messages.setdefault((deployment, message_key), set()).add(waiting)
        try:
            yield waiting
        finally:
            waiting.cancel()
            self._messages = _without(waiting, self._messages)
            self._runs = _without(waiting, self._runs)

    def run_created(self, entry: Entry, run_id: str) -> None:
        """Record that this run was created for the entry, which has left the inbox."""
        found = self._messages.pop((entry.deployment, entry.message_key), set())
        if found:
            self._runs.setdefault(run_id, set()).update(found)
            self._wake.set()

    async def _poll(self) -> None:
        while True:
            if not self._runs:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(POLL_INTERVAL)
            try:
                async with asyncio.timeout(RESPONSE_TIMEOUT):
                    outcomes = await self._flow_runs.outcomes(list(self._runs))
            except (PrefectUnavailable, PrefectRefused, TimeoutError):
                continue  # the dispatcher logs the outage; each request ends at its own deadline
            for run_id, outcome in outcomes.items():
                for waiting in self._runs.pop(run_id, set()):
                    if not waiting.done():
                        waiting.set_result(outcome)


def _without(waiting: RunFuture, found: dict[K, set[RunFuture]]) -> dict[K, set[RunFuture]]:
    left = {key: others - {waiting} for key, others in found.items()}
    return {key: others for key, others in left.items() if others}
