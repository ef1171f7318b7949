"""Switches the hourly reconciliation on, once the API key has the scope that it needs, and off when it has not."""

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

Result = Literal["made", "updated", "was there", "WRONG", "REMOVED"]
Tell = Callable[[Result, str], None]

RECONCILIATION = "reconcile-attachments/default"
HOURLY = "hourly"
"""The schedule's slug, as prefect.yaml has it."""
SWITCHED = "attachments-reconciliation-switched-on"
"""The Variable that remembers that it was switched on: whoever switches it off afterwards is heeded."""
ASKING = 45.0
"""Seconds for Emailgistics, and for a slot of the pacing limit before that."""


@dataclass(frozen=True)
class Problem:
    """Why reconciling would fail, and what to do."""

    told: str
    lacks_scope: bool = False
    is_lasting: bool = False
    """Whether every call would fail until somebody has changed something: the key was rejected, for example."""


async def switch_reconciliation(problem: Problem | None, client: PrefectClient, tell: Tell) -> None:
    """Switch the schedule on when the key has the scope for it, as `reporting_problem` has found.

    It is switched off when the key lacks it, and stays off when somebody else has switched it off.
    """
    subject = f"schedule of {RECONCILIATION}"
    try:
        deployment = await client.read_deployment_by_name(RECONCILIATION)
    except ObjectNotFound:
        return
    schedule = next((known for known in deployment.schedules if known.slug == HOURLY), None)
    if schedule is None:
        tell("was there", f"{subject}: another than ours")
        return
    if not schedule.active and await client.read_variable_by_name(SWITCHED) is not None:
        tell(
            "was there",
            f"{subject}: off, by hand or by `prefect deploy`; switch it on in the Prefect UI under Deployments",
        )
        return
    if problem is None and not schedule.active:
        await client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        await _remember(client)
        tell("updated", f"{subject}: switched on, every hour, since the API key has the scope reporting")
    elif problem is not None and problem.lacks_scope and schedule.active:
        await client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        with suppress(ObjectNotFound):
            await client.delete_variable_by_name(SWITCHED)  # ours, so a key with the scope switches it on again
        tell("updated", f"{subject}: switched off. {problem.told}")
    else:
        if problem is None and schedule.active:
            await _remember(client)  # whoever switched it on, or died here: off by hand stays off
        state = "every hour" if schedule.active else "off"
        tell("was there", f"{subject}: {state}.{f' {problem.told}' if problem and problem.lacks_scope else ''}")


async def _remember(client: PrefectClient) -> None:
    with suppress(ObjectAlreadyExists):
        await client.create_variable(VariableCreate(name=SWITCHED, value=True))


async def reporting_problem(account: EmailgisticsAccount) -> Problem | None:
    """Why reconciling would fail; None when it would not. Asks Emailgistics for the mailboxes, paced as every call."""
    wish = Cancellation()
    try:
        return await asyncio.to_thread(_problem, account, wish)
    finally:
        wish.cancel()  # after Ctrl-C nobody waits for the answer


def _problem(account: EmailgisticsAccount, wish: Cancellation) -> Problem | None:
    CURRENT.set(wish)  # of this thread's context alone
    timer = threading.Timer(ASKING, wish.cancel)
    timer.daemon = True
    timer.start()
    try:
        account.client().mailboxes()
    except Forbidden:
        return Problem(
            "The API key lacks the scope reporting, so messages whose webhook never came are not found. Make a key "
            "with it, put it into EMAILGISTICS_API_KEY, and run `attachments setup` again.",
            lacks_scope=True,
        )
    except RunCancelled:
        return Problem(f"Emailgistics was not reached within {ASKING:.0f} s; run `attachments setup` again.")
    except EmailgisticsError as error:
        return Problem(str(error), is_lasting=not error.retryable)
    except PacingError as error:
        return Problem(str(error))
    finally:
        timer.cancel()
    return None
