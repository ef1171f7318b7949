"""The `warm` worker: flow runs start at once, in the worker's own process.

Prefect's `process` worker starts an interpreter for each run and needs 7 to 8 s for a job of 0.2 s. This one has the
code imported and the connections open, and runs each flow in a thread.

`prefect worker start --pool attachments` finds it through the `prefect.collections` entry point. Other types of
work pool run the same deployments: nothing in the flows depends on this worker.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import anyio.abc
from prefect.client.base import ServerType
from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_WORKER_PREFETCH_SECONDS,
    PREFECT_WORKER_QUERY_SECONDS,
    temporary_settings,
)
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseVariables,
    BaseWorker,
    BaseWorkerResult,
)

from attachments.foundation.loopback import BYPASS, bypass_proxies, is_proxied_for_others
from attachments.foundation.terminal_text import say
from attachments.prefect_api.versions import TESTED
from attachments.worker.allowed_flows import VARIABLE
from attachments.worker.cancellation_monitor import CancellationMonitor
from attachments.worker.clients import ClientPool, worker_client
from attachments.worker.engine import Suspension, run_to_final_state
from attachments.worker.internals import incompatibilities, record_poll
from attachments.worker.orphan_reaper import OrphanReaper
from attachments.worker.run_starter import FlowLoader, RunStarter
from attachments.worker.run_threads import RunThreads
from attachments.worker.shutdown import SIGINT_IS_IGNORED, drain, exit_process, stop_on_sigterm
from attachments.worker.slots import Slots
from attachments.worker.state_changes import reason
from attachments.worker.timings import LIMIT, UNCONFIRMED, WorkerTimings

logger = logging.getLogger("prefect.attachments.worker")


class WarmJobConfiguration(BaseJobConfiguration):
    """A warm run needs no infrastructure, so there is nothing to configure."""


class WarmVariables(BaseVariables):
    """A warm run needs no infrastructure, so there are no variables beyond Prefect's own."""


