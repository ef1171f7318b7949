"""The `warm` worker: flow runs start at once, in the worker's own process.

Prefect's `process` worker starts an interpreter for each run and needs 7 to 8 s for a job of 0.2 s. This one has the
code imported and the connections open, and runs each flow in a thread.

`prefect worker start --pool attachments` finds it through the `prefect.collections` entry point. Other types of
work pool run the same deployments: nothing in the flows depends on this worker.

**Taking up what a dead worker left.** Prefect leaves the runs of a worker that died as they were. Each
run's state names the worker that took it, each worker sends a heartbeat every few seconds, and the living worker whose
name comes first gives the runs of silent workers back to the queue.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import anyio
import anyio.abc
import httpx
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterLastHeartbeatTime,
    WorkerFilterStatus,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import SyncClientContext
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.flow_engine import run_flow
from prefect.flows import Flow, load_flow_from_flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.states import Cancelled, Crashed, Pending, Scheduled
from prefect.utilities.engine import propose_state
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseVariables,
    BaseWorker,
    BaseWorkerResult,
)

from attachments.foundation.cancellation import CURRENT, Cancellation
from attachments.foundation.loopback import BYPASS, bypass_proxies, is_proxied_for_others
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import bounded, say
from attachments.prefect_api.prefect_retry import add_retries
from attachments.runs.deployment_spec import UPKEEP, load_flow
from attachments.runs.run_labels import CRASH_COUNT, count_label
from attachments.runs.state_record import StateRecord, read_record, write_record
from attachments.worker.allowed_flows import NO_DEPLOYMENT, VARIABLE, FlowNotAllowed, check_allowed, is_named
from attachments.worker.suspension import apply_suspension, disable_suspension_observer

HEARTBEAT_INTERVAL = 4.0  # seconds between heartbeats
HEARTBEAT_TIMEOUT = 20.0  # seconds without a heartbeat after which a worker counts as dead
CANCEL_LOOK = 1.5  # seconds between looks for runs under way that somebody cancels or suspends
CANCEL_GRACE = 2.0  # seconds that a cancelled run gets to end by itself; then it is left to itself
LOOK = 5.0  # seconds between looks for runs of dead workers
POLL = 0.5  # seconds between looks for new runs, unless PREFECT_WORKER_QUERY_SECONDS says otherwise
DRAIN = 20.0  # seconds that runs under way get to finish after SIGTERM
HAND_BACK = 10.0  # seconds, after that, for handing back the others: Prefect's client alone would try for minutes
LIMIT = 8  # runs at a time, unless `--limit` says otherwise
UPKEEP_SLOTS = 5  # runs of the work queue for upkeep at a time, beside those; more of them take the others' slots
MAX_CRASHES = 5  # a run that has broken off so often, mostly with its worker, is not tried again: it may be the cause
UNSIGNED = 30.0  # seconds in one state after which a run whose state names no worker may be a dead one's
DEATH_MARGIN = 60.0  # seconds; clocks differ, and a busy Prefect hears beats late
UNCONFIRMED = 8  # events that are sent again after a connection broke; Prefect's own 700 make its server drop others
FLOWS_KEPT = 64  # deployment versions whose code stays loaded
PAGE = 200

SIGINT_IS_IGNORED = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""As a script's `&` starts its children. Prefect's command answers SIGTERM with SIGINT, which then ends nothing.

Looked at when this is imported: Prefect's command does that before it sets handlers of its own.
"""

logger = logging.getLogger("prefect.attachments.worker")


class WarmJobConfiguration(BaseJobConfiguration):
    """A warm run needs no infrastructure, so there is nothing to configure."""


class WarmVariables(BaseVariables):
    """A warm run needs no infrastructure, so there are no variables beyond Prefect's own."""


class WarmWorkerResult(BaseWorkerResult):
    """How a run in the worker's process ended. Its state in Prefect says more."""


