"""The seam to Prefect: what the dispatcher asks of its API, and the ways in which it can say no."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import DeploymentSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from attachments.flows.endings import FAILED_FOR_NOW, stored_count
from attachments.prefect_busy import make_patient
from attachments.receiver.inbox import Entry

FLOW = "download-attachments"
PAGE = 200
NAME_DIGITS = 12
ASK_AGAIN = 0.25  # seconds at the most between tries while Prefect's database is locked: somebody's mail waits
ENDED_BADLY = (StateType.FAILED, StateType.CRASHED)
THIS_RUN = (httpx.codes.BAD_REQUEST, httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY)
KEYS = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


class PrefectUnavailable(Exception):
    """Prefect's API cannot be reached or takes nothing from us now; it may later."""


class PrefectRefused(Exception):
    """Prefect's API answered, and will not take this run as it is."""


class DeploymentGone(PrefectRefused):
    """Prefect's API does not know the deployment, or not under this id any more."""


@dataclass(frozen=True)
class Ending:
    """How a run has ended, and how many of the message's attachments are in the store."""

    kind: Literal["stored", "failed-for-now", "failed"]
    stored: int = 0


class FlowRuns(Protocol):
    """What the dispatcher needs of Prefect."""

    async def deployments(self) -> Mapping[str, str]:
        """Name and id of every deployment of the flow."""

    async def create(self, entry: Entry, deployment_id: str) -> str:
        """Create the flow run of an entry, once however often it is asked; hands back its id."""

    async def endings(self, run_ids: Collection[str]) -> Mapping[str, Ending]:
        """How those of these runs ended that have."""


class PrefectFlowRuns:
    """`FlowRuns` over Prefect's client. Raises `PrefectUnavailable` and `PrefectRefused` only."""

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def deployments(self) -> dict[str, str]:
        """Name and id of every deployment of `download-attachments`."""
        found: dict[str, str] = {}
        async with _translated():
            while True:
                page = await self._client.read_deployments(
                    flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
                    sort=DeploymentSort.NAME_ASC,
                    limit=PAGE,
                    offset=len(found),
                )
                found.update({deployment.name: str(deployment.id) for deployment in page})
                if len(page) < PAGE:
                    return found

    async def create(self, entry: Entry, deployment_id: str) -> str:
        """Create the run under an idempotency key, so that a lost answer or a redelivery makes no second one.

        Such a key is taken for ever, also by a run that failed. A delivery that came after that run was made
        is a wish to try again: it gets a run under a key derived from the failed one.
        """
        key = f"{FLOW}/{entry.deployment}/{entry.message_key}"
        async with _translated():
            while True:
                run = await self._client.create_flow_run_from_deployment(
                    UUID(deployment_id),
                    name=entry.message_key[:NAME_DIGITS],
                    parameters=_parameters(entry),
                    idempotency_key=key,
                )
                made = run.created.timestamp() if run.created else entry.accepted
                if run.state_type not in ENDED_BADLY or made >= entry.accepted:
                    return str(run.id)
                key = f"{FLOW}/{entry.deployment}/{entry.message_key}/after/{run.id}"

    async def endings(self, run_ids: Collection[str]) -> dict[str, Ending]:
        """How those of these runs ended that have. A run that was deleted has failed."""
        async with _translated():
            found: list[FlowRun] = []
            asked = [UUID(run_id) for run_id in run_ids]
            for at in range(0, len(asked), PAGE):
                some = FlowRunFilter(id=FlowRunFilterId(any_=asked[at : at + PAGE]))
                found += await self._client.read_flow_runs(flow_run_filter=some, limit=PAGE)
            endings = {str(run.id): _ending(run.state) for run in found}
        told = {run_id: endings.get(run_id, Ending("failed")) for run_id in run_ids}
        return {run_id: ending for run_id, ending in told.items() if ending is not None}


def _ending(state: State[Any] | None) -> Ending | None:
    if state is None or not state.is_final():
        return None
    if state.is_completed():
        return Ending("stored", stored_count(state.message or ""))
    passes = state.is_crashed() or state.name == FAILED_FOR_NOW
    return Ending("failed-for-now" if passes else "failed")


@asynccontextmanager
async def prefect_flow_runs() -> AsyncIterator[PrefectFlowRuns]:
    """A `PrefectFlowRuns` with an open client."""
    async with get_client() as client:
        make_patient(client, longest=ASK_AGAIN)
        yield PrefectFlowRuns(client)


def _parameters(entry: Entry) -> dict[str, Any]:
    values = {
        "message_id": entry.message_id,
        "mailbox": entry.mailbox,
        "received": entry.received.isoformat() if entry.received else None,
        "conversation_id": entry.conversation_id,
    }
    return {name: value for name, value in values.items() if value is not None}


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Turn what Prefect's client raises into our errors. Its texts may quote parameters, so they stay out."""
    try:
        yield
    except ObjectNotFound:
        raise DeploymentGone("the deployment does not exist any more") from None
    except PrefectHTTPStatusError as error:
        raise _refusal(error.response.status_code) from None
    except httpx.HTTPError as error:
        raise PrefectUnavailable(f"no answer: {type(error).__name__}") from None
    # Whatever else answers at Prefect's address (a proxy's page, another version) makes its client raise any of these.
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise PrefectUnavailable(f"what answers at PREFECT_API_URL is not its API: {type(error).__name__}") from None


def _refusal(status: int) -> Exception:
    if status == httpx.codes.NOT_FOUND:
        return DeploymentGone("its API does not know the deployment")
    if status in THIS_RUN:
        return PrefectRefused(f"its API answered {status}")
    if status in KEYS:
        return PrefectUnavailable(f"its API answered {status}; compare PREFECT_API_KEY or PREFECT_API_AUTH_STRING")
    return PrefectUnavailable(f"its API answered {status}")
