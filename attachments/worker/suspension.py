"""Suspending a run: the worker heeds it for all its runs at once.

For each run of a deployment Prefect's engine starts a thread with an event loop, a client and a websocket of its own,
which waits for somebody to suspend the run, and which the run waits for before it begins and when it ends. A worker
that asks about all its runs anyway (it does so for cancelling) can hear of this with the same request.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow_engine
from prefect._flow_run_suspension import is_suspended_flow_run_state, mark_flow_run_suspension_requested
from prefect.client.schemas.objects import FlowRun


def disable_suspension_observer() -> None:
    """From now on Prefect's engine observes no run in this process: the caller calls `apply_suspension` as well."""
    flow_engine.observe_flow_run_suspension = _unobserved  # type: ignore[attr-defined,assignment]


def apply_suspension(run: FlowRun) -> None:
    """If somebody has suspended a run that is under way in this process, it ends before its next task."""
    if run.state is not None and is_suspended_flow_run_state(run.state):
        mark_flow_run_suspension_requested(run.id, run.state)


@contextmanager
def _unobserved(*_: object) -> Iterator[None]:
    yield