class WarmWorker(BaseWorker[WarmJobConfiguration, WarmVariables, WarmWorkerResult]):
    """Runs flows in threads of its own process. Its name gets a suffix, so that no two processes share one."""

    type = "warm"
    job_configuration = WarmJobConfiguration
    job_configuration_variables = WarmVariables
    _display_name = "Warm"
    _description = (
        "Runs flows at once, in threads of a worker that has their code loaded. Made for short, frequent runs."
    )
    _documentation_url = "https://docs.prefect.io/v3/concepts/workers"

    def __init__(
        self, work_pool_name: str, *, name: str | None = None, limit: int | None = None, **options: Any
    ) -> None:
        unique = f"{name or 'warm'} {socket.gethostname()} {os.getpid()} {uuid4().hex[:6]}"
        super().__init__(work_pool_name, name=unique, limit=limit or LIMIT, **options)
        self._allowed_flows = os.environ.get(VARIABLE, "")
        url = PREFECT_API_URL.value() or ""
        bypass_proxies(url)
        if is_proxied_for_others(urlsplit(url).hostname or ""):
            logger.warning(
                "The first requests of `prefect worker start` went to the proxy of the environment, with Prefect's "
                "password. Set %s in the worker's environment.",
                BYPASS,
            )
        self._clients = _ClientPool(self.name)
        self._under_way: dict[UUID, _UnderWay] = {}
        self._upkeep: set[UUID] = set()
        """Runs of the work queue for upkeep that hold an upkeep slot."""
        self._flows: dict[str, Flow[..., Any]] = {}
        """By deployment and version."""
        self._watches: list[asyncio.Task[None]] = []

    async def start(self, *args: Any, **options: Any) -> None:
        """Poll until told to stop. Looks for runs twice a second unless the setting was set by hand."""
        if not PREFECT_API_URL.value():
            # Prefect's command would print two tracebacks.
            say(
                "PREFECT_API_URL is not set, so this worker does not know its Prefect server. Set it, for example to "
                "http://127.0.0.1:4200/api, and start the worker again.",
                is_error=True,
            )
            raise SystemExit(1)
        if SIGINT_IS_IGNORED:
            _stop_on_sigterm()
        settings = {} if "PREFECT_WORKER_QUERY_SECONDS" in os.environ else {PREFECT_WORKER_QUERY_SECONDS: POLL}
        with temporary_settings(settings):
            await super().start(*args, **options)

    async def setup(self) -> None:
        """Start the heartbeat and the watch over dead workers beside the polling."""
        await super().setup()
        disable_suspension_observer()
        if self.client.server_type == ServerType.SERVER:
            # Its server on SQLite drops new events beside a batch that it has already (docs/upstream).
            EventsWorker.set_client_override(PrefectEventsClient, checkpoint_every=UNCONFIRMED, checkpoint_interval=1.0)
        self._watches = [asyncio.create_task(self._keep_watch()), asyncio.create_task(self._poll_cancellations())]

    async def teardown(self, *exc_info: Any) -> None:
        """Let what is under way finish, for `DRAIN` seconds; hand the rest back and end without it."""
        with anyio.CancelScope(shield=True):
            await self._drain()
            for watch in self._watches:
                watch.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await watch
            EventsWorker.set_client_override(None)
        await super().teardown(*exc_info)

    async def _drain(self) -> None:
        if self._under_way:
            runs = counted(len(self._under_way), "run")
            logger.warning("Stopping: %s under way may finish within %.0f s.", runs, DRAIN)
        with anyio.move_on_after(DRAIN):
            while self._under_way:
                await anyio.sleep(0.1)
        if not self._under_way:
            return
        try:
            with anyio.move_on_after(HAND_BACK) as handing_back:
                for run_id in list(self._under_way):
                    with suppress(httpx.HTTPError, ObjectNotFound):
                        now = await self.client.read_flow_run(run_id)
                        if now.state is not None and not now.state.is_final():
                            await self._give_back(now, "Its worker was stopped; the run starts again.")
            if handing_back.cancelled_caught:
                logger.warning("Prefect does not answer; another worker takes up what was under way.")
        finally:
            # A thread cannot be stopped. What it has written is no more than after a crash: nothing under a final key.
            logging.shutdown()
            os._exit(0)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: WarmJobConfiguration,  # noqa: ARG002  Prefect's signature
        task_status: anyio.abc.TaskStatus[str] | None = None,  # type: ignore[override]  # Prefect stores it as text
    ) -> WarmWorkerResult:
        """Run a flow in a thread; its state in Prefect tells how it ended."""
        assert flow_run.deployment_id is not None  # noqa: S101  a work pool's runs come from deployments
        flow = await self._flow_of(flow_run, await self.client.read_deployment(flow_run.deployment_id))
        if task_status:
            task_status.started(self.name)
        await self._in_thread(flow, flow_run)
        return WarmWorkerResult(status_code=0, identifier=self.name)

    async def _in_thread(self, flow: Flow[..., Any], flow_run: FlowRun) -> None:
        under_way = self._under_way[flow_run.id] = _UnderWay(flow_run, self._clients)
        # Not here: the thread goes on when whoever waits for it is cancelled.
        await under_way.run(flow, at_end=lambda: self._forget(under_way))

    async def _flow_of(self, flow_run: FlowRun, deployment: DeploymentResponse) -> Flow[..., Any]:
        """The flow that a deployment names. Raises `FlowNotAllowed`, and whatever the flow's code raises."""
        check_allowed(deployment.entrypoint, has_pull_steps=bool(deployment.pull_steps), allowed=self._allowed_flows)
        # Not `updated`, which changes whenever a worker has asked for runs.
        version = repr((deployment.id, deployment.version_id, deployment.entrypoint, deployment.pull_steps))
        if version not in self._flows:
            if len(self._flows) >= FLOWS_KEPT:
                self._flows.clear()
            if deployment.pull_steps or not deployment.entrypoint or ":" in deployment.entrypoint:
                self._flows[version] = await load_flow_from_flow_run(flow_run, use_placeholder_flow=False)
            else:
                self._flows[version] = await asyncio.to_thread(
                    load_flow,
                    deployment.entrypoint,
                    is_named=is_named(deployment.entrypoint, self._allowed_flows),
                )
        return self._flows[version]

    async def _poll_cancellations(self) -> None:
        """End the runs under way that somebody cancels or suspends. Prefect's own workers kill a process to cancel."""
        while True:
            await asyncio.sleep(CANCEL_LOOK)
            try:
                await self._end_what_is_to_end()
            except Exception as error:  # noqa: BLE001  whatever a proxy answers, the worker must go on looking
                logger.warning("Prefect does not say which runs are to end (%s); it is asked again.", _reason(error))

    async def _end_what_is_to_end(self) -> None:
        # A copy, made in one step: threads that end take theirs out meanwhile.
        under_way = dict(self._under_way)
        waiting = [run_id for run_id, run in under_way.items() if not run.cancellation.is_cancelled]
        if not waiting:
            return
        found = await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(any_=waiting),
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.PAUSED]),
                ),
            ),
            limit=PAGE,
        )
        for run in found:
            apply_suspension(run)
        cancelled = [run for run in found if run.state_type == StateType.CANCELLING]
        await asyncio.gather(*(self._cancel(under_way[run.id]) for run in cancelled if run.id in under_way))

    async def _cancel(self, under_way: "_UnderWay") -> None:
        """End a run: at once where it waits for the vendor or a slot, else when it next looks."""
        under_way.cancellation.cancel()
        await asyncio.wait([under_way.ended], timeout=CANCEL_GRACE)
        try:
            now = await self.client.read_flow_run(under_way.flow_run.id)
            if now.state is not None and not now.state.is_final():
                await self._set_state(now, Cancelled(message="The run was cancelled; what it had stored stays."))
        except Exception as error:  # noqa: BLE001  whatever a proxy answers, the run is left
            # It stays as it is in Prefect, and the watch over runs without a worker ends it.
            logger.warning("Prefect was not told that a run is cancelled (%s).", type(error).__name__)
        if not under_way.ended.done():
            logger.warning(
                "Flow run %s is cancelled; its thread sleeps, and ends when it wakes.", under_way.flow_run.id
            )
        under_way.leave()
        self._forget(under_way)

    def _forget(self, under_way: "_UnderWay") -> None:
        """Called by its thread at its end as well, when the same run may have been started anew."""
        if self._under_way.get(under_way.flow_run.id) is under_way:
            self._under_way.pop(under_way.flow_run.id, None)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Look for runs. Prefect's own loop gives up after a minute without the API; this one does not."""
        try:
            return await super().get_and_submit_flow_runs()
        except Exception as error:  # noqa: BLE001  whatever a proxy answers, the worker must go on looking
            logger.warning("Prefect names no runs (%s); looking again in a moment.", _reason(error))
        return []

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Run a flow, to its end.

        Prefect's own reads the deployment three times, writes labels and a process id, and sends events, which on
        embedded SQLite takes longer than our runs; and it lets one failed call end the worker. Here the run waits for
        the next look, and its state tells whose it is.
        """
        try:
            flow = await self._taken(flow_run)
            self._submitting_flow_run_ids.discard(flow_run.id)
            if flow is not None:
                await self._in_thread(flow, flow_run)
        except Exception as error:  # noqa: BLE001  the watch takes up what did not come to a final state
            logger.warning("Flow run %s broke off (%s).", flow_run.id, type(error).__name__)
        finally:
            self._submitting_flow_run_ids.discard(flow_run.id)
            self._upkeep.discard(flow_run.id)
            self._release_limit_slot(flow_run.id)
            if self._cancelling_observer is not None:
                self._cancelling_observer.remove_in_flight_flow_run_id(flow_run.id)

    async def _taken(self, flow_run: FlowRun) -> Flow[..., Any] | None:
        """The flow of a run that is this worker's now; None when the run is not to be started."""
        if flow_run.deployment_id is None:
            await self._propose_crashed_state(flow_run, NO_DEPLOYMENT)
            return None
        try:
            deployment = await self.client.read_deployment(flow_run.deployment_id)
            if not await self._propose_pending_state(flow_run):
                return None
        except ObjectNotFound:
            logger.warning("Flow run %s is cancelled: its deployment is gone.", flow_run.id)
            await self._set_state(flow_run, Cancelled(message="Its deployment does not exist any more."))
            return None
        except (httpx.HTTPError, ValueError) as error:  # ValueError: what answers is not Prefect
            logger.warning("Flow run %s could not be started yet (%s).", flow_run.id, type(error).__name__)
            return None
        if deployment.work_queue_name == UPKEEP:
            self._take_upkeep_slot(flow_run)
        try:
            return await self._flow_of(flow_run, deployment)
        except httpx.TransportError as error:
            logger.warning("Flow run %s could not be started yet (%s).", flow_run.id, type(error).__name__)
        except FlowNotAllowed as refusal:
            logger.warning("Flow run %s is not started: its deployment's code is not allowed here.", flow_run.id)
            await self._propose_crashed_state(flow_run, str(refusal))
        except Exception as error:  # whatever the flow's code raises when it is loaded
            logger.exception("Flow run %s cannot be run.", flow_run.id)
            await self._propose_crashed_state(
                flow_run, f"The flow cannot be loaded: {type(error).__name__}: {bounded(str(error))}"
            )
        return None

    def _take_upkeep_slot(self, flow_run: FlowRun) -> None:
        """Release the run's slot: it may wait for runs that need one. No-op while all upkeep slots are taken."""
        if len(self._upkeep) < UPKEEP_SLOTS:
            self._upkeep.add(flow_run.id)
            self._release_limit_slot(flow_run.id)

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Take a run, in this worker's name; False when it may not be started."""
        try:
            taken: State[None] = write_record(Pending(), StateRecord(worker=self.name))
            state = await propose_state(self.client, taken, flow_run_id=flow_run.id)
        except Abort as abort:
            logger.info("Flow run %s is not started: %s", flow_run.id, bounded(str(abort)))
            return False
        return state.is_pending()

    async def sync_with_backend(self) -> None:
        """Prefect's own heartbeat, which likewise must outlive the API's absence once the worker is set up."""
        if not self.is_setup:
            # The first request of this client: with Prefect's own pauses a start beside busy workers took minutes.
            add_retries(self.client)
        try:
            await super().sync_with_backend()
        except Exception as error:
            if not self.is_setup:
                raise
            logger.warning("Prefect does not hear of the worker (%s); the worker goes on.", _reason(error))

    # ---- the watch over dead workers ----

    async def _keep_watch(self) -> None:
        watch = LivenessMonitor()
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            try:
                await self.client.send_worker_heartbeat(self._work_pool_name, self.name, int(HEARTBEAT_INTERVAL))
            except Exception as error:  # noqa: BLE001  the outermost loop: whatever a proxy answers, the worker must go on beating
                watch.api_failed()
                logger.warning("Prefect does not take the worker's heartbeat (%s); it is tried again.", _reason(error))
                continue
            watch.api_answered()
            try:
                if watch.is_time_to_look():
                    await self._reap_orphans(watch)
            except Exception as error:  # noqa: BLE001  as above
                if isinstance(error, httpx.HTTPError):
                    watch.api_failed()
                logger.warning("The runs of dead workers could not be looked for (%s); retrying.", _reason(error))

    async def _reap_orphans(self, watch: "LivenessMonitor") -> None:
        workers = await self.client.read_workers_for_work_pool(
            self._work_pool_name,
            WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE])),
            limit=PAGE,
            offset=0,
        )
        living = watch.living({worker.name: worker.last_heartbeat_time for worker in workers}) | {self.name}
        may_judge_others = watch.can_judge and min(living) == self.name
        # What is under way here when Prefect is asked may have ended, and be told, before its answer is read.
        ours = self._at_hand()
        for run in await self._unfinished_runs():
            stood = watch.seconds_unchanged(run)
            if run.id in ours | self._at_hand():
                continue
            try:
                if await self._is_left(run, stood, living, may_judge_others=may_judge_others):
                    await self._take_up(run, is_ours=read_record(run.state).worker == self.name)
            except httpx.TransportError:
                raise  # Prefect is away, for all of them
            except Exception as error:  # noqa: BLE001  others may write what they like into a run: the next one is taken up
                reason = _reason(error)
                logger.warning("Flow run %s has no worker and could not be taken up (%s); retrying.", run.id, reason)

    async def _is_left(self, run: FlowRun, stood: float, living: Set[str], *, may_judge_others: bool) -> bool:
        """Whether nobody runs a run that has been in its state for so many seconds."""
        owner = read_record(run.state).worker
        if owner == self.name:
            return stood > 0
        if owner:
            return stood > 0 and may_judge_others and owner not in living
        # Of another kind of worker, or somebody has changed its state. Its worker ends what is to be cancelled.
        return (
            stood >= UNSIGNED
            and may_judge_others
            and (run.state_type == StateType.CANCELLING or await self._has_seen_a_death(run, living))
        )

    async def _has_seen_a_death(self, run: FlowRun, living: Set[str]) -> bool:
        """Whether a worker has died that was alive when the run came into its state: it may be that one's."""
        assert run.state is not None  # noqa: S101  the filter asks for states
        since = run.state.timestamp - timedelta(seconds=DEATH_MARGIN)
        workers = await self.client.read_workers_for_work_pool(
            self._work_pool_name,
            WorkerFilter(last_heartbeat_time=WorkerFilterLastHeartbeatTime(after_=since)),
            limit=PAGE,
            offset=0,
        )
        return any(worker.name not in living for worker in workers)

    def _at_hand(self) -> set[UUID]:
        """The runs that are under way here, or about to be."""
        return self._under_way.keys() | self._submitting_flow_run_ids

    async def _unfinished_runs(self) -> list[FlowRun]:
        return await self.client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
                )
            ),
            sort=FlowRunSort.ID_DESC,
            limit=PAGE,
        )

    async def _take_up(self, run: FlowRun, *, is_ours: bool) -> None:
        """Let a run that nobody runs any more start again, unless that has happened too often.

        One of this worker's own has broken off: Prefect's engine raises when Prefect does not take a run's final state.
        """
        is_counted = not is_ours or run.state_type == StateType.RUNNING
        deaths = (count_label(run.labels, CRASH_COUNT) or 0) + is_counted
        if deaths >= MAX_CRASHES:
            message = (
                f"This run broke off {MAX_CRASHES} times: its worker died, or its final state could not be set. It is "
                "not started again by itself; look at the workers' memory and logs, then retry it."
            )
            await self._set_state(run, Crashed(message=message))
            return
        if is_counted:
            await self.client.update_flow_run_labels(run.id, {CRASH_COUNT: deaths})
        if not is_ours:
            why = "Its worker is gone"
        elif run.state_type == StateType.RUNNING:
            why = "Its final state could not be set"
        else:
            why = "It could not be started"
        await self._give_back(run, f"{why}; the run starts again.")

    async def _give_back(self, run: FlowRun, message: str) -> None:
        if run.state_type == StateType.CANCELLING:
            await self._set_state(run, Cancelled(message="Cancelled while its worker was gone."))
        else:
            await self._set_state(run, Scheduled(name="AwaitingRetry", message=message))

    async def _set_state(self, run: FlowRun, state: State[None]) -> None:
        with suppress(ObjectNotFound, Abort):
            await self.client.set_flow_run_state(run.id, state, force=True)
            logger.warning("Flow run %s is now %s: %s", run.id, state.name, bounded(state.message or ""))


