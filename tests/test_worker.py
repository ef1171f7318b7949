"""What the warm worker decides by itself; tests/road runs it against a real Prefect."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import anyio
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.states import Pending, Running

from attachments import worker as figures
from attachments.worker import MINE, WarmWorker, _Watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(figures.anyio, "current_time", lambda: now[0])
    return now


def pending() -> FlowRun:
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="run", state=Pending())


def test_a_run_that_is_not_over_here_is_not_started_again() -> None:
    """Given back by a watch that took it for dead, it is found again: a second slot for it would end the worker."""
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
    watch, run = _Watch(), pending()
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


@pytest.mark.parametrize("ends", [True, False], ids=["ends meanwhile", "was left"])
def test_a_run_that_ends_while_prefect_answers_is_not_taken_up(
    ends: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says that it runs, and it has ended by the time that it is read; what nobody runs is taken up."""
    given_back: list[FlowRun] = []

    class Asked:
        async def read_workers_for_work_pool(self, *_: Any, **__: Any) -> Sequence[Any]:
            return [SimpleNamespace(name=worker.name, last_heartbeat_time=None)]

        async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
            worker._under_way.clear()
            return [run]

    async def give_back(self: WarmWorker, found: FlowRun, *_: Any) -> None:
        given_back.append(found)

    monkeypatch.setattr(WarmWorker, "_give_back", give_back)
    run = pending()
    run.state = Running()

    async def look() -> None:
        worker._client = cast("Any", Asked())
        run.state = Running(message=f"{MINE}{worker.name}")
        watch = _Watch()
        for _ in range(3):
            clock[0] += figures.LOOK
            assert watch.is_time_to_look()
            if ends:
                worker._under_way[run.id] = cast("Any", None)
            await worker._take_up_orphans(watch)

    worker = WarmWorker("pool", limit=2)
    asyncio.run(look())
    assert (given_back == []) == ends
