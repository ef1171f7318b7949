"""How the worker changes the states of runs that no thread of its own brings to an end."""

import logging
from contextlib import suppress

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Cancelled, Scheduled

from attachments.foundation.terminal_text import escaped_line

logger = logging.getLogger("prefect.attachments.worker")


async def set_state(client: PrefectClient, run: FlowRun, state: State[None]) -> None:
    """Set a run's state against Prefect's rules, and log it. No-op if the run is gone. Raises `httpx.HTTPError`."""
    with suppress(ObjectNotFound, Abort):
        await client.set_flow_run_state(run.id, state, force=True)
        logger.warning("Flow run %s is now %s: %s", run.id, state.name, escaped_line(state.message or ""))


async def reschedule(client: PrefectClient, run: FlowRun, message: str) -> None:
    """Return a run to the queue; one that was to be cancelled ends instead. Raises `httpx.HTTPError`."""
    if run.state_type == StateType.CANCELLING:
        await set_state(client, run, Cancelled(message="Cancelled while its worker was gone."))
    else:
        await set_state(client, run, Scheduled(name="AwaitingRetry", message=message))


def reason(error: Exception) -> str:
    """Why a request to Prefect failed: a status or the kind of error, never a text of unknown origin."""
    return str(error.response.status_code) if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
