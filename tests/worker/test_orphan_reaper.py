"""Which runs a worker takes up; tests/e2e kills real workers."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Pending, Running

from attachments.prefect_api.paging import PAGE
from attachments.runs.run_labels import CRASH_COUNT
from attachments.runs.state_record import StateRecord, write_record
from attachments.worker.orphan_reaper import OrphanReaper
from attachments.worker.timings import WorkerTimings
from tests.worker.prefect_stand_in import Runs, pending

WORKER = "warm host 1 abcdef"
TIMINGS = WorkerTimings()


def reap(
    prefect: Runs, seconds: float, own_runs: set[UUID] | None = None, before: Callable[[], object] = lambda: None
) -> None:
    """Run a worker's reaper beside this Prefect until it has checked for so many seconds."""
    clock = [1000.0]
    reaper = OrphanReaper(cast("Any", prefect), "pool", WORKER, lambda: own_runs or set(), TIMINGS, lambda: clock[0])

    async def steps() -> None:
        for _ in range(int((TIMINGS.heartbeat_timeout + seconds) / TIMINGS.reap) + 2):
            clock[0] += TIMINGS.reap
            before()
            await reaper.step()

    asyncio.run(steps())


@pytest.mark.parametrize("ends", [True, False], ids=["ends meanwhile", "was left"])
def test_a_run_that_ends_while_prefect_responds_is_not_taken_up(ends: bool) -> None:
    """The response says that it is running, and it has ended when the response is read."""
    run = pending()
    run.state = write_record(Running(), StateRecord(worker=WORKER))
    own_runs: set[UUID] = set()

    def begin() -> None:
        if ends:
            own_runs.add(run.id)

    prefect = Runs(run, before_response=own_runs.clear)
    # The set itself is passed on: `before_response` empties it between the request and its response.
    clock = [1000.0]
    reaper = OrphanReaper(cast("Any", prefect), "pool", WORKER, lambda: own_runs, TIMINGS, lambda: clock[0])

    async def steps() -> None:
        for _ in range(8):
            clock[0] += TIMINGS.reap
            begin()
            await reaper.step()

    asyncio.run(steps())
    assert (prefect.states == {}) == ends


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
    state: State[Any], dead: Sequence[str], is_taken: bool
) -> None:
    """However long Prefect takes to start a run: as long as all workers live, one of them has it."""
    run = pending()
    run.state, run.state_type = state, state.type
    prefect = Runs(run, dead=dead)
    reap(prefect, 2 * TIMINGS.unowned_timeout)
    assert bool(prefect.states) == is_taken


@pytest.mark.parametrize(
    ("state", "broke_off", "set_to", "counted"),
    [
        (Running(), 0, "Scheduled: Its final state could not be set; the run starts again.", 1),
        (Running(), 3, "Scheduled: Its final state could not be set; the run starts again.", 4),
        (Running(), 4, "Crashed: This run broke off 5 times: its worker died, or its final state could not be set.", 4),
        (Pending(), 4, "Scheduled: It could not be started; the run starts again.", 4),
    ],
)
def test_a_run_of_its_own_that_broke_off_starts_again_but_not_for_ever(
    state: State[Any], broke_off: int, set_to: str, counted: int
) -> None:
    """Prefect may reject a final state whenever it is set: each time the run would call the vendor again."""
    run = pending()
    run.state, run.state_type = write_record(state, StateRecord(worker=WORKER)), state.type
    run.labels = {CRASH_COUNT: broke_off}
    clock = [1000.0]
    prefect = Runs(run)
    reaper = OrphanReaper(cast("Any", prefect), "pool", WORKER, set, TIMINGS, lambda: clock[0])

    async def two_checks() -> None:
        for _ in range(2):
            clock[0] += TIMINGS.reap
            await reaper.step()

    asyncio.run(two_checks())
    state = prefect.states[run.id]
    assert f"{state.type.value.title()}: {state.message}".startswith(set_to)
    assert run.labels == {CRASH_COUNT: counted}


def left_by_a_dead_worker() -> FlowRun:
    run = pending()
    run.state, run.state_type = write_record(Running(), StateRecord(worker="a worker")), StateType.RUNNING
    return run


@pytest.mark.parametrize("label", ["abc", -7, True, 1.5, float("inf"), "9" * 5000, "\x1b[2J"])
def test_a_label_that_is_no_number_keeps_no_run_from_being_taken_up(label: Any) -> None:
    """Anyone who reaches Prefect's API can write it. It counts as none, also of the run that has it."""
    runs = [left_by_a_dead_worker() for _ in range(3)]
    runs[0].labels = {CRASH_COUNT: label}
    prefect = Runs(*runs)
    reap(prefect, 0)
    assert set(prefect.states) == {run.id for run in runs}
    assert runs[0].labels == {CRASH_COUNT: 1}


def test_a_crash_is_counted_once_however_often_the_run_is_given_back() -> None:
    """Prefect's database is locked for a while: that is not the run's fault, and must not end it as Crashed."""
    run = left_by_a_dead_worker()
    prefect = Runs(run, lost_states=10)
    reap(prefect, 300)
    assert prefect.states[run.id].type == StateType.SCHEDULED
    assert run.labels == {CRASH_COUNT: 1}


def test_every_unfinished_run_is_looked_at() -> None:
    """Not only those on the first page: the others would never be taken up."""
    runs = [left_by_a_dead_worker() for _ in range(PAGE + 1)]
    prefect = Runs(*runs)
    reap(prefect, 0)
    assert len(prefect.states) == PAGE + 1


@pytest.mark.parametrize("error", [ValueError("no JSON"), ObjectNotFound(OSError()), RuntimeError()])
def test_a_run_that_cannot_be_taken_up_keeps_no_other_from_it(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names it, and why."""
    runs = [left_by_a_dead_worker() for _ in range(3)]
    prefect = Runs(*runs, refused={runs[0].id: error})
    reap(prefect, 0)
    assert set(prefect.states) == {run.id for run in runs[1:]}
    assert f"Flow run {runs[0].id} has no worker and could not be taken up ({type(error).__name__})" in caplog.text


@pytest.mark.parametrize(("error", "is_taken"), [(ValueError(), True), (httpx.ReadTimeout(""), False)])
def test_a_check_that_fails_is_not_called_a_heartbeat_that_fails(
    error: Exception, is_taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What is known of other workers is discarded only if Prefect is unreachable: then nobody is called dead soon."""
    run = left_by_a_dead_worker()
    failures = [error]

    def fail() -> None:
        # At the third check: the fifth is the first at which others may be judged, if Prefect has responded since.
        checks.append(1)
        if len(checks) == 3:
            raise failures.pop()

    checks: list[int] = []
    prefect = Runs(run, before_response=fail)
    reap(prefect, 0)
    assert "Looking for runs of dead workers failed" in caplog.text
    assert "heartbeat" not in caplog.text
    assert bool(prefect.states) == is_taken
