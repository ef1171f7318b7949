"""What the warm worker decides by itself; tests/road runs it against a real Prefect."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import anyio
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.states import Pending

from attachments import worker as figures
from attachments.worker import WarmWorker, _Watch


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