def _reason(error: Exception) -> str:
    """Why Prefect could not be asked: a status or a kind of error, never a text of unknown origin."""
    return str(error.response.status_code) if isinstance(error, httpx.HTTPStatusError) else type(error).__name__


class LivenessMonitor:
    """What this worker has heard of the others, by its own clock, since Prefect was last away."""

    def __init__(self) -> None:
        self._since: float | None = None  # when the API began to answer without a break
        self._looked = -LOOK
        self._heard: dict[str, tuple[datetime | None, float]] = {}  # name → its last beat, when we first saw that beat
        self._before: dict[UUID, tuple[UUID, float]] = {}  # run → its state at the look before, seen since when
        self._seen: dict[UUID, tuple[UUID, float]] = {}

    def api_answered(self) -> None:
        """Note that Prefect answers."""
        if self._since is None:
            self._since = anyio.current_time()

    def api_failed(self) -> None:
        """Note that Prefect does not answer: nobody's silence means anything now."""
        self._since = None

    def is_time_to_look(self) -> bool:
        """Whether a look for runs without a worker is due; starts that look."""
        if anyio.current_time() - self._looked < LOOK:
            return False
        self._looked = anyio.current_time()
        self._before, self._seen = self._seen, {}
        return True

    def living(self, beats: Mapping[str, datetime | None]) -> set[str]:
        """The workers whose heartbeat changed within `HEARTBEAT_TIMEOUT`, from the last ones that the server knows."""
        now = anyio.current_time()
        for name, beat in beats.items():
            if name not in self._heard or self._heard[name][0] != beat:
                self._heard[name] = (beat, now)
        self._heard = {name: known for name, known in self._heard.items() if name in beats}
        return {name for name, (_, when) in self._heard.items() if now - when < HEARTBEAT_TIMEOUT}

    @property
    def can_judge(self) -> bool:
        """Only who has heard the API for as long as a silence takes may call another worker dead."""
        return self._since is not None and anyio.current_time() - self._since >= HEARTBEAT_TIMEOUT

    def seconds_unchanged(self, run: FlowRun) -> float:
        """For how long the run has been seen in the very same state, at each look; to be asked at each."""
        assert run.state is not None  # noqa: S101  the filter asks for states
        now = anyio.current_time()
        state, since = self._before.get(run.id, (run.state.id, now))
        self._seen[run.id] = (run.state.id, since if state == run.state.id else now)
        return now - self._seen[run.id][1]


