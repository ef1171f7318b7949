"""What the warm worker decides by itself; tests/e2e runs it against a real Prefect."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from prefect import flow_engine
from prefect._flow_run_suspension import FlowRunSuspensionRequest
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import WorkerFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.context import SyncClientContext
from prefect.exceptions import Abort, ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED, temporary_settings
from prefect.states import Cancelling, Pending, Running
from prefect.workers.base import BaseWorker

from attachments.demo.processes import Process, script, wait_for
from attachments.runs.run_labels import CRASH_COUNT
from attachments.runs.state_record import StateRecord, write_record
from attachments.worker import warm_worker as figures
from attachments.worker.warm_worker import LivenessMonitor, WarmWorker, _stop_on_sigterm, _UnderWay

ELSEWHERE = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
"""Settings for a Prefect that is not there, and is not asked."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(figures.anyio, "current_time", lambda: now[0])
    return now


def pending() -> FlowRun:
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="run", state=Pending())


def test_a_run_that_is_not_over_here_is_not_started_again() -> None:
    """Given back by a watch that took it for dead, it is found again: Prefect's worker knows whose slot it has."""
    run = pending()
    found = WorkerFlowRunResponse(work_pool_id=uuid4(), work_queue_id=uuid4(), flow_run=run)

    async def look() -> None:
        worker = WarmWorker("pool", limit=2)
        worker._limiter = anyio.CapacityLimiter(2)
        worker._limiter.acquire_on_behalf_of_nowait(run.id)
        assert await worker._submit_scheduled_flow_runs([found]) == []
        assert worker._limiter.borrowed_tokens == 1

    asyncio.run(look())


def test_the_watch_counts_from_when_a_state_was_first_seen(clock: list[float]) -> None:
    """A new state begins anew, and so does a run that was not there at the look before."""
    watch, run = LivenessMonitor(), pending()
    told = []
    for seconds in (0, 5, 5):
        clock[0] += seconds
        assert watch.is_time_to_look()
        told.append(watch.seconds_unchanged(run))
    run.state = Pending(timestamp=datetime.now(UTC))
    clock[0] += 5
    assert watch.is_time_to_look()
    told.append(watch.seconds_unchanged(run))
    clock[0] += 5
    assert watch.is_time_to_look()
    clock[0] += 5
    assert watch.is_time_to_look()
    told.append(watch.seconds_unchanged(run))
    assert told == [0, 5, 10, 0, 0]


class Asked:
    """Prefect, for a worker's watch: one run, and the workers that have died since it came into its state."""

    def __init__(self, run: FlowRun, *, dead: Sequence[str] = (), before_it_answers: Callable[[], object]) -> None:
        self._run = run
        self._dead = [SimpleNamespace(name=name, last_heartbeat_time=None) for name in dead]
        self._before_it_answers = before_it_answers

    async def read_workers_for_work_pool(self, _: str, which: WorkerFilter, **__: Any) -> Sequence[Any]:
        return self._dead if which.last_heartbeat_time else []

    async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
        self._before_it_answers()
        return [self._run]


@pytest.fixture
def worker() -> WarmWorker:
    return WarmWorker("pool", limit=2)


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> list[FlowRun]:
    found: list[FlowRun] = []

    async def give_back(self: WarmWorker, run: FlowRun, *_: Any) -> None:
        found.append(run)

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(WarmWorker, "_give_back", give_back)
    monkeypatch.setattr(Asked, "update_flow_run_labels", nothing, raising=False)
    return found


def looks(worker: WarmWorker, asked: Asked, clock: list[float], seconds: float, before: Callable[[], object]) -> None:
    """The worker's watch looks at Prefect for so long."""

    async def look() -> None:
        worker._client = cast("Any", asked)
        watch = LivenessMonitor()
        watch.api_answered()
        clock[0] += figures.HEARTBEAT_TIMEOUT
        for _ in range(int(seconds / figures.LOOK) + 1):
            clock[0] += figures.LOOK
            assert watch.is_time_to_look()
            before()
            await worker._reap_orphans(watch)

    asyncio.run(look())


@pytest.mark.parametrize("ends", [True, False], ids=["ends meanwhile", "was left"])
def test_a_run_that_ends_while_prefect_answers_is_not_taken_up(
    ends: bool, clock: list[float], worker: WarmWorker, given_back: list[FlowRun]
) -> None:
    """The answer says that it runs, and it has ended by the time that it is read; what nobody runs is taken up."""
    run = pending()
    run.state = write_record(Running(), StateRecord(worker=worker.name))

    def begin() -> None:
        if ends:
            worker._under_way[run.id] = cast("Any", None)

    asked = Asked(run, before_it_answers=worker._under_way.clear)
    looks(worker, asked, clock, 2 * figures.LOOK, begin)
    assert (given_back == []) == ends


