"""Schedules: whether Prefect plans runs of the deployments that have one switched on.

A server whose scheduler fails says so in its own log alone, and everything else works.
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
from attachments.doctor.probe import asked
from attachments.foundation import cancellation

PLANNED = "auto-scheduled"
"""The tag that Prefect gives to the runs of a schedule."""
_server_schedule: TypeAdapter[CronSchedule | IntervalSchedule | RRuleSchedule] = TypeAdapter(
    CronSchedule | IntervalSchedule | RRuleSchedule
)
LOOK_AGAIN = 6.0  # seconds; a deployment that was just resumed is seen to every five
HORIZON = timedelta(days=99)
"""Prefect plans runs for 100 days (PREFECT_SERVER_SERVICES_SCHEDULER_MAX_SCHEDULED_TIME), a look at a time."""
NEW = timedelta(minutes=3)
"""Prefect looks through all schedules once a minute."""


def look_at_schedules(client: SyncPrefectClient, standing: Deployments) -> Iterator[Finding]:
    """Each deployment that runs by itself: whether a run of it is planned."""
    scheduled = {name: deployment for name, deployment in standing.items() if is_scheduled(deployment)}
    missing = _missing(client, scheduled)
    if missing:
        cancellation.sleep(LOOK_AGAIN)
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
                "Its schedule has ended: it does not run by itself any more.",
                "If it should, give the schedule a later end in the Prefect UI, or a new one; else switch the schedule "
                "off.",
                subject=name,
            )
        elif _is_new(deployment):
            text = "It was changed just now, and Prefect has planned no run yet."
            yield warning("schedule", text, "Look again in some minutes.", subject=name)
        else:
            yield failed(
                "schedule",
                "It is switched on, and Prefect plans no run: it never runs by itself.",
                "Look for errors of the scheduler in the Prefect server's log, and at the schedule in the UI.",
                subject=name,
            )


def _missing(client: SyncPrefectClient, deployments: Deployments) -> Deployments:
    """Those without a run of their schedules that is still to come."""
    missing = {}
    for name, deployment in deployments.items():
        to_come = {
            "deployment_id": {"any_": [str(deployment.id)]},
            "tags": {"all_": [PLANNED]},
            "expected_start_time": {"after_": datetime.now(UTC).isoformat()},
        }
        if not asked(client, "POST", "/flow_runs/count", {"flow_runs": to_come}):
            missing[name] = deployment
    return missing


def _next_dates(deployment: DeploymentResponse) -> list[datetime] | None:
    """The next date of each of its schedules that are on and have one, the earliest first, by Prefect's own reckoning.

    None when Prefect cannot reckon one of them.
    """
    active = [scheduled.schedule for scheduled in deployment.schedules if scheduled.active]
    try:
        return sorted(date for one in active for date in asyncio.run(_server_side(one).get_dates(1)))
    except ValueError:
        return None  # Prefect 3.9.1 cannot reckon with whenever 0.10 before Python 3.13, and then plans nothing


def _server_side(schedule: SCHEDULE_TYPES) -> CronSchedule | IntervalSchedule | RRuleSchedule:
    """The client's own schedules cannot reckon."""
    return _server_schedule.validate_python(schedule.model_dump())


def _is_new(deployment: DeploymentResponse) -> bool:
    """Whether a schedule of it that is on has changed just now."""
    changed = [schedule.updated for schedule in deployment.schedules if schedule.active]
    return any(moment is not None and datetime.now(UTC) - moment < NEW for moment in changed)
