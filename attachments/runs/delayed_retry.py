"""Delayed attempts, for when the vendor or the store is unavailable for longer than a task's retries last.

The retries of a task end after some minutes, so that they do not occupy a worker. A transient failure is then retried
as a new run, after growing pauses that add up to most of a day.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Failed, Scheduled

from attachments.runs.state_record import FAILED_FOR_NOW, StateRecord, write_record

FIRST_PAUSE = 5  # minutes, doubled each time: 5, 10, 20, … 640
ATTEMPTS = 9  # in all: over 21 hours
TAG = "attempt-"
ATTEMPT = re.compile(r"attempt-[0-9]{1,3}", re.ASCII)


def failed_for_now(message: str, code: str | None = None, labels: Mapping[str, str] | None = None) -> State[None]:
    """The final state of this run, which failed for a transient reason. The labels are for the next attempt.

    After the last attempt it is an ordinary failure that needs a person.
    """

    def failed(remedy: str, *, name: str = FAILED_FOR_NOW, next_attempt: int | None = None) -> State[None]:
        record = StateRecord(code=code, next_attempt=next_attempt)
        return write_record(Failed(name=name, message=f"{message} {remedy}"), record)

    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        return failed("Correct the cause, and run it again.")
    attempt = next((int(tag.removeprefix(TAG)) for tag in run.tags if ATTEMPT.fullmatch(tag)), 1) + 1
    if attempt > ATTEMPTS:
        last = f"That was attempt {ATTEMPTS}, the last automatic one. Correct the cause, and run it again."
        return failed(last, name="Failed")
    pause = timedelta(minutes=FIRST_PAUSE * 2 ** (attempt - 2))
    if not _schedule(run, attempt, pause, labels or {}):
        return failed("The next attempt could not be scheduled. Correct the cause, and run it again.")
    follows = f"Attempt {attempt} of {ATTEMPTS} follows automatically in {pause.total_seconds() / 60:.0f} minutes."
    return failed(follows, next_attempt=attempt)


def _schedule(run: FlowRun, attempt: int, pause: timedelta, labels: Mapping[str, str]) -> bool:
    """Schedule the next attempt of a deployment's run, once, with the same parameters. False if that failed."""
    assert run.deployment_id is not None  # noqa: S101  checked by the caller
    try:
        get_client(sync_client=True).create_flow_run_from_deployment(
            run.deployment_id,
            work_queue_name=run.work_queue_name,  # old mail keeps waiting behind live mail
            name=run.name,  # a reconciliation recognises the message by it
            parameters=run.parameters,
            idempotency_key=f"{run.id}/{run.run_count}/again",
            tags=[*(tag for tag in run.tags if not ATTEMPT.fullmatch(tag)), f"{TAG}{attempt}"],
            state=Scheduled(scheduled_time=datetime.now(UTC) + pause, message=f"Attempt {attempt} of {ATTEMPTS}"),
            labels=dict(labels),
        )
    except (httpx.HTTPError, ObjectNotFound) as error:
        get_run_logger().warning("The next attempt could not be scheduled (%s).", type(error).__name__)
        return False
    return True
