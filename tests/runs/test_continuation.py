"""A run that gives its place up goes on later, also when nothing has moved for weeks."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from attachments.domain.progress import Counts
from attachments.runs import continuation
from attachments.runs.continuation import IDLE_LONGEST, Lineage
from attachments.runs.run_labels import ENDED, IDLE


@pytest.mark.parametrize("idle", [0, 9, 5000, "abc", -5000, 1.5, True])
def test_a_queue_that_stays_paused_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch, idle: int) -> None:
    """Every quarter of an hour at the least, however often nothing came of it before."""
    made: list[object] = []
    monkeypatch.setattr(continuation, "retry_until_available", made.append)
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4(), labels={ENDED: 0, IDLE: idle})
    told = Lineage(run, "origin").schedule_continuation(Counts(), waiting=1)
    assert len(made) == 1
    latest = datetime.now(UTC) + timedelta(seconds=IDLE_LONGEST)
    assert told in {
        f"Another run goes on at {latest - timedelta(seconds=back):%H:%M:%S} UTC." for back in range(int(IDLE_LONGEST))
    }
