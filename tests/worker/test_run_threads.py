"""Runs in threads: how they end, and what the worker keeps of them."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling

from attachments.worker.cancellation_monitor import CancellationMonitor
from attachments.worker.run_threads import RunThread, RunThreads
from attachments.worker.shutdown import drain
from attachments.worker.timings import WorkerTimings
from tests.worker.prefect_stand_in import pending

FLOW = cast("Any", None)


def nothing(*_: Any) -> None:
    pass


def test_a_flow_that_exits_does_not_end_the_worker() -> None:
    """`sys.exit()` in a flow ends the flow."""

    def exiting(*_: Any) -> None:
        raise SystemExit(3)

    async def run() -> None:
        threads = RunThreads(exiting)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await threads.run(FLOW, pending())
        assert not threads

    asyncio.run(run())


def test_a_thread_that_ends_late_does_not_remove_its_successor() -> None:
    """A cancelled run that was abandoned, and started again since, has the same ID."""

    async def both() -> None:
        run, threads = pending(), RunThreads(nothing)
        first, second = threads.add(run), threads.add(run)
        threads.forget(first)
        assert threads.snapshot() == {run.id: second}
        threads.forget(second)
        threads.forget(second)
        assert not threads

    asyncio.run(both())


def test_polling_for_cancelled_runs_outlives_every_response() -> None:
    """A proxy's page in Prefect's place ends neither the polling nor the wait for the run."""
    begun: list[RunThread] = []

    class Odd:
        polls = 0

        async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
            Odd.polls += 1
            if Odd.polls == 1:
                raise ValueError("a page")
            return [begun[0].flow_run]

        async def read_flow_run(self, *_: Any) -> FlowRun:
            raise ValueError("a page")

    async def poll() -> None:
        run, threads = pending(), RunThreads(nothing)
        run.state, run.state_type = Cancelling(), StateType.CANCELLING
        begun.append(threads.add(run))
        timings = WorkerTimings(cancel_poll=0.01, cancel_grace=0.01)
        polling = asyncio.create_task(CancellationMonitor(cast("Any", Odd()), threads, timings).watch())
        await asyncio.wait_for(begun[0].ended, 10)
        assert not polling.done()
        polling.cancel()
        assert not threads

    asyncio.run(poll())


def test_a_stop_does_not_wait_for_an_unreachable_prefect(caplog: pytest.LogCaptureFixture) -> None:
    """What would be handed back stays under way in Prefect, and the next worker takes it up as a dead one's."""
    left: list[bool] = []

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    async def stop() -> None:
        threads = RunThreads(nothing)
        threads.add(pending())
        timings = WorkerTimings(drain=0.01, hand_back=0.01)
        async with asyncio.timeout(10):
            await drain(cast("Any", SimpleNamespace(read_flow_run=never)), threads, timings, lambda: left.append(True))

    asyncio.run(stop())
    assert left == [True]
    assert "another worker takes up the runs that were under way" in caplog.text