class _ClientPool:
    """Clients of Prefect's API, each for one run at a time.

    A new one for each run would cost it an SSL context, a connection and a request for a token.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._idle: list[SyncClientContext] = []

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Let whatever of Prefect's is called in this thread meanwhile use one of them."""
        try:
            context = self._idle.pop()
        except IndexError:
            context = self._new()
        entered = False
        try:
            with context:
                entered = True
                yield
        finally:
            if entered:
                self._idle.append(context)
            else:  # the first asks Prefect for its version; where that fails, the context is of no use
                for _ in range(2):  # as often as it was entered
                    context.client.__exit__(None, None, None)

    def _new(self) -> SyncClientContext:
        context = SyncClientContext()
        context.client.__enter__()  # once more than it is left, so that it stays open
        add_retries(context.client)
        _sign(context.client, self._worker)
        return context


def _stop_on_sigterm() -> None:
    """Let the first SIGTERM stop the calling task, as SIGINT does in a terminal. A second one ends the process."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  a coroutine runs in one

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop)


def _run(flow: Flow[..., Any], flow_run: FlowRun, clients: _ClientPool) -> None:
    """Run to a final state, which Prefect is told. Another worker that has taken the run meanwhile is no error."""
    with suppress(Abort, Pause), clients.acquire():
        run_flow(flow, flow_run=flow_run, return_type="state")


def _sign(client: SyncPrefectClient, worker: str) -> None:
    """Let the states of a run that goes on name the worker: in one step with the state, and without another call."""
    told = partial(type(client).set_flow_run_state, client)  # Prefect's own: signed twice, a client has one layer

    def set_flow_run_state(flow_run_id: UUID | str, state: State[Any], force: bool = False) -> Any:
        if state.is_running() and not state.message:
            state = write_record(state, StateRecord(worker=worker))
        return told(flow_run_id, state, force)

    client.set_flow_run_state = set_flow_run_state  # type: ignore[method-assign]


class _UnderWay:
    """A run in a thread of its own, which does not keep the process from ending."""

    def __init__(self, flow_run: FlowRun, clients: _ClientPool) -> None:
        self.flow_run = flow_run
        self._clients = clients
        self.cancellation = Cancellation()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """When the thread has ended, or is not waited for any more."""

    async def run(self, flow: Flow[..., Any], *, at_end: Callable[[], object]) -> None:
        """Run the flow, until it ends or `leave` is called. Raises what ends the thread, which calls `at_end`."""
        loop = asyncio.get_running_loop()

        def target() -> None:
            CURRENT.set(self.cancellation)
            error: BaseException | None = None
            try:
                _run(flow, self.flow_run, self._clients)
            except BaseException as caught:  # noqa: BLE001  handed to whoever waits
                error = caught
            finally:
                at_end()
            loop.call_soon_threadsafe(self._settle, error)

        threading.Thread(target=target, name=f"flow-run-{self.flow_run.id}", daemon=True).start()
        await self.ended

    def leave(self) -> None:
        """Wait for the thread no longer. It ends as soon as it notices that the run is cancelled."""
        self._settle(None)

    def _settle(self, error: BaseException | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            self.ended.set_exception(error)
        else:
            # What a flow says to its interpreter (SystemExit) is not said to the worker.
            self.ended.set_exception(RuntimeError(type(error).__name__))