@pytest.mark.parametrize(
    ("state", "dead", "is_taken"),
    [
        (Pending(), [], False),
        (Pending(), ["a worker"], True),
        (Running(message="somebody's own words"), [], False),
        (Cancelling(), [], True),
        (write_record(Running(), StateRecord(worker="a worker")), [], True),
    ],
)
def test_a_run_whose_state_names_no_worker_is_taken_up_when_one_has_died(
    state: State[Any],
    dead: Sequence[str],
    is_taken: bool,
    clock: list[float],
    worker: WarmWorker,
    given_back: list[FlowRun],
) -> None:
    """However long Prefect takes to start a run: as long as all workers live, one of them has it."""
    run = pending()
    run.state, run.state_type = state, state.type
    asked = Asked(run, dead=dead, before_it_answers=lambda: None)
    looks(worker, asked, clock, 2 * figures.UNSIGNED, lambda: None)
    assert bool(given_back) == is_taken


@pytest.mark.parametrize(
    ("state", "broke_off", "told", "counted"),
    [
        (Running(), 0, "Scheduled: Its final state could not be set; the run starts again.", 1),
        (Running(), 3, "Scheduled: Its final state could not be set; the run starts again.", 4),
        (Running(), 4, "Crashed: This run broke off 5 times: its worker died, or its final state could not be set.", 4),
        (Pending(), 4, "Scheduled: It could not be started; the run starts again.", 4),
    ],
)
def test_a_run_of_its_own_that_broke_off_starts_again_but_not_for_ever(
    state: State[Any], broke_off: int, told: str, counted: int, clock: list[float], worker: WarmWorker
) -> None:
    """Prefect may refuse a final state whenever it is set: each time the run would call the vendor again."""
    run = pending()
    run.state, run.state_type = write_record(state, StateRecord(worker=worker.name)), state.type
    run.labels = {CRASH_COUNT: broke_off}
    states: list[State[Any]] = []

    class Told(Asked):
        async def update_flow_run_labels(self, _: UUID, labels: dict[str, Any]) -> None:
            run.labels.update(labels)

        async def set_flow_run_state(self, _: UUID, state: State[Any], **__: Any) -> None:
            states.append(state)

    looks(worker, Told(run, before_it_answers=lambda: None), clock, figures.LOOK, lambda: None)
    assert f"{states[0].type.value.title()}: {states[0].message}".startswith(told)
    assert run.labels == {CRASH_COUNT: counted}


class Several(Asked):
    """Prefect with several runs of a dead worker, that refuses whatever changes some of them."""

    def __init__(self, runs: Sequence[FlowRun], refused: Mapping[UUID, Exception]) -> None:
        super().__init__(runs[0], before_it_answers=lambda: None)
        self._runs = runs
        self._refused = refused
        self.taken: dict[UUID, State[Any]] = {}

    async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
        return list(self._runs)

    async def update_flow_run_labels(self, run_id: UUID, labels: dict[str, Any]) -> None:
        if run_id in self._refused:
            raise self._refused[run_id]
        next(run for run in self._runs if run.id == run_id).labels.update(labels)

    async def set_flow_run_state(self, run_id: UUID, state: State[Any], **_: Any) -> None:
        self.taken[run_id] = state


def left_by_a_dead_worker() -> FlowRun:
    run = pending()
    run.state, run.state_type = write_record(Running(), StateRecord(worker="a worker")), StateType.RUNNING
    return run


@pytest.mark.parametrize("label", ["abc", -7, True, 1.5, float("inf"), "9" * 5000, "\x1b[2J"])
def test_a_label_that_is_no_number_keeps_no_run_from_being_taken_up(
    label: Any, clock: list[float], worker: WarmWorker
) -> None:
    """Anyone who reaches Prefect's API can write it. It counts as none, also of the run that has it."""
    runs = [left_by_a_dead_worker() for _ in range(3)]
    runs[0].labels = {CRASH_COUNT: label}
    asked = Several(runs, {})
    looks(worker, asked, clock, figures.LOOK, lambda: None)
    assert set(asked.taken) == {run.id for run in runs}
    assert runs[0].labels == {CRASH_COUNT: 1}


