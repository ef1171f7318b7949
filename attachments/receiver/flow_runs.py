"""The dispatcher's interface to Prefect's API, and the errors it raises."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from attachments.prefect_api.paging import PAGE, all_pages_async
from attachments.prefect_api.prefect_retry import retrying_async_settings
from attachments.receiver.inbox import Entry
from attachments.runs.download_runs import (
    FLOW,
    OF_FLOW,
    RUN_REFUSED_STATUSES,
    run_name,
)
from attachments.runs.state_record import FAILED_FOR_NOW, read_record

MAX_LOCKED_RETRY_DELAY = (
    0.25  # seconds between attempts while Prefect's database is locked, short because live mail waits
)
MAX_DELIVERY_DURATION = 600.0  # seconds; the three attempts of a delivery take up to 100 each (webhooks/delivery)
MAX_RUNS_OF_MESSAGE = 20  # the newest runs of a message that are read
NEW_PARAMETER = "has_attachments"
"""A parameter that deployments of version 0.1 lack. Prefect would accept it for them, and then their flow would
fail."""
DELIVERY_LABEL = "attachments.delivery"
"""Label of a run: the timestamp of the webhook delivery that created it."""
ENTRY_LABEL = "attachments.accepted"
"""Label of a run: when the inbox accepted the entry that created it."""
UNSUCCESSFUL_STATES = (StateType.FAILED, StateType.CRASHED)
AUTHENTICATION_STATUSES = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


class PrefectUnavailable(Exception):
    """Prefect's API cannot be reached or accepts no requests now; a retry may succeed."""


class PrefectRefused(Exception):
    """Prefect's API responded, and refuses this run as it is."""


class UnknownDeployment(PrefectRefused):
    """Prefect's API has no deployment with this id, or no longer has it."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, and how many of the message's attachments are in the store."""

    kind: Literal["stored", "failed-for-now", "failed"]
    stored: int = 0


class FlowRuns(Protocol):
    """What the dispatcher needs from Prefect."""

    async def deployments(self) -> Mapping[str, str]:
        """Name and id of every deployment of the flow."""

    async def create(self, entry: Entry, deployment_id: str) -> str:
        """Create the flow run of an entry, at most once however often it is called, and return its id."""

    async def outcomes(self, run_ids: Collection[str]) -> Mapping[str, RunOutcome]:
        """The outcomes of those of these runs that have ended."""


class PrefectFlowRuns:
    """`FlowRuns` over Prefect's client. Raises `PrefectUnavailable` and `PrefectRefused` only."""

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._has_new_parameter: dict[str, bool] = {}
        """By deployment id: whether its flow has `NEW_PARAMETER`, as of the last read."""

    async def deployments(self) -> dict[str, str]:
        """Name and id of every deployment of `download-attachments`."""
        found: dict[str, str] = {}
        takes_new: dict[str, bool] = {}
        async with _translated_errors(), _missing_list_is_not_prefect():
            read = partial(self._client.read_deployments, flow_filter=OF_FLOW, sort=DeploymentSort.NAME_ASC)
            async for deployment in all_pages_async(read):
                found[deployment.name] = id_ = str(deployment.id)
                properties = (deployment.parameter_openapi_schema or {}).get("properties", {})
                takes_new[id_] = NEW_PARAMETER in properties
        self._has_new_parameter = takes_new
        return found

    async def create(self, entry: Entry, deployment_id: str) -> str:
        """Create the run under an idempotency key, so that a lost response causes no second one.

        A key stays taken for ever, even by a run that has ended. A delivery that arrived after that run was created
        requests another one, under a key derived from the newest run, unless that run satisfies it.
        """
        key = f"{FLOW}/{entry.deployment}/{entry.message_key}"
        if (
            deployment_id not in self._has_new_parameter
        ):  # after a start: the inbox stores the deployment's id, not its parameters
            await self.deployments()
        async with _translated_errors():
            run = await self._create_under_key(entry, deployment_id, key)
            if not _satisfies(run, entry):
                run = await self._newest_run(entry, deployment_id, key) or run
            while not _satisfies(run, entry):
                run = await self._create_under_key(entry, deployment_id, f"{key}/after/{run.id}")
            return str(run.id)

    async def _create_under_key(self, entry: Entry, deployment_id: str, key: str) -> FlowRun:
        """The run under this key, created if it does not exist."""
        parameters = _parameters(entry)
        if not self._has_new_parameter.get(
            deployment_id
        ):  # the deployment is the deployment is older than this receiver, until `attachments setup` is run
            parameters.pop(NEW_PARAMETER, None)
        return await self._client.create_flow_run_from_deployment(
            UUID(deployment_id),
            name=run_name(entry.message_key),
            parameters=parameters,
            idempotency_key=key,
            labels={ENTRY_LABEL: str(entry.accepted), **({DELIVERY_LABEL: entry.timestamp} if entry.timestamp else {})},
        )

    async def _newest_run(self, entry: Entry, deployment_id: str, key: str) -> FlowRun | None:
        """The newest run that a delivery of this message created, which is the last of their chain of keys."""
        found = await self._client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[UUID(deployment_id)])),
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[run_name(entry.message_key)])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=MAX_RUNS_OF_MESSAGE,
        )
        chain = [run for run in found if (run.idempotency_key or "").startswith(key)]
        return max(chain, key=_created_at, default=None)

    async def outcomes(self, run_ids: Collection[str]) -> dict[str, RunOutcome]:
        """The outcomes of those of these runs that have ended. A run that was deleted has failed."""
        async with _translated_errors():
            found: list[FlowRun] = []
            ids = [UUID(run_id) for run_id in run_ids]
            for at in range(0, len(ids), PAGE):
                page = FlowRunFilter(id=FlowRunFilterId(any_=ids[at : at + PAGE]))
                found += await self._client.read_flow_runs(flow_run_filter=page, limit=PAGE)
            outcomes = {str(run.id): _outcome(run.state) for run in found}
        found_or_failed = {run_id: outcomes.get(run_id, RunOutcome("failed")) for run_id in run_ids}
        return {run_id: outcome for run_id, outcome in found_or_failed.items() if outcome is not None}


