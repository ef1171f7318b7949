"""Switches the hourly reconciliation on if the API key has the scope for it, and off if it does not."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from attachments.blocks import EmailgisticsAccount
from attachments.emailgistics import EmailgisticsError, Forbidden
from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.rate_limit.errors import PacingError

Result = Literal["created", "updated", "unchanged", "INVALID", "REMOVED"]
ReportResult = Callable[[Result, str], None]

RECONCILIATION = "reconcile-attachments/default"
HOURLY = "hourly"
"""The schedule's slug in prefect.yaml."""
SWITCHED_ON_VARIABLE = "attachments-reconciliation-switched-on"
"""The Variable that records that it was switched on, so that it stays off if a person switches it off later."""
RESPONSE_TIMEOUT = 45.0
"""Seconds for a slot of the rate limit and the response of Emailgistics."""


@dataclass(frozen=True)
class ReportingProblem:
    """Why a reconciliation would fail, and what to do."""

    message: str
    lacks_scope: bool = False
    is_permanent: bool = False
    """Whether every call fails until a person changes something, for example if the key was rejected."""


async def switch_reconciliation(problem: ReportingProblem | None, client: PrefectClient, tell: ReportResult) -> None:
    """Switch the schedule on if the key has the scope for it, as found by `reporting_problem`.

    It is switched off if the key lacks the scope, and stays off if a person has switched it off.
    """
    subject = f"schedule of {RECONCILIATION}"
    try:
        deployment = await client.read_deployment_by_name(RECONCILIATION)
    except ObjectNotFound:
        return
    schedule = next((known for known in deployment.schedules if known.slug == HOURLY), None)
    if schedule is None:
        tell("unchanged", f"{subject}: replaced by another schedule")
        return
    if not schedule.active and await client.read_variable_by_name(SWITCHED_ON_VARIABLE) is not None:
        tell(
            "unchanged",
            f"{subject}: switched off by a person or by `prefect deploy`; switch it on in the Prefect UI under "
            "Deployments",
        )
        return
    if problem is None and not schedule.active:
        await client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        await _remember_switched_on(client)
        tell("updated", f"{subject}: switched on, every hour, since the API key has the scope reporting")
    elif problem is not None and problem.lacks_scope and schedule.active:
        await client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        with suppress(ObjectNotFound):
            await client.delete_variable_by_name(
                SWITCHED_ON_VARIABLE
            )  # so that a key with the scope switches it on again
        tell("updated", f"{subject}: switched off. {problem.message}")
    else:
        if problem is None and schedule.active:
            await _remember_switched_on(client)  # so that it stays off if a person switches it off later
        state = "every hour" if schedule.active else "off"
        tell("unchanged", f"{subject}: {state}.{f' {problem.message}' if problem and problem.lacks_scope else ''}")


async def _remember_switched_on(client: PrefectClient) -> None:
    with suppress(ObjectAlreadyExists):
        await client.create_variable(VariableCreate(name=SWITCHED_ON_VARIABLE, value=True))


async def reporting_problem(account: EmailgisticsAccount) -> ReportingProblem | None:
    """Why a reconciliation would fail; None if it would not. Requests the mailboxes, within the rate limit."""
    wish = Cancellation()
    try:
        return await asyncio.to_thread(_problem, account, wish)
    finally:
        wish.cancel()  # after Ctrl-C, end the call


def _problem(account: EmailgisticsAccount, wish: Cancellation) -> ReportingProblem | None:
    CURRENT.set(wish)  # in this thread's context only
    timer = threading.Timer(RESPONSE_TIMEOUT, wish.cancel)
    timer.daemon = True
    timer.start()
    try:
        account.client().mailboxes()
    except Forbidden:
        return ReportingProblem(
            "The API key lacks the scope reporting, so messages whose webhook never arrived are not found. Create a "
            "key with it, put it into EMAILGISTICS_API_KEY, and run `attachments setup` again.",
            lacks_scope=True,
        )
    except RunCancelled:
        return ReportingProblem(
            f"Emailgistics was not reached within {RESPONSE_TIMEOUT:.0f} s; run `attachments setup` again."
        )
    except EmailgisticsError as error:
        return ReportingProblem(str(error), is_permanent=not error.retryable)
    except PacingError as error:
        return ReportingProblem(str(error))
    finally:
        timer.cancel()
    return None
