"""Stand-ins for Prefect's API, for the parts of the worker that use it."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect.client.schemas.filters import WorkerFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED
from prefect.states import Pending

ELSEWHERE = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
"""Settings for a Prefect that does not exist, and is not asked for its version."""


def pending() -> FlowRun:
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="run", state=Pending())


class Runs:
    """Runs of one work pool, and the workers that have died since the runs entered their states."""

    def __init__(
        self,
        *runs: FlowRun,
        dead: Sequence[str] = (),
        before_response: Callable[[], object] = lambda: None,
        refused: Mapping[UUID, Exception] | None = None,
        lost_states: int = 0,
    ) -> None:
        self.runs = runs
        self.states: dict[UUID, State[Any]] = {}
        """What each run's state was set to."""
        self._dead = [SimpleNamespace(name=name, last_heartbeat_time=None) for name in dead]
        self._before_response = before_response
        self._refused = refused or {}
        self._lost_states = lost_states
        """How many requests for a new state still fail."""

    async def send_worker_heartbeat(self, *_: Any) -> None:
        pass

    async def read_workers_for_work_pool(self, _: str, which: WorkerFilter, **__: Any) -> Sequence[Any]:
        return self._dead if which.last_heartbeat_time else []

    async def read_flow_runs(self, *, limit: int, offset: int = 0, **_: Any) -> list[FlowRun]:
        self._before_response()
        return [run for run in self.runs if run.id not in self.states][offset : offset + limit]

    async def update_flow_run_labels(self, run_id: UUID, labels: dict[str, Any]) -> None:
        if run_id in self._refused:
            raise self._refused[run_id]
        next(run for run in self.runs if run.id == run_id).labels.update(labels)

    async def set_flow_run_state(self, run_id: UUID, state: State[Any], **_: Any) -> None:
        if self._lost_states > 0:
            self._lost_states -= 1
            raise httpx.ReadTimeout("")
        self.states[run_id] = state