def _satisfies(run: FlowRun, entry: Entry) -> bool:
    """Whether a run satisfies a delivery.

    The run that the delivery created does, and so does an unfinished run. A completed run of the same delivery does
    too, because its sender may have missed the response; a failed one does not. A cancelled run does as long as the
    delivery may be a redelivery of the one that created it; a later delivery requests another run.
    """
    if run.labels.get(ENTRY_LABEL) == str(entry.accepted):  # compares no times, because Prefect's clock may differ
        return True
    if run.state_type in UNSUCCESSFUL_STATES:
        return False
    if run.state_type == StateType.CANCELLED and run.state is not None:
        return entry.accepted - run.state.timestamp.timestamp() < MAX_DELIVERY_DURATION
    if run.state_type != StateType.COMPLETED:
        return True
    is_same = entry.timestamp is not None and run.labels.get(DELIVERY_LABEL) == entry.timestamp
    return is_same and entry.accepted - _created_at(run) < MAX_DELIVERY_DURATION


def _created_at(run: FlowRun) -> float:
    """When a run was created, in seconds since the epoch."""
    return run.created.timestamp() if run.created else 0.0


def _outcome(state: State[Any] | None) -> RunOutcome | None:
    if state is None or not state.is_final():
        return None
    if state.is_completed():
        return RunOutcome("stored", read_record(state).stored)
    passes = state.is_crashed() or state.name == FAILED_FOR_NOW
    return RunOutcome("failed-for-now" if passes else "failed")


@asynccontextmanager
async def prefect_flow_runs() -> AsyncIterator[PrefectFlowRuns]:
    """A `PrefectFlowRuns` with an open client."""
    async with get_client(httpx_settings=retrying_async_settings(longest=MAX_LOCKED_RETRY_DELAY)) as client:
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
async def _translated_errors() -> AsyncIterator[None]:
    """Translate the errors of Prefect's client. Their texts may quote parameters, so they are left out."""
    try:
        yield
    except ObjectNotFound:
        raise UnknownDeployment("the deployment does not exist any more") from None
    except PrefectHTTPStatusError as error:
        raise _error_for_status(error.response.status_code) from None
    except httpx.HTTPError as error:
        raise PrefectUnavailable(f"no response: {type(error).__name__}") from None
    # The client raises these if something else responds at Prefect's address (a proxy's page, another version).
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise PrefectUnavailable(f"PREFECT_API_URL is not the address of its API: {type(error).__name__}") from None


@asynccontextmanager
async def _missing_list_is_not_prefect() -> AsyncIterator[None]:
    """Report a missing list of deployments as a wrong address, such as the UI's without /api: any Prefect has the
    list."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            raise PrefectUnavailable(
                f"PREFECT_API_URL is not the address of its API: {status}; a server's ends with /api"
            ) from None
        raise


def _error_for_status(status: int) -> Exception:
    if status == httpx.codes.NOT_FOUND:
        return UnknownDeployment("its API does not have the deployment")
    if status in RUN_REFUSED_STATUSES:
        return PrefectRefused(f"its API responded {status}")
    if status in AUTHENTICATION_STATUSES:
        return PrefectUnavailable(f"its API responded {status}; compare PREFECT_API_KEY or PREFECT_API_AUTH_STRING")
    return PrefectUnavailable(f"its API responded {status}")
