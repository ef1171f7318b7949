"""The seam to Prefect: what the dispatcher asks of its API, and the ways in which it can say no."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from attachments.prefect_api.prefect_retry import retrying_async_settings
from attachments.receiver.inbox import Entry
from attachments.runs.state_record import FAILED_FOR_NOW, read_record
from attachments.storage.keys import SHORT_KEY_LENGTH

FLOW = "download-attachments"
PAGE = 200
ASK_AGAIN = 0.25  # seconds at the most between tries while Prefect's database is locked: somebody's mail waits
ATTEMPTS_END = 600.0  # seconds; the three attempts of a delivery take up to 100 each (webhooks/delivery)
RUNS = 20  # runs of one message that are looked at, the newest ones
NEW_PARAMETER = "has_attachments"
"""The parameter that deployments of version 0.1 do not have. Prefect takes it for them, and then their flow fails."""
DELIVERY = "attachments.delivery"
"""The label of a run that says which delivery made it: by the webhook's timestamp."""
ENTRY = "attachments.accepted"
"""The label of a run that says which entry of the inbox made it: by the moment when that was accepted."""
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
        self._takes_new: dict[str, bool] = {}
        """By deployment id, as of the last look: whether its flow has `NEW_PARAMETER`."""

    async def deployments(self) -> dict[str, str]:
        """Name and id of every deployment of `download-attachments`."""
        found: dict[str, str] = {}
        takes_new: dict[str, bool] = {}
        async with _translated(), _of_prefect():
            while True:
                page = await self._client.read_deployments(
                    flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
                    sort=DeploymentSort.NAME_ASC,
                    limit=PAGE,
                    offset=len(found),
                )
                for deployment in page:
                    found[deployment.name] = id_ = str(deployment.id)
                    properties = (deployment.parameter_openapi_schema or {}).get("properties", {})
                    takes_new[id_] = NEW_PARAMETER in properties
                if len(page) < PAGE:
                    self._takes_new = takes_new
                    return found

    async def create(self, entry: Entry, deployment_id: str) -> str:
        """Create the run under an idempotency key, so that a lost answer makes no second one.

        Such a key is taken for ever, also by a run that has ended. A delivery that came after that run was made is a
        wish to look again: it gets a run under a key derived from the newest one, unless that one serves it already.
        """
        key = f"{FLOW}/{entry.deployment}/{entry.message_key}"
        if deployment_id not in self._takes_new:  # just started: the inbox remembers the deployment's id, not its form
            await self.deployments()
        async with _translated():
            run = await self._make(entry, deployment_id, key)
            if not _serves(run, entry):
                run = await self._newest(entry, deployment_id, key) or run
            while not _serves(run, entry):
                run = await self._make(entry, deployment_id, f"{key}/after/{run.id}")
            return str(run.id)

    async def _make(self, entry: Entry, deployment_id: str, key: str) -> FlowRun:
        """The run under this key, which there may be already."""
        parameters = _parameters(entry)
        if not self._takes_new.get(deployment_id):  # older than this receiver, until `attachments setup` is run
            parameters.pop(NEW_PARAMETER, None)
        return await self._client.create_flow_run_from_deployment(
            UUID(deployment_id),
            name=entry.message_key[:SHORT_KEY_LENGTH],
            parameters=parameters,
            idempotency_key=key,
            labels={ENTRY: str(entry.accepted), **({DELIVERY: entry.timestamp} if entry.timestamp else {})},
        )

    async def _newest(self, entry: Entry, deployment_id: str, key: str) -> FlowRun | None:
        """The newest of the message's runs that deliveries have made: the last of their chain, however long it is."""
        found = await self._client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[UUID(deployment_id)])),
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[entry.message_key[:SHORT_KEY_LENGTH]])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=RUNS,
        )
        chain = [run for run in found if (run.idempotency_key or "").startswith(key)]
        return max(chain, key=_made, default=None)

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


def _serves(run: FlowRun, entry: Entry) -> bool:
    """Whether a run does what a delivery asks for.

    The one that it made does, and one that has not ended. So does a completed one of the same delivery, whose
    sender did not hear of its success; one that has failed does not. What somebody has cancelled stays cancelled for as
    long as a delivery may be an attempt of the one that made it; a later one is a wish to look again.
    """
    if run.labels.get(ENTRY) == str(entry.accepted):  # no times are compared: Prefect's clock may be another
        return True
    if run.state_type in ENDED_BADLY:
        return False
    if run.state_type == StateType.CANCELLED and run.state is not None:
        return entry.accepted - run.state.timestamp.timestamp() < ATTEMPTS_END
    if run.state_type != StateType.COMPLETED:
        return True
    is_same = entry.timestamp is not None and run.labels.get(DELIVERY) == entry.timestamp
    return is_same and entry.accepted - _made(run) < ATTEMPTS_END


def _made(run: FlowRun) -> float:
    """When a run was made, in seconds since the epoch."""
    return run.created.timestamp() if run.created else 0.0


def _ending(state: State[Any] | None) -> Ending | None:
    if state is None or not state.is_final():
        return None
    if state.is_completed():
        return Ending("stored", read_record(state).stored)
    passes = state.is_crashed() or state.name == FAILED_FOR_NOW
    return Ending("failed-for-now" if passes else "failed")


@asynccontextmanager
async def prefect_flow_runs() -> AsyncIterator[PrefectFlowRuns]:
    """A `PrefectFlowRuns` with an open client."""
    async with get_client(httpx_settings=retrying_async_settings(longest=ASK_AGAIN)) as client:
        yield PrefectFlowRuns(client)


def _parameters(entry: Entry) -> dict[str, Any]:
    values = {
        "message_id": entry.message_id,
        "mailbox": entry.mailbox,
        "received": entry.received.isoformat() if entry.received else None,
        "conversation_id": entry.conversation_id,
        NEW_PARAMETER: entry.has_attachments,
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


@asynccontextmanager
async def _of_prefect() -> AsyncIterator[None]:
    """A list that any Prefect has is missing only where something else answers, such as its UI without /api."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            raise PrefectUnavailable(
                f"what answers at PREFECT_API_URL is not its API: {status}; a server's ends with /api"
            ) from None
        raise


def _refusal(status: int) -> Exception:
    if status == httpx.codes.NOT_FOUND:
        return DeploymentGone("its API does not know the deployment")
    if status in THIS_RUN:
        return PrefectRefused(f"its API answered {status}")
    if status in KEYS:
        return PrefectUnavailable(f"its API answered {status}; compare PREFECT_API_KEY or PREFECT_API_AUTH_STRING")
    return PrefectUnavailable(f"its API answered {status}")
