"""A run that no worker's slot is left for is tried again later, and continues with the same runs."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from attachments.runs import delayed_retry
from attachments.runs.artifacts import failed_state
from attachments.runs.continuation import Lineage
from attachments.runs.errors import Starved
from attachments.runs.run_labels import CRASH_COUNT, ORIGIN
from attachments.runs.state_record import read_record


class Prefect:
    """It notes the attempts that are scheduled."""

    def __init__(self) -> None:
        self.scheduled: list[dict[str, Any]] = []
        self.labels: dict[str, Any] = {}

    def create_flow_run_from_deployment(self, _: object, **values: Any) -> None:
        self.scheduled.append(values)

    def update_flow_run_labels(self, _: object, labels: dict[str, Any]) -> None:
        self.labels.update(labels)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> FlowRun:
    """The current run: the fourth attempt, and its worker died twice."""
    found = FlowRun(flow_id=uuid4(), deployment_id=uuid4(), tags=["old-mail", "attempt-4"], labels={CRASH_COUNT: 2})
    monkeypatch.setattr(delayed_retry, "FlowRunContext", SimpleNamespace(get=lambda: SimpleNamespace(flow_run=found)))
    return found


@pytest.mark.parametrize("has_progressed", [False, True])
def test_a_run_whose_child_runs_no_worker_starts_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, run: FlowRun, has_progressed: bool
) -> None:
    """On a worker of another type with one slot, the pauses are when its runs get the slot, for as many as it takes.

    Without progress it fails in the end: the queue is paused, or no worker is there.
    """
    prefect = Prefect()
    monkeypatch.setattr(delayed_retry, "get_client", lambda **_: prefect)
    monkeypatch.setattr("attachments.runs.continuation.get_client", lambda **_: prefect)
    lineage = Lineage(run, "origin")
    if has_progressed:
        lineage.reset_counts()
    state = failed_state(Starved(60, "attachments"), lineage.labels)
    attempt = 2 if has_progressed else 5
    assert (read_record(state).code, read_record(state).next_attempt) == ("starved", attempt)
    assert (state.message or "").startswith("60 runs wait, and no worker has started one for minutes.")
    (scheduled,) = prefect.scheduled
    assert scheduled["tags"] == ["old-mail", f"attempt-{attempt}"]
    assert scheduled["labels"] == {ORIGIN: "origin"}
    assert prefect.labels == ({CRASH_COUNT: 0} if has_progressed else {})
