"""Returns the runs of dead workers to the queue.

Prefect leaves the runs of a dead worker as they were. Each run's state names the worker that took it, each worker sends
a heartbeat every few seconds, and the live worker with the alphabetically first name returns the dead workers' runs.
"""

import asyncio
import logging
from collections.abc import Callable, Set
from datetime import timedelta
from functools import partial
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterLastHeartbeatTime,
    WorkerFilterStatus,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Crashed

from attachments.prefect_api.paging import all_pages_async
from attachments.runs.run_labels import CRASH_COUNT, count_label
from attachments.runs.state_record import read_record
from attachments.worker.liveness_monitor import LivenessMonitor
from attachments.worker.state_changes import reason, reschedule, set_state
from attachments.worker.timings import MAX_CRASHES, PAGE, WorkerTimings

logger = logging.getLogger("prefect.attachments.worker")


class OrphanReaper:
    """Sends one worker's heartbeat, and restarts the runs of its work pool that no live worker runs.

    Args:
        client: Prefect's API.
        work_pool: the name of the work pool.
        worker: the name of this worker.
        own_runs: the runs that are in progress in this worker, or about to start.
    """

    def __init__(
        self,
        client: PrefectClient,
        work_pool: str,
        worker: str,
        own_runs: Callable[[], Set[UUID]],
        timings: WorkerTimings,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._client = client
        self._work_pool = work_pool
        self._worker = worker
        self._own_runs = own_runs
        self._timings = timings
        self._monitor = LivenessMonitor(timings, clock)
        self._counted: dict[UUID, UUID] = {}
        """By run that is not given back yet: the state in which its crash was counted. It is counted once."""

    async def watch(self) -> None:
        """Send heartbeats and reap orphans until cancelled."""
        while True:
            await asyncio.sleep(self._timings.heartbeat)
            await self.step()

    async def step(self) -> None:
        """Send a heartbeat; if a check is due, reap orphans. Never raises for what Prefect's API responds."""
        try:
            await self._client.send_worker_heartbeat(self._work_pool, self._worker, int(self._timings.heartbeat))
        except Exception as error:  # noqa: BLE001  the outermost loop: heartbeats continue, whatever a proxy responds
            self._monitor.api_failed()
            logger.warning("Prefect did not accept the worker's heartbeat (%s); retrying.", reason(error))
            return
        self._monitor.api_answered()
        try:
            if self._monitor.is_check_due():
                await self._reap()
        except Exception as error:  # noqa: BLE001  as above
            if isinstance(error, httpx.HTTPError):
                self._monitor.api_failed()
            logger.warning("Looking for runs of dead workers failed (%s); retrying.", reason(error))

    async def _reap(self) -> None:
        workers = await self._client.read_workers_for_work_pool(
            self._work_pool,
            WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE])),
            limit=PAGE,
            offset=0,
        )
        living = self._monitor.living({worker.name: worker.last_heartbeat_time for worker in workers}) | {self._worker}
        may_judge_others = self._monitor.can_judge and min(living) == self._worker
        # A run in progress here may end between the request and the response, which then reports it as unfinished.
        ours = set(self._own_runs())
        for run in await self._unfinished_runs():
            unchanged = self._monitor.seconds_unchanged(run)
            if run.id in ours or run.id in self._own_runs():
                continue
            try:
                if await self._is_orphan(run, unchanged, living, may_judge_others=may_judge_others):
                    await self._recover(run, is_own=read_record(run.state).worker == self._worker)
            except httpx.TransportError:
                raise  # Prefect is unreachable, for all of them
            except Exception as error:  # noqa: BLE001  a run may contain anything: continue with the next one
                logger.warning(
                    "Flow run %s has no worker and could not be taken up (%s); retrying.", run.id, reason(error)
                )

    async def _is_orphan(self, run: FlowRun, unchanged: float, living: Set[str], *, may_judge_others: bool) -> bool:
        """Whether no worker is running this run, whose state has not changed for `unchanged` seconds."""
        owner = read_record(run.state).worker
        if owner == self._worker:
            return unchanged > 0
        if owner:
            return unchanged > 0 and may_judge_others and owner not in living
        # The state names no owner: the run is another kind of worker's, or a person set its state. A run that is being
        # cancelled is ended by its worker, if it has one.
        return (
            unchanged >= self._timings.unowned_timeout
            and may_judge_others
            and (run.state_type == StateType.CANCELLING or await self._has_any_worker_died_since(run, living))
        )

    async def _has_any_worker_died_since(self, run: FlowRun, living: Set[str]) -> bool:
        """Whether a worker that was alive when the run entered its state has died since: it may have owned the run."""
        assert run.state is not None  # noqa: S101  the filter selects by state
        since = run.state.timestamp - timedelta(seconds=self._timings.death_margin)
        workers = await self._client.read_workers_for_work_pool(
            self._work_pool,
            WorkerFilter(last_heartbeat_time=WorkerFilterLastHeartbeatTime(after_=since)),
            limit=PAGE,
            offset=0,
        )
        return any(worker.name not in living for worker in workers)

    async def _unfinished_runs(self) -> list[FlowRun]:
        read = partial(
            self._client.read_flow_runs,
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
                )
            ),
            sort=FlowRunSort.ID_DESC,
        )
        return [run async for run in all_pages_async(read)]

    async def _recover(self, run: FlowRun, *, is_own: bool) -> None:
        """Restart a run that no worker runs, unless that has happened too often.

        A run of this worker is an orphan if it ended without a final state: Prefect's engine raises when Prefect
        rejects that state.
        """
        assert run.state is not None  # noqa: S101  the filter selects by state
        is_crash = not is_own or run.state_type == StateType.RUNNING
        is_counted = is_crash and self._counted.get(run.id) != run.state.id
        crashes = (count_label(run.labels, CRASH_COUNT) or 0) + is_counted
        if crashes >= MAX_CRASHES:
            message = (
                f"This run broke off {MAX_CRASHES} times: its worker died, or its final state could not be set. It is "
                "not restarted automatically; look at the workers' memory and logs, then retry it."
            )
            await set_state(self._client, run, Crashed(message=message))
            return
        if is_counted:
            await self._client.update_flow_run_labels(run.id, {CRASH_COUNT: crashes})
            self._counted[run.id] = run.state.id
        if not is_own:
            why = "Its worker is gone"
        elif run.state_type == StateType.RUNNING:
            why = "Its final state could not be set"
        else:
            why = "It could not be started"
        await reschedule(self._client, run, f"{why}; the run starts again.")
        self._counted.pop(run.id, None)
