"""Switches the hourly reconciliation on, once the API key has the scope that it needs."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from attachments.cancelling import CURRENT, Cancellation, RunCancelled
from attachments.emailgistics import EmailgisticsError, Forbidden
from attachments.pacing import PacingError
from blocks import EmailgisticsAccount

Result = Literal["made", "updated", "was there"]
Tell = Callable[[Result, str], None]

RECONCILIATION = "reconcile-attachments/default"
HOURLY = "hourly"
"""The schedule's slug, as prefect.yaml has it."""
SWITCHED = "attachments-reconciliation-switched-on"
"""The Variable that remembers that it was switched on: whoever switches it off afterwards is heeded."""
ASKING = 45.0
"""Seconds for Emailgistics, and for a slot of the pacing limit before that."""


async def switch_reconciliation_on(account: EmailgisticsAccount, client: PrefectClient, tell: Tell) -> None:
    """Ask Emailgistics for the mailboxes, which needs the scope, and switch the schedule on when it answers. Once."""
    subject = f"schedule of {RECONCILIATION}"
    try:
        deployment = await client.read_deployment_by_name(RECONCILIATION)
    except ObjectNotFound:
        return
    schedule = next((known for known in deployment.schedules if known.slug == HOURLY), None)
    if schedule is None or schedule.active:
        tell("was there", f"{subject}: {'every hour' if schedule else 'another than ours'}")
        return
    if await client.read_variable_by_name(SWITCHED) is not None:
        tell("was there", f"{subject}: switched off by hand; switch it on in the Prefect UI under Deployments")
        return
    if problem := await asyncio.to_thread(_problem, account):
        tell("was there", f"{subject}: off. {problem}")
        return
    await client.update_deployment_schedule(deployment.id, schedule.id, active=True)
    with suppress(ObjectAlreadyExists):
        await client.create_variable(VariableCreate(name=SWITCHED, value=True))
    tell("updated", f"{subject}: switched on, every hour, since the API key has the scope reporting")


def _problem(account: EmailgisticsAccount) -> str | None:
    """Why reconciling would fail; None when it would not. One call, paced as every other."""
    wish = Cancellation()
    CURRENT.set(wish)  # of this thread's context alone
    timer = threading.Timer(ASKING, wish.ask)
    timer.daemon = True
    timer.start()
    try:
        account.client().mailboxes()
    except Forbidden:
        return (
            "The API key lacks the scope reporting, so messages whose webhook never came are not found. Make a key "
            "with it, put it into EMAILGISTICS_API_KEY, and run `attachments setup` again."
        )
    except RunCancelled:
        return f"Emailgistics was not reached within {ASKING:.0f} s; run `attachments setup` again."
    except (EmailgisticsError, PacingError) as error:
        return str(error)
    finally:
        timer.cancel()
    return None