@pytest.mark.parametrize("error", [ValueError("no JSON"), ObjectNotFound(OSError()), RuntimeError()])
def test_a_run_that_cannot_be_taken_up_keeps_no_other_from_it(
    error: Exception, clock: list[float], worker: WarmWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names it, and why."""
    runs = [left_by_a_dead_worker() for _ in range(3)]
    asked = Several(runs, {runs[0].id: error})
    looks(worker, asked, clock, figures.LOOK, lambda: None)
    assert set(asked.taken) == {run.id for run in runs[1:]}
    assert f"Flow run {runs[0].id} has no worker and could not be taken up ({type(error).__name__})" in caplog.text


@pytest.mark.parametrize(("error", "resets"), [(ValueError(), False), (httpx.ReadTimeout(""), True)])
def test_what_fails_beside_the_heartbeat_is_not_called_the_heartbeat(
    error: Exception,
    resets: bool,
    worker: WarmWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And ends what is known of other workers only when Prefect is away."""
    watches: list[LivenessMonitor] = []
    monkeypatch.setattr(figures, "HEARTBEAT_INTERVAL", 0.01)

    async def heartbeat(*_: Any) -> None:
        pass

    async def reap(_: WarmWorker, watch: LivenessMonitor) -> None:
        watches.append(watch)
        raise error

    monkeypatch.setattr(WarmWorker, "_reap_orphans", reap)

    async def keep() -> None:
        worker._client = cast("Any", SimpleNamespace(send_worker_heartbeat=heartbeat))
        watching = asyncio.create_task(worker._keep_watch())
        async with asyncio.timeout(10):
            while "dead workers" not in caplog.text:
                await asyncio.sleep(0.01)
        is_reset = watches[0]._since is None
        watching.cancel()
        assert is_reset == resets

    asyncio.run(keep())
    assert "heartbeat" not in caplog.text


@pytest.mark.parametrize("error", [ObjectNotFound(OSError()), httpx.ReadTimeout(""), ValueError("no JSON")])
def test_a_run_that_cannot_be_started_keeps_no_slot_and_ends_no_worker(
    error: Exception, worker: WarmWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deployment is gone, Prefect is away, or something else answers in its place. Eight would make it deaf."""
    told: list[str] = []

    class Failing:
        async def read_deployment(self, *_: Any) -> None:
            raise error

        async def set_flow_run_state(self, _: UUID, state: State[Any], **__: Any) -> None:
            told.append(state.name or "")

    async def submit() -> None:
        run = pending()
        run.deployment_id = uuid4()
        worker._client = cast("Any", Failing())
        worker._limiter = anyio.CapacityLimiter(2)
        worker._limiter.acquire_on_behalf_of_nowait(run.id)
        worker._submitting_flow_run_ids.add(run.id)
        await worker._submit_run(run)
        assert worker._limiter.borrowed_tokens == 0
        assert worker._at_hand() == set()

    asyncio.run(submit())
    assert told == (["Cancelled"] if isinstance(error, ObjectNotFound) else [])


def test_upkeep_has_slots_of_its_own(worker: WarmWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill on a worker with one slot holds none, so its runs start; a sixth upkeep run takes a normal slot."""
    taken: list[tuple[str, float]] = []

    async def yes(*_: Any) -> bool:
        return True

    async def run() -> None:
        worker._limiter = limiter = anyio.CapacityLimiter(10)
        may_end = asyncio.Event()

        async def in_thread(*_: Any) -> None:
            await may_end.wait()

        async def submit(queue: str) -> None:
            flow_run = pending()
            flow_run.deployment_id = uuid4()
            deployment = SimpleNamespace(work_queue_name=queue)

            async def read_deployment(_: UUID) -> Any:
                return deployment

            worker._client = cast("Any", SimpleNamespace(read_deployment=read_deployment))
            limiter.acquire_on_behalf_of_nowait(flow_run.id)
            submitted.append(asyncio.create_task(worker._submit_run(flow_run)))
            await asyncio.sleep(0.01)
            taken.append((queue, limiter.borrowed_tokens))

        submitted: list[asyncio.Task[None]] = []
        monkeypatch.setattr(WarmWorker, "_flow_of", yes)
        monkeypatch.setattr(WarmWorker, "_propose_pending_state", yes)
        monkeypatch.setattr(WarmWorker, "_in_thread", in_thread)
        for queue in ["default", *["upkeep"] * 6]:
            await submit(queue)
        may_end.set()
        await asyncio.gather(*submitted)
        assert limiter.borrowed_tokens == 0
        may_end.clear()
        await submit("upkeep")
        may_end.set()
        await asyncio.gather(*submitted)

    asyncio.run(run())
    assert taken == [("default", 1), *[("upkeep", 1)] * 5, ("upkeep", 2), ("upkeep", 0)]


@pytest.mark.parametrize("error", [ValueError("a setting"), ObjectNotFound(OSError()), ImportError("no module")])
def test_a_flow_that_cannot_be_loaded_is_told_as_crashed(
    error: Exception, worker: WarmWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its code raises: not taken for Prefect's absence, and not tried again for ever."""
    told: list[str] = []

    async def failing(*_: Any) -> None:
        raise error

    async def yes(*_: Any) -> bool:
        return True

    async def deployed(_: UUID) -> Any:
        return SimpleNamespace(work_queue_name="default")

    async def crashed(_: WarmWorker, __: FlowRun, message: str) -> None:
        told.append(message)

    monkeypatch.setattr(WarmWorker, "_flow_of", failing)
    monkeypatch.setattr(WarmWorker, "_propose_pending_state", yes)
    monkeypatch.setattr(WarmWorker, "_propose_crashed_state", crashed)

    async def submit() -> None:
        run = pending()
        run.deployment_id = uuid4()
        worker._client = cast("Any", SimpleNamespace(read_deployment=deployed))
        worker._limiter = anyio.CapacityLimiter(2)
        worker._limiter.acquire_on_behalf_of_nowait(run.id)
        await worker._submit_run(run)
        assert worker._limiter.borrowed_tokens == 0

    asyncio.run(submit())
    assert len(told) == 1
    assert type(error).__name__ in told[0]


@pytest.mark.parametrize("error", [httpx.DecodingError(""), httpx.TooManyRedirects(""), RuntimeError()])
def test_no_answer_ends_the_worker(error: Exception, worker: WarmWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its looks for runs nor its heartbeat."""

    async def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(BaseWorker, "get_and_submit_flow_runs", failing)
    monkeypatch.setattr(BaseWorker, "sync_with_backend", failing)
    worker.is_setup = True
    assert asyncio.run(worker.get_and_submit_flow_runs()) == []
    asyncio.run(worker.sync_with_backend())


def test_a_worker_is_patient_from_its_first_request_on(worker: WarmWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside busy workers a start met a locked SQLite for minutes, with Prefect's own pauses between its tries."""
    answers = iter([503] * 8)
    asked: list[float] = []

    def answer(_: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        return httpx.Response(next(answers, 200))

    async def sync(self: BaseWorker[Any, Any, Any]) -> None:
        await self.client._client.get("/anything")

    monkeypatch.setattr(BaseWorker, "sync_with_backend", sync)

    async def start() -> None:
        async with get_client() as client:
            client._client._transport = httpx.MockTransport(answer)
            worker._client = client
            await worker.sync_with_backend()

    with temporary_settings(
        {PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
    ):
        asyncio.run(start())
    assert len(asked) == 9
    assert asked[-1] - asked[0] < 8


def test_a_flow_that_exits_does_not_end_the_worker(worker: WarmWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.exit()` in a flow is the flow's business."""

    def exiting(*_: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(figures, "_run", exiting)

    async def run() -> None:
        under_way = _UnderWay(pending(), worker._clients)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await under_way.run(cast("Any", None), at_end=lambda: None)

    asyncio.run(run())


def test_a_thread_that_ends_late_does_not_take_its_successor_along(worker: WarmWorker) -> None:
    """A cancelled run that was left, and started anew since, has the same id."""

    async def both() -> None:
        run = pending()
        first, second = (_UnderWay(run, worker._clients) for _ in range(2))
        worker._under_way[run.id] = second
        worker._forget(first)
        assert worker._under_way[run.id] is second
        worker._forget(second)
        worker._forget(second)
        assert not worker._under_way

    asyncio.run(both())


def test_the_look_for_cancelled_runs_outlives_whatever_answers(
    worker: WarmWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's page in Prefect's place ends neither it nor the waiting for the run."""
    monkeypatch.setattr(figures, "CANCEL_LOOK", 0.01)
    monkeypatch.setattr(figures, "CANCEL_GRACE", 0.01)
    under_way: list[_UnderWay] = []

    class Odd:
        looks = 0

        async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
            Odd.looks += 1
            if Odd.looks == 1:
                raise ValueError("a page")
            return [under_way[0].flow_run]

        async def read_flow_run(self, *_: Any) -> FlowRun:
            raise ValueError("a page")

    async def look() -> None:
        run = pending()
        run.state, run.state_type = Cancelling(), StateType.CANCELLING
        under_way.append(_UnderWay(run, worker._clients))
        worker._under_way[under_way[0].flow_run.id] = under_way[0]
        worker._client = cast("Any", Odd())
        polling = asyncio.create_task(worker._poll_cancellations())
        await asyncio.wait_for(under_way[0].ended, 10)
        assert not polling.done()
        polling.cancel()

    asyncio.run(look())
    assert not worker._under_way


def test_from_its_start_on_runs_have_no_observers_of_their_own(
    worker: WarmWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's own begin with a thread and a connection each."""

    observed: list[UUID] = []

    @contextmanager
    def observe(flow_run_id: UUID, *_: object) -> Iterator[None]:
        observed.append(flow_run_id)
        yield

    async def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(flow_engine, "observe_flow_run_suspension", observe)
    monkeypatch.setattr(BaseWorker, "setup", nothing)
    worker._client = cast("Any", SimpleNamespace(server_type=ServerType.CLOUD))

    async def start() -> None:
        await worker.setup()
        for watch in worker._watches:
            watch.cancel()

    asyncio.run(start())
    with flow_engine.observe_flow_run_suspension(uuid4(), FlowRunSuspensionRequest()):  # type: ignore[attr-defined]
        assert observed == []


def test_runs_lend_each_other_their_clients(worker: WarmWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other the same, which stays open whatever a run does; at the same time each its own."""
    used: list[SyncPrefectClient] = []
    ends: list[BaseException | None] = [None, Abort(), SystemExit(3), None]

    def run(*_: Any, **__: Any) -> None:
        used.append(get_client(sync_client=True))
        if (end := ends[len(used) - 1]) is not None:
            raise end

    def beside() -> SyncPrefectClient:
        with temporary_settings(ELSEWHERE), worker._clients.acquire():
            return get_client(sync_client=True)

    monkeypatch.setattr(figures, "run_flow", run)
    with temporary_settings(ELSEWHERE):
        for end in ends:
            with suppress(SystemExit):
                figures._run(cast("Any", None), pending(), worker._clients)
            assert SyncClientContext.get() is None, f"after {end!r}"
        assert len({id(client) for client in used}) == 1
        assert not used[0]._client.is_closed
        with worker._clients.acquire():
            assert Context().run(beside) is not used[0], "a thread starts with no context"


def test_a_client_that_could_not_begin_is_not_lent_again(worker: WarmWorker) -> None:
    """Prefect is away when the first run of all asks for its version."""
    asked = {**ELSEWHERE, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: True}
    with temporary_settings(asked), pytest.raises(RuntimeError, match="Failed to reach"), worker._clients.acquire():
        pass
    with temporary_settings(ELSEWHERE), worker._clients.acquire():
        assert SyncClientContext.get() is not None


def test_a_stop_does_not_wait_for_a_prefect_that_is_away(
    worker: WarmWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What would be handed back stays under way in Prefect, and the next worker takes it up as a dead one's."""

    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(figures, "DRAIN", 0.01)
    monkeypatch.setattr(figures, "HAND_BACK", 0.01)
    monkeypatch.setattr(figures.os, "_exit", end)
    monkeypatch.setattr(figures.logging, "shutdown", lambda: None)

    async def stop() -> None:
        worker._client = cast("Any", SimpleNamespace(read_flow_run=never))
        run = pending()
        worker._under_way[run.id] = _UnderWay(run, worker._clients)
        async with asyncio.timeout(10):
            await worker.teardown()

    with pytest.raises(Ended):
        asyncio.run(stop())
    assert "another worker takes up what was under way" in caplog.text


def test_a_worker_that_does_not_know_its_server_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """In a sentence and with status 1, where Prefect's command would print tracebacks."""
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(SystemExit) as ended:
        asyncio.run(WarmWorker("pool").start())
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("PREFECT_API_URL is not set")


def test_sigterm_stops_the_task_once() -> None:
    """The second one ends the process, whatever the first one still waits for."""

    async def work() -> None:
        _stop_on_sigterm()
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
        ["sh", "-c", "trap '' INT; exec \"$0\" worker start --pool pool --type warm", script("prefect")],
        {
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_CLIENT_MAX_RETRIES": "0",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        },
        log,
        lambda: "started!" in process.printed(),
    )
    process.start()
    try:
        process.signal(signal.SIGTERM)
        wait_for(lambda: process.code is not None, "the worker's end", 60)
    finally:
        process.kill()
    assert process.code == 0
    assert "Traceback" not in process.printed()
