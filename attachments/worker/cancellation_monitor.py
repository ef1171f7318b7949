"""Ends the runs under way that were cancelled or suspended. Prefect's own workers kill a process to cancel a run."""

import asyncio
import logging

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled

from attachments.worker.run_threads import RunThread, RunThreads
from attachments.worker.state_changes import reason, set_state
from attachments.worker.timings import PAGE, WorkerTimings

logger = logging.getLogger("prefect.attachments.worker")


class CancellationMonitor:
    """Polls Prefect for the runs of these threads."""

    def __init__(self, client: PrefectClient, threads: RunThreads, timings: WorkerTimings) -> None:
        self._client = client
        self._threads = threads
        self._timings = timings

    async def watch(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(self._timings.cancel_poll)
            try:
                await self._poll()
            except Exception as error:  # noqa: BLE001  whatever a proxy responds, polling goes on
                logger.warning("Polling for cancelled runs failed (%s); retrying.", reason(error))

    async def _poll(self) -> None:
        threads = self._threads.snapshot()
        waiting = [run_id for run_id, thread in threads.items() if not thread.cancellation.is_cancelled]
        if not waiting:
            return
        found = await self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(any_=waiting),
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.PAUSED]),
                ),
            ),
            limit=PAGE,
        )
        for run in found:
            if run.id in threads and run.state is not None:
                threads[run.id].suspension.apply(run.state)
        cancelled = [run for run in found if run.state_type == StateType.CANCELLING]
        await asyncio.gather(*(self._cancel(threads[run.id]) for run in cancelled if run.id in threads))

    async def _cancel(self, thread: RunThread) -> None:
        """End a run: at once where it waits for the vendor or a slot, otherwise at its next check."""
        thread.cancellation.cancel()
        await asyncio.wait([thread.ended], timeout=self._timings.cancel_grace)
        run_id = thread.flow_run.id
        try:
            now = await self._client.read_flow_run(run_id)
            if now.state is not None and not now.state.is_final():
                message = "The run was cancelled; what it had stored stays."
                await set_state(self._client, now, Cancelled(message=message))
        except Exception as error:  # noqa: BLE001  whatever a proxy responds, the thread is abandoned
            # Its state stays as it is in Prefect, until the reaper of orphans ends it.
            logger.warning("The state of cancelled flow run %s could not be set (%s).", run_id, reason(error))
        if not thread.ended.done():
            logger.warning("Flow run %s is cancelled; its thread sleeps, and ends when it wakes.", run_id)
        thread.abandon()
        self._threads.forget(thread)
