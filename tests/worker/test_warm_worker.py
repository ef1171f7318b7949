"""What the warm worker decides by itself; tests/e2e runs it against a real Prefect."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseWorker

from attachments.demo.processes import Process, script_path, wait_for
from attachments.prefect_api.versions import TESTED
from attachments.worker.shutdown import stop_on_sigterm
from attachments.worker.warm_worker import WarmWorker
from tests.worker.prefect_stand_in import ELSEWHERE, pending


class Prefect:
    """Hands out runs; reading a deployment fails with the error."""

    def __init__(self, runs: Sequence[FlowRun] = (), error: Exception | None = None) -> None:
        self._runs = runs
        self._error = error

    async def get_scheduled_flow_runs_for_work_pool(self, **_: Any) -> list[WorkerFlowRunResponse]:
        if not self._runs and self._error is not None:
            raise self._error
        return [WorkerFlowRunResponse(work_pool_id=uuid4(), work_queue_id=uuid4(), flow_run=run) for run in self._runs]

    async def read_deployment(self, *_: Any) -> None:
        assert self._error is not None
        raise self._error

    async def set_flow_run_state(self, *_: Any, **__: Any) -> None:
        pass


class Worker(WarmWorker):
    """A worker that is set up for two runs at a time."""

    type = "warm-in-tests"  # Prefect registers each class under its type

    def __init__(self, prefect: Prefect) -> None:
        super().__init__("pool", limit=2)
        self._stand_in = prefect
        self._two = anyio.CapacityLimiter(2)

    @property
    def client(self) -> PrefectClient:
        return cast("PrefectClient", self._stand_in)

    @property
    def limiter(self) -> anyio.CapacityLimiter:
        return self._two


def of_a_deployment() -> FlowRun:
    run = pending()
    run.deployment_id = uuid4()
    return run


def test_a_run_that_has_not_ended_here_is_not_started_again() -> None:
    """Given back by a worker that took this one for dead, it is handed out again: the limiter has its slot."""
    run = of_a_deployment()

    async def poll() -> None:
        worker = Worker(Prefect([run], httpx.ReadTimeout("")))
        assert await worker.get_and_submit_flow_runs() == [run]
        assert await worker.get_and_submit_flow_runs() == []
        assert worker.limiter.borrowed_tokens == 1

    asyncio.run(poll())


def test_no_more_runs_are_started_than_the_limit_allows() -> None:
    """The others stay in Prefect's queue."""
    runs = [of_a_deployment() for _ in range(3)]

    async def poll() -> None:
        assert await Worker(Prefect(runs, httpx.ReadTimeout(""))).get_and_submit_flow_runs() == runs[:2]

    asyncio.run(poll())


@pytest.mark.parametrize("error", [ObjectNotFound(OSError()), httpx.ReadTimeout(""), ValueError("no JSON")])
def test_a_run_that_cannot_be_started_keeps_no_slot(error: Exception) -> None:
    """Its deployment is gone, Prefect is unreachable, or something else responds. Eight would occupy the worker."""
    run = of_a_deployment()

    async def poll() -> None:
        worker = Worker(Prefect([run], error))
        for _ in range(2):
            assert await worker.get_and_submit_flow_runs() == [run]
            async with asyncio.timeout(10):
                while worker.limiter.borrowed_tokens:
                    await asyncio.sleep(0.01)

    asyncio.run(poll())


@pytest.mark.parametrize(
    "error", [httpx.DecodingError(""), httpx.TooManyRedirects(""), RuntimeError(), ObjectNotFound(OSError())]
)
def test_no_response_ends_the_worker(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its polling for runs nor Prefect's own heartbeat."""

    async def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(BaseWorker, "sync_with_backend", failing)
    worker = Worker(Prefect(error=error))
    worker.is_setup = True
    assert asyncio.run(worker.get_and_submit_flow_runs()) == []
    asyncio.run(worker.sync_with_backend())


def test_prefects_health_check_knows_when_the_worker_polled() -> None:
    """`prefect worker start --with-healthcheck` would have a polling worker restarted."""

    worker = Worker(Prefect())
    time.sleep(2)
    assert not worker.is_worker_still_polling(query_interval_seconds=0.05)
    asyncio.run(worker.get_and_submit_flow_runs())
    assert worker.is_worker_still_polling(query_interval_seconds=0.05)


def test_a_worker_retries_soon_from_its_first_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own set-up uses the worker's client. With Prefect's pauses a start beside busy workers took minutes."""
    used: list[PrefectClient] = []

    async def setup(_: BaseWorker[Any, Any, Any]) -> None:
        used.append(get_client())
        await used[0].__aenter__()  # as Prefect's own does

    monkeypatch.setattr(BaseWorker, "setup", setup)

    async def start() -> None:
        await WarmWorker("pool").setup()
        assert get_client() is not used[0]
        async with used[0]:  # raises if the set-up has closed it
            pass

    with temporary_settings(ELSEWHERE):
        asyncio.run(start())


def test_a_worker_that_does_not_know_its_server_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """In a sentence and with status 1, where Prefect's command would print tracebacks."""
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(SystemExit) as ended:
        asyncio.run(WarmWorker("pool").start())
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("PREFECT_API_URL is not set")


def test_a_worker_on_a_prefect_that_lacks_an_internal_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it takes a run; with the version, and the versions that it was tested with."""
    monkeypatch.delattr("prefect.flow_engine.BaseFlowRunEngine.setup_flow_run_suspension_request")
    with temporary_settings(ELSEWHERE), pytest.raises(SystemExit) as ended:
        asyncio.run(WarmWorker("pool").start())
    assert ended.value.code == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "prefect.flow_engine.FlowRunEngine.setup_flow_run_suspension_request is missing" in message.replace(
        "\n", " "
    )
    assert all(version in message for version in TESTED)


def test_sigterm_stops_the_task_once() -> None:
    """The second one ends the process, whatever the first one still waits for."""

    async def work() -> None:
        stop_on_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    try:
        asyncio.run(work())
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.soak
def test_sigterm_stops_a_worker_whose_parent_ignores_sigint(tmp_path: Path) -> None:
    """As a script's `&` and nohup start it: Prefect's command answers SIGTERM with SIGINT, which is ignored then."""
    log = tmp_path / "worker.log"
    process = Process(
        "worker",
        ["sh", "-c", "trap '' INT; exec \"$0\" worker start --pool pool --type warm", script_path("prefect")],
        {
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_CLIENT_MAX_RETRIES": "0",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        },
        log,
        lambda: "started!" in process.output(),
    )
    process.start()
    try:
        process.signal(signal.SIGTERM)
        wait_for(lambda: process.code is not None, "the worker's end", 60)
    finally:
        process.kill()
    assert process.code == 0
    assert "Traceback" not in process.output()
