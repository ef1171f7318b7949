"""The seam to Prefect for flows that have messages downloaded by runs of another deployment: create, read, cancel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import Abort, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled
from pydantic import BaseModel, ConfigDict, ValidationError

from attachments.blocks import EmailgisticsAccount
from attachments.domain.selection import Filter
from attachments.emailgistics import NotFound
from attachments.foundation.terminal_text import shown_name
from attachments.prefect_api.paging import PAGE, all_pages
from attachments.prefect_api.prefect_retry import PrefectUnreachable, own_client
from attachments.prefect_api.url_path import path_part
from attachments.runs.block_loader import load_account, load_store
from attachments.runs.delayed_retry import ATTEMPT
from attachments.runs.download_runs import FLOW, OF_FLOW, RUN_REFUSED_STATUSES, run_name
from attachments.runs.errors import NotConfigured, retry_until_available
from attachments.runs.state_record import UNKNOWN, WITHDRAWN, StateRecord, read_record, write_record
from attachments.storage import Store, message_key

BACKFILL = "backfill"
"""The tag of runs that let live mail go first, and the work queue that they wait in."""
DEFAULT_QUEUE = "default"
RESPONSE_TIMEOUT = 30.0  # seconds for Prefect to answer
FIRST_RETRY_DELAY = 0.1  # seconds before the first repetition of a request that a busy SQLite has not answered
IN_PROGRESS = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
STARTED = [*IN_PROGRESS, *TERMINAL_STATES]
"""States of a run that a worker has taken, or that has ended."""
REFUSED = "refused"
CRASHED = "crashed"
NOT_FOUND = NotFound.outcome_code
DELETED = "deleted"

T = TypeVar("T")


class MessageRef(BaseModel):
    """A message whose attachments are to be stored, and what is known about it."""

    model_config = ConfigDict(frozen=True)

    message_id: str
    mailbox: str | None = None
    received: datetime | None = None
    conversation_id: str | None = None

    @property
    def key(self) -> str:
        """The message's key."""
        return message_key(self.message_id)


@dataclass(frozen=True)
class DownloadDeployment:
    """A deployment of `download-attachments`, and the blocks and the filter of its runs."""

    name: str
    deployment_id: UUID
    work_pool: str | None
    work_queue: str | None
    filter: Filter
    account: EmailgisticsAccount
    store: Store
    force: bool = False
    account_name: str = "default"
    """The name of the account's block."""

    @classmethod
    def load(cls, deployment_name: str) -> DownloadDeployment:
        """The deployment of that name. Raises `NotConfigured` if it or one of its blocks does not exist."""
        name = deployment_name.strip().removeprefix(f"{FLOW}/")
        if not name or "/" in name:
            raise NotConfigured(
                f"The name of a deployment of {FLOW} is needed, without the flow: backfill, for example."
            )
        try:
            path = f"{FLOW}/{path_part(name)}"
            found = retry_until_available(lambda: get_client(sync_client=True).read_deployment_by_name(path))
        except ObjectNotFound:
            raise NotConfigured(
                f"There is no deployment {FLOW}/{shown_name(name)}. `attachments setup` makes default and backfill."
            ) from None
        if found.work_queue_id is None:
            raise NotConfigured(
                f"The deployment {FLOW}/{shown_name(name)} has no work pool, so no worker takes its runs."
            )
        parameters = found.parameters
        try:
            selection = Filter.model_validate(parameters.get("filter") or {})
        except ValidationError:
            raise NotConfigured(
                f"The filter of the deployment {FLOW}/{shown_name(name)} is not valid. See docs/filters.md."
            ) from None
        account_name = str(parameters.get("account") or "default")
        return cls(
            name=name,
            deployment_id=found.id,
            work_pool=found.work_pool_name,
            work_queue=found.work_queue_name,
            filter=selection,
            account=load_account(account_name),
            store=load_store(str(parameters.get("store") or "default")).store(),
            force=bool(parameters.get("force")),
            account_name=account_name,
        )


