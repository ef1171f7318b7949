"""Checks that Prefect plans runs for the deployments with an active schedule.

A server whose scheduler fails reports it only in its own log, while everything else works.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from pydantic import TypeAdapter

from attachments.doctor.deployments import Deployments, is_scheduled
from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import request_json
from attachments.foundation import cancellation

SCHEDULED_TAG = "auto-scheduled"
"""Prefect's tag for the runs of a schedule."""
_server_schedule: TypeAdapter[CronSchedule | IntervalSchedule | RRuleSchedule] = TypeAdapter(
    CronSchedule | IntervalSchedule | RRuleSchedule
)
RECHECK_DELAY = 6.0  # seconds; Prefect processes resumed deployments every five
HORIZON = timedelta(days=99)
"""Prefect plans runs for 100 days (PREFECT_SERVER_SERVICES_SCHEDULER_MAX_SCHEDULED_TIME)."""
SCHEDULER_DELAY = timedelta(minutes=3)
"""Prefect processes all schedules once a minute."""


def check_schedules(
    client: SyncPrefectClient, deployments: Deployments, *, recheck_delay: float = RECHECK_DELAY
) -> Iterator[Finding]:
    """Check that each scheduled deployment has a planned run."""
    scheduled = {name: deployment for name, deployment in deployments.items() if is_scheduled(deployment)}
    missing = _missing(client, scheduled)
    if missing:
        cancellation.sleep(recheck_delay)
        missing = _missing(client, missing)
    for name, deployment in scheduled.items():
        if name not in missing:
            yield ok("schedule", "Its next run is planned.", subject=name)
            continue
        due = _next_dates(deployment)
        if due and due[0] > datetime.now(UTC) + HORIZON:
            text = f"Its next run is due on {due[0]:%Y-%m-%d}; Prefect plans runs {HORIZON.days + 1} days ahead."
            yield ok("schedule", text, subject=name)
        elif due == []:
            yield warning(
                "schedule",
                "Its schedule has ended, so it no longer starts runs.",
                "If it should, give the schedule a later end in the Prefect UI, or a new one; else switch the schedule "
                "off.",
                subject=name,
            )
        elif _is_new(deployment):
            text = "It was changed a moment ago, and Prefect has not planned a run yet."
            yield warning("schedule", text, "Look again in some minutes.", subject=name)
        else:
            yield failed(
                "schedule",
                "It is active, but Prefect plans no run, so it never starts one.",
                "Look for errors of the scheduler in the Prefect server's log, and at the schedule in the UI.",
                subject=name,
            )


def _missing(client: SyncPrefectClient, deployments: Deployments) -> Deployments:
    """Those without a planned run in the future."""
    missing = {}
    for name, deployment in deployments.items():
        to_come = {
            "deployment_id": {"any_": [str(deployment.id)]},
            "tags": {"all_": [SCHEDULED_TAG]},
            "expected_start_time": {"after_": datetime.now(UTC).isoformat()},
        }
        if not request_json(client, "POST", "/flow_runs/count", {"flow_runs": to_come}):
            missing[name] = deployment
    return missing


def _next_dates(deployment: DeploymentResponse) -> list[datetime] | None:
    """The next date of each active schedule that has one, the earliest first, as Prefect's own code computes them.

    None if Prefect cannot compute one of them.
    """
    active = [scheduled.schedule for scheduled in deployment.schedules if scheduled.active]
    try:
        return sorted(date for one in active for date in asyncio.run(_server_side(one).get_dates(1)))
    except ValueError:
        return None  # with whenever 0.10 before Python 3.13, Prefect 3.9.1 cannot compute dates, and then plans no runs


def _server_side(schedule: SCHEDULE_TYPES) -> CronSchedule | IntervalSchedule | RRuleSchedule:
    """The server's schedule; the client's cannot compute dates."""
    return _server_schedule.validate_python(schedule.model_dump())


def _is_new(deployment: DeploymentResponse) -> bool:
    """Whether an active schedule was changed within `SCHEDULER_DELAY`."""
    changed = [schedule.updated for schedule in deployment.schedules if schedule.active]
    return any(moment is not None and datetime.now(UTC) - moment < SCHEDULER_DELAY for moment in changed)
