"""How a worker takes a run, and what becomes of one that it cannot start."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse, SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow

from attachments.worker.run_starter import FlowLoader, RunStarter
from attachments.worker.slots import Slots
from tests.worker.prefect_stand_in import pending


class Prefect:
    """Accepts every state; reading the deployment may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.states: list[State[Any]] = []

    async def read_deployment(self, *_: Any) -> Any:
        if self._error is not None:
            raise self._error
        return SimpleNamespace(work_queue_name="default")

    async def set_flow_run_state(self, _: UUID, state: State[Any], **__: Any) -> Any:
        self.states.append(state)
        return SimpleNamespace(state=state, status=SetStateStatus.ACCEPT)


def of_a_deployment() -> FlowRun:
    run = pending()
    run.deployment_id = uuid4()
    return run


@pytest.mark.parametrize("error", [ObjectNotFound(OSError()), httpx.ReadTimeout(""), ValueError("no JSON")])
def test_a_run_whose_deployment_cannot_be_read_is_not_started(error: Exception) -> None:
    """A deployment that is gone cancels it; if Prefect is unreachable, the run waits for the next poll."""
    prefect = Prefect(error)
    starter = RunStarter(cast("Any", prefect), "worker", FlowLoader(""), cast("Any", None))
    assert asyncio.run(starter.take(of_a_deployment())) is None
    names = [state.name for state in prefect.states]
    assert names == (["Cancelled"] if isinstance(error, ObjectNotFound) else [])


@pytest.mark.parametrize("error", [ValueError("a setting"), ObjectNotFound(OSError()), ImportError("no module")])
def test_a_flow_that_cannot_be_loaded_crashes_its_run(error: Exception) -> None:
    """Whatever its code raises: it is not taken for an unreachable Prefect, and not retried for ever."""

    class Failing(FlowLoader):
        async def load(self, flow_run: FlowRun, deployment: DeploymentResponse) -> Flow[..., Any]:
            raise error

    prefect = Prefect()
    starter = RunStarter(cast("Any", prefect), "worker", Failing(""), cast("Any", None))
    assert asyncio.run(starter.take(of_a_deployment())) is None
    assert [state.name for state in prefect.states] == ["Pending", "Crashed"]
    assert type(error).__name__ in (prefect.states[-1].message or "")


@pytest.mark.parametrize(("queue", "is_moved"), [("default", False), ("upkeep", True)])
def test_a_run_of_the_upkeep_queue_gets_a_slot_for_upkeep(queue: str, is_moved: bool) -> None:
    """A backfill's runs need the slot that it would hold."""

    class Loaded(FlowLoader):
        async def load(self, flow_run: FlowRun, deployment: DeploymentResponse) -> Flow[..., Any]:
            return cast("Any", "the flow")

    class OfQueue(Prefect):
        async def read_deployment(self, *_: Any) -> Any:
            return SimpleNamespace(work_queue_name=queue)

    async def take() -> None:
        limiter = anyio.CapacityLimiter(1)
        slots, run = Slots(lambda: limiter), of_a_deployment()
        slots.take(run.id)
        starter = RunStarter(cast("Any", OfQueue()), "worker", Loaded(""), slots)
        assert await starter.take(run) == "the flow"
        assert limiter.borrowed_tokens == (0 if is_moved else 1)

    asyncio.run(take())
