"""Runs a flow in the calling thread, by Prefect's engine.

For each run of a deployment Prefect's engine starts a thread with an event loop, a client and a websocket of its own,
which waits for the run to be suspended, and which the run waits for before it begins and when it ends. The worker polls
for the cancellation of all its runs anyway, and learns of suspensions from the same request.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import FlowRunEngine, run_flow
from prefect.flows import Flow
from prefect.utilities.callables import get_call_parameters, parameters_to_args_kwargs


class Suspension:
    """Suspends one run from another thread."""

    def __init__(self) -> None:
        self._request: Any = None
        """Prefect's own object, whose class has no public name."""

    def apply(self, state: State[Any]) -> None:
        """End the run before its next task if the state is Suspended. No-op before the engine has begun the run."""
        if self._request is not None and state.is_paused() and state.name == "Suspended":
            self._request.mark_requested(state)

    @contextmanager
    def applies_to(self, request: Any) -> Iterator[None]:
        """In the block, `apply` suspends the run that the request belongs to."""
        self._request = request
        try:
            yield
        finally:
            self._request = None


def run_to_final_state(flow: Flow[..., Any], flow_run: FlowRun, suspension: Suspension) -> None:
    """Run a flow to a final state, which Prefect records. No-op if another worker has taken the run meanwhile."""
    with suppress(Abort, Pause):
        if flow.isasync or flow.isgenerator:
            _exhaust(run_flow(flow, flow_run=flow_run, return_type="result" if flow.isgenerator else "state"))
            return
        arguments, keywords = parameters_to_args_kwargs(flow.fn, flow_run.parameters)
        parameters = get_call_parameters(flow.fn, arguments, keywords)
        engine = _Engine(flow=flow, flow_run=flow_run, parameters=parameters, suspension=suspension)
        with engine.start():
            while engine.is_running():
                with engine.run_context():
                    engine.call_flow_fn()


@dataclass
class _Engine(FlowRunEngine[..., Any]):
    """Prefect's engine without a suspension observer for each run."""

    suspension: Suspension = field(default_factory=Suspension)

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Generator[Any, None, None]:
        flow_run = self.flow_run
        assert flow_run is not None  # noqa: S101  it was passed to the constructor
        # Prefect observes runs of deployments only.
        self.flow_run = flow_run.model_copy(update={"deployment_id": None})
        with super().setup_flow_run_suspension_request() as request, self.suspension.applies_to(request):
            self.flow_run = flow_run
            yield request


def _exhaust(result: Any) -> None:
    """Run what Prefect's engine returns for flows that are coroutines or generators. These it observes itself."""
    if isinstance(result, Coroutine):
        asyncio.run(result)
    elif isinstance(result, AsyncGenerator):
        asyncio.run(_exhaust_async(result))
    else:
        for _ in result:
            pass


async def _exhaust_async(results: AsyncGenerator[Any, None]) -> None:
    async for _ in results:
        pass