class WarmWorkerResult(BaseWorkerResult):
    """The result that Prefect requires of a worker. The run's state in Prefect holds the outcome."""


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
        self,
        work_pool_name: str,
        *,
        name: str | None = None,
        limit: int | None = None,
        work_queues: list[str] | None = None,
        prefetch_seconds: float | None = None,
        timings: WorkerTimings = WorkerTimings(),  # noqa: B008  frozen
        leave: Callable[[], object] = exit_process,
        **options: Any,
    ) -> None:
        unique = f"{name or 'warm'} {socket.gethostname()} {os.getpid()} {uuid4().hex[:6]}"
        super().__init__(
            work_pool_name,
            name=unique,
            limit=limit or LIMIT,
            work_queues=work_queues,
            prefetch_seconds=prefetch_seconds,
            **options,
        )
        self._pool_name = work_pool_name
        self._queue_names = sorted(set(work_queues or ()))
        self._prefetch = timedelta(
            seconds=PREFECT_WORKER_PREFETCH_SECONDS.value() if prefetch_seconds is None else prefetch_seconds
        )
        self._timings = timings
        self._leave = leave
        self._flow_loader = FlowLoader(os.environ.get(VARIABLE, ""))
        self._client_pool = ClientPool(self.name)
        self._slots = Slots(lambda: self.limiter)
        self._threads = RunThreads(self._run_in_thread)
        self._tasks: set[asyncio.Task[None]] = set()
        """Tasks of the monitors and of the runs; the reference keeps a task from being garbage-collected."""
        _warn_of_a_proxy(PREFECT_API_URL.value() or "")

    async def start(self, *args: Any, **options: Any) -> None:
        """Poll until stopped, twice a second unless PREFECT_WORKER_QUERY_SECONDS is set in the environment."""
        if not PREFECT_API_URL.value():
            # Prefect's command would print two tracebacks.
            say(
                "PREFECT_API_URL is not set, so this worker does not know its Prefect server. Set it, for example to "
                "http://127.0.0.1:4200/api, and start the worker again.",
                is_error=True,
            )
            raise SystemExit(1)
        _refuse_an_incompatible_prefect()
        if SIGINT_IS_IGNORED:
            stop_on_sigterm()
        is_set = "PREFECT_WORKER_QUERY_SECONDS" in os.environ
        with temporary_settings({} if is_set else {PREFECT_WORKER_QUERY_SECONDS: self._timings.poll}):
            await super().start(*args, **options)

    async def setup(self) -> None:
        """Start the monitors beside the polling."""
        client = worker_client()
        async with client:
            with AsyncClientContext.model_construct(client=client):  # Prefect's own `setup` takes its client from here
                await super().setup()
        if client.server_type == ServerType.SERVER:
            # Prefect's server on SQLite drops new events that arrive in a batch with known ones (docs/upstream).
            EventsWorker.set_client_override(PrefectEventsClient, checkpoint_every=UNCONFIRMED, checkpoint_interval=1.0)
        reaper = OrphanReaper(client, self._pool_name, self.name, lambda: self._slots.runs, self._timings)
        for watch in (reaper.watch(), CancellationMonitor(client, self._threads, self._timings).watch()):
            self._keep(asyncio.create_task(watch))

    async def teardown(self, *exc_info: Any) -> None:
        """Give runs in progress some seconds to finish, then return the others to the queue and exit the process."""
        with anyio.CancelScope(shield=True):
            await drain(self.client, self._threads, self._timings, self._leave)
            for task in tuple(self._tasks):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            EventsWorker.set_client_override(None)
        await super().teardown(*exc_info)

    async def sync_with_backend(self) -> None:
        """Send Prefect's own heartbeat. Once the worker is set up, a failed heartbeat does not stop it."""
        try:
            await super().sync_with_backend()
        except Exception as error:
            if not self.is_setup:
                raise
            logger.warning("Prefect's own heartbeat failed (%s); retrying.", reason(error))

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll for runs and start them. Prefect's own method stops the worker after a minute without the API."""
        try:
            found = await self.client.get_scheduled_flow_runs_for_work_pool(
                work_pool_name=self._pool_name,
                work_queue_names=self._queue_names,
                scheduled_before=datetime.now(UTC) + self._prefetch,
            )
        except ObjectNotFound:
            found = []  # Prefect's own heartbeat creates the work pool
        except Exception as error:  # noqa: BLE001  polling continues, whatever a proxy responds
            logger.warning("Polling for runs failed (%s); retrying.", reason(error))
            return []
        record_poll(self)
        started: list[FlowRun] = []
        for flow_run in (entry.flow_run for entry in found):
            try:
                is_new = self._slots.take(flow_run.id)
            except anyio.WouldBlock:
                break  # the worker is at its limit
            if not is_new:
                continue  # already in progress here: another worker may have returned it to the queue
            self.get_flow_run_logger(flow_run).info("Worker '%s' submitting flow run '%s'", self.name, flow_run.id)
            self._keep(asyncio.create_task(self._start_run(flow_run)))
            started.append(flow_run)
        return started

    async def run(
        self,
        flow_run: FlowRun,
        configuration: WarmJobConfiguration,  # noqa: ARG002  Prefect's signature
        task_status: anyio.abc.TaskStatus[str] | None = None,  # type: ignore[override]  # Prefect stores it as text
    ) -> WarmWorkerResult:
        """Run a flow in a thread; its state in Prefect says how it ended."""
        assert flow_run.deployment_id is not None  # noqa: S101  a work pool's runs come from deployments
        flow = await self._flow_loader.load(flow_run, await self.client.read_deployment(flow_run.deployment_id))
        if task_status:
            task_status.started(self.name)
        await self._threads.run(flow, flow_run)
        return WarmWorkerResult(status_code=0, identifier=self.name)

    async def _start_run(self, flow_run: FlowRun) -> None:
        """Run a flow to its end. A run that cannot be started waits for the next poll; its state names its owner."""
        try:
            flow = await RunStarter(self.client, self.name, self._flow_loader, self._slots).take(flow_run)
            if flow is not None:
                await self._threads.run(flow, flow_run)
        except Exception as error:  # noqa: BLE001  the reaper restarts a run that has reached no final state
            logger.warning("Flow run %s broke off (%s).", flow_run.id, type(error).__name__)
        finally:
            self._slots.release(flow_run.id)

    def _run_in_thread(self, flow: Flow[..., Any], flow_run: FlowRun, suspension: Suspension) -> None:
        with self._client_pool.acquire():
            run_to_final_state(flow, flow_run, suspension)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _warn_of_a_proxy(url: str) -> None:
    bypass_proxies(url)
    if is_proxied_for_others(urlsplit(url).hostname or ""):
        logger.warning(
            "The first requests of `prefect worker start` went to the proxy of the environment, with Prefect's "
            "password. Set %s in the worker's environment.",
            BYPASS,
        )


def _refuse_an_incompatible_prefect() -> None:
    """Raises `SystemExit` when the installed Prefect lacks an interface that the worker needs."""
    if problems := list(incompatibilities()):
        say(
            f"This worker does not run with the installed Prefect. Install version {' or '.join(TESTED)}, with which "
            f"it was tested. {' '.join(problems)}",
            is_error=True,
        )
        raise SystemExit(1)