class Stage(Enum):
    """The stage that a run has reached."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    RETRY_SCHEDULED = "failed for now"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_ended(self) -> bool:
        """Whether the run has ended."""
        return self not in {Stage.WAITING, Stage.RUNNING}


FINAL_STAGES = {
    StateType.COMPLETED: Stage.SUCCEEDED,
    StateType.CANCELLED: Stage.CANCELLED,
    StateType.FAILED: Stage.RETRY_SCHEDULED,
}


@dataclass(frozen=True)
class Child:
    """A run with its stage and, if it failed, the error code."""

    id: UUID | None
    """None if Prefect refused to create the run."""
    stage: Stage
    code: str | None = None
    tags: frozenset[str] = frozenset()
    since: datetime | None = None
    """When it entered its stage."""
    created: datetime | None = None
    first_attempt: datetime | None = None
    """When the message's oldest run of the caller's kind since its last success was created, if that is known; of a
    run of another kind that has not ended, when that was created."""

    @property
    def is_later_attempt(self) -> bool:
        """Whether it is a delayed retry that has not started."""
        return self.stage is Stage.WAITING and any(ATTEMPT.fullmatch(tag) for tag in self.tags)


class ChildRuns:
    """Runs of a target. The methods wait while Prefect is unavailable, and are thread-safe.

    They raise `PrefectLost` when it stays unavailable, `NotConfigured` when the deployment is gone, and `RunCancelled`.
    """

    def __init__(
        self,
        client: SyncPrefectClient,
        target: DownloadDeployment,
        *,
        key_prefix: str,
        tags: Sequence[str],
        force: bool,
    ) -> None:
        self._client = client
        self._target = target
        self._key_prefix = key_prefix
        if not tags:
            raise ValueError("child runs need a tag: without one, cancelling them would match every run")
        self._tags = tuple(tags)
        self._force = force
        # For any deployment: old mail waits behind live mail.
        shares_queue = target.work_queue in {None, DEFAULT_QUEUE}
        self._work_queue = BACKFILL if BACKFILL in self._tags and shares_queue else None

    def create(self, message: MessageRef, predecessor: UUID | None = None) -> Child:
        """The run of a message: created once, however often this is called with the same prefix and `predecessor`."""
        values = message.model_dump(mode="json", exclude_none=True)
        parameters = {**values, "force": True} if self._force else values

        def create_run() -> Child:
            run = self._client.create_flow_run_from_deployment(
                self._target.deployment_id,
                name=run_name(message.key),
                parameters=parameters,
                tags=self._tags,
                idempotency_key=f"{self._key_prefix}/{message.key}{f'/after/{predecessor}' if predecessor else ''}",
                work_queue_name=self._work_queue,
            )
            return _child(run)

        try:
            return retry_unless_rejected(create_run)
        except PrefectHTTPStatusError as error:
            if error.response.status_code in RUN_REFUSED_STATUSES:
                return Child(None, Stage.FAILED, REFUSED)
            raise NotConfigured(
                f"The deployment {FLOW}/{shown_name(self._target.name)} is gone. Deploy it, then run this again."
            ) from None

    def read(self, run_ids: Collection[UUID], *, find_deleted: bool) -> list[Child]:
        """Those of these runs, 200 at most, that have started or ended; with `find_deleted` also those that wait.

        A run that someone has deleted counts as failed, which only `find_deleted` reports.
        """
        which = FlowRunFilter(id=FlowRunFilterId(any_=list(run_ids)))
        if not find_deleted:
            which.state = FlowRunFilterState(type=FlowRunFilterStateType(any_=STARTED))
        found = [_child(run) for run in self._read(flow_run_filter=which, limit=len(run_ids))]
        deleted = set(run_ids) - {child.id for child in found} if find_deleted else set()
        return [*found, *(Child(run_id, Stage.FAILED, DELETED) for run_id in deleted)]

    def is_any_in_progress(self) -> bool:
        """Whether the target's workers are running any download, of any caller: then a slot becomes free.

        Runs of other flows do not count. They may wait for slots themselves.
        """
        pool = self._target.work_pool
        found = self._read(
            flow_filter=OF_FLOW,
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])) if pool else None,
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=IN_PROGRESS))),
            limit=1,
        )
        return bool(found)

    def latest(self, messages: Sequence[MessageRef]) -> dict[str, Child]:
        """Each message's newest run of this deployment, of any caller, by the message's key; an unfinished one first.

        Messages without a run are left out.
        """
        names = {run_name(message.key) for message in messages}
        runs: dict[str, list[Child]] = {message.key: [] for message in messages}
        for run in self._read_named(names) if names else ():
            key = message_key(str(run.parameters.get("message_id")))
            if key in runs:
                runs[key].append(_child(run))
        return {key: self._latest(found) for key, found in runs.items() if found}

    def _latest(self, runs: Sequence[Child]) -> Child:
        """The newest of a message's runs, which are given in this order."""
        latest = next((run for run in runs if not run.stage.is_ended), runs[0])
        unsuccessful = takewhile(lambda run: run.stage is not Stage.SUCCEEDED, runs)
        attempts = [run.created for run in unsuccessful if self.is_same_kind(run) and run.created is not None]
        return replace(latest, first_attempt=min(attempts, default=None if latest.stage.is_ended else latest.created))

    def _read(self, **filters: Any) -> list[FlowRun]:
        return retry_unless_rejected(lambda: self._client.read_flow_runs(**filters))

    def _read_named(self, names: Collection[str]) -> Iterator[FlowRun]:
        """The deployment's runs with one of these names, the newest first."""
        deployment = DeploymentFilter(id=DeploymentFilterId(any_=[self._target.deployment_id]))
        which = FlowRunFilter(name=FlowRunFilterName(any_=list(names)))
        newest_first = FlowRunSort.EXPECTED_START_TIME_DESC
        return all_pages(partial(self._read, deployment_filter=deployment, flow_run_filter=which, sort=newest_first))

    def is_own(self, child: Child) -> bool:
        """Whether this caller created the run: it has all of the caller's tags."""
        return child.tags.issuperset(self._tags)

    def is_same_kind(self, child: Child) -> bool:
        """Whether the run has this caller's first tag, whichever caller created it."""
        return self._tags[0] in child.tags

    def unstarted(self, *, excluding: Collection[UUID]) -> list[UUID] | None:
        """Some of the runs with the tags of these that have not started, later attempts included, except `excluding`.

        None when Prefect does not answer now.
        """
        which = FlowRunFilter(
            id=FlowRunFilterId(not_any_=list(excluding)) if excluding else None,
            tags=FlowRunFilterTags(all_=list(self._tags)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        )
        with suppress(PrefectUnreachable, httpx.HTTPError):
            return [run.id for run in self._client.read_flow_runs(flow_run_filter=which, limit=PAGE)]
        return None

    def cancel(self, run_id: UUID) -> bool:
        """Cancel a run that waits; False if it has started, or if Prefect does not answer now."""
        with suppress(PrefectUnreachable, httpx.HTTPError, ObjectNotFound, Abort):
            now = self._client.read_flow_run(run_id).state
            if now is not None and now.is_scheduled():
                withdrawn: State[None] = Cancelled(message="Its parent run was cancelled before this run started.")
                self._client.set_flow_run_state(run_id, write_record(withdrawn, StateRecord(code=WITHDRAWN)))
                return True
        return False


def retry_unless_rejected(request: Callable[[], T]) -> T:
    """As `retry_until_available`, but a rejection by Prefect is raised and not retried.

    Raises:
        PrefectHTTPStatusError: Prefect rejects the request, and would again.
        PrefectLost: it has not answered.
    """
    rejections = {*RUN_REFUSED_STATUSES, httpx.codes.NOT_FOUND}

    def attempt() -> T | PrefectHTTPStatusError:
        try:
            return request()
        except PrefectUnreachable as error:
            raise httpx.TransportError(str(error)) from None
        except PrefectHTTPStatusError as error:
            if error.response.status_code in rejections:
                return error
            raise

    answer = retry_until_available(attempt)
    if isinstance(answer, PrefectHTTPStatusError):
        raise answer
    return answer


def _child(run: FlowRun) -> Child:
    stage, code = _stage(run.state)
    since = run.state.timestamp if run.state else None
    return Child(run.id, stage, code, frozenset(run.tags), since, run.created)


def _stage(state: State[Any] | None) -> tuple[Stage, str | None]:
    if state is None or not state.is_final():
        is_waiting = state is None or state.is_scheduled() or state.is_paused()
        return (Stage.WAITING if is_waiting else Stage.RUNNING), None
    record = read_record(state)
    if state.is_failed() and record.next_attempt is None:
        return Stage.FAILED, record.code or UNKNOWN
    if state.is_crashed():
        return Stage.FAILED, CRASHED
    return FINAL_STAGES[state.type], record.code if state.is_cancelled() else None


def runs_with_tag(client: SyncPrefectClient, tag: str) -> Iterator[tuple[str, Child]]:
    """The runs with a tag, each with the key of its message, in no particular order.

    Raises as `retry_unless_rejected`.
    """
    which = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))

    def read(**page: Any) -> list[FlowRun]:
        return retry_unless_rejected(
            lambda: client.read_flow_runs(flow_run_filter=which, sort=FlowRunSort.ID_DESC, **page)
        )

    yield from ((message_key(str(run.parameters.get("message_id"))), _child(run)) for run in all_pages(read))


@contextmanager
def child_runs(target: DownloadDeployment, *, key_prefix: str, tags: Sequence[str], force: bool) -> Iterator[ChildRuns]:
    """`ChildRuns` with a client of their own, which other threads may use."""
    # Not the flow run's client, which would not notice a cancellation while it retries.
    with own_client(RESPONSE_TIMEOUT, raise_if_unreachable=True, shortest=FIRST_RETRY_DELAY) as client:
        yield ChildRuns(client, target, key_prefix=key_prefix, tags=tags, force=force)
