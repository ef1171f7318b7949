"""A later attempt, when the vendor or the store has been away for longer than a task's retries last.

The retries of a task end after some minutes, so that a worker is not held up by what does not get better. What
could still get better is then tried again as a run of its own, after growing pauses that add up to a night.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Scheduled

FIRST_PAUSE = 5  # minutes, doubled each time: 5, 10, 20, … 640
ATTEMPTS = 9  # in all: over 21 hours
TAG = "attempt-"
ATTEMPT = re.compile(r"attempt-[0-9]{1,3}", re.ASCII)


def try_again_later(labels: Mapping[str, str] | None = None) -> str:
    """Schedule the next attempt of this run, once and with these labels, and say so in a sentence.

    Only a run of a deployment can be tried again; its parameters stay the same.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        return "Run it again when the cause is gone."
    attempt = next((int(tag.removeprefix(TAG)) for tag in run.tags if ATTEMPT.fullmatch(tag)), 1)
    if attempt >= ATTEMPTS:
        return f"That was attempt {ATTEMPTS}, the last one that is made by itself: run it again when the cause is gone."
    pause = timedelta(minutes=FIRST_PAUSE * 2 ** (attempt - 1))
    try:
        get_client(sync_client=True).create_flow_run_from_deployment(
            run.deployment_id,
            work_queue_name=run.work_queue_name,  # old mail goes on waiting behind live mail
            name=run.name,  # by which a reconciliation sees that the message is taken care of
            parameters=run.parameters,
            idempotency_key=f"{run.id}/{run.run_count}/again",
            tags=[*(tag for tag in run.tags if not ATTEMPT.fullmatch(tag)), f"{TAG}{attempt + 1}"],
            state=Scheduled(scheduled_time=datetime.now(UTC) + pause, message=f"Attempt {attempt + 1} of {ATTEMPTS}"),
            labels=dict(labels or {}),
        )
    except (httpx.HTTPError, ObjectNotFound) as error:
        get_run_logger().warning("The next attempt could not be scheduled (%s).", type(error).__name__)
        return "The next attempt could not be scheduled: run it again when the cause is gone."
    return f"Attempt {attempt + 1} of {ATTEMPTS} follows by itself in {pause.total_seconds() / 60:.0f} minutes."
