"""The seam to Prefect of whoever has messages downloaded by runs of another deployment: create, look, cancel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
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
from attachments.prefect_api.prefect_retry import PrefectAway, own_client
from attachments.prefect_api.url_path import path_part
from attachments.runs.block_loader import load_account, load_store
from attachments.runs.delayed_retry import ATTEMPT
from attachments.runs.errors import NotConfigured, retry_until_available
from attachments.runs.state_record import UNKNOWN, WITHDRAWN, StateRecord, read_record, write_record
from attachments.storage import Store, message_key
from attachments.storage.keys import SHORT_KEY_LENGTH

FLOW = "download-attachments"
BACKFILL = "backfill"
"""The tag of runs that let live mail go first, and the work queue that they wait in."""
DEFAULT_QUEUE = "default"
ANSWER_TIMEOUT = 30.0  # seconds for Prefect to answer
BUSY = 0.1  # seconds to begin with before a question is asked again that a busy SQLite has not answered
THIS_RUN = (httpx.codes.BAD_REQUEST, httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY)
UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
BEGUN = [*UNDER_WAY, *TERMINAL_STATES]
"""States of a run that a worker has taken, or that has ended."""
RUNS = 20  # runs of one message that are looked at, the newest ones: its attempts are nine
REFUSED = "refused"
CRASHED = "crashed"
NOT_FOUND = NotFound.outcome_code
DELETED = "deleted"

T = TypeVar("T")
PAGE = 200  # runs in one answer of Prefect's


class MessageRef(BaseModel):
    """A message whose attachments are wanted, and what is known of it."""

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
    """A deployment of `download-attachments`, and what its runs use."""

    name: str
    deployment_id: UUID
    work_pool: str | None
    work_queue: str | None
    filter: Filter
    account: EmailgisticsAccount
    store: Store
    force: bool = False
    account_name: str = "default"
    """Of the account's block."""

    @classmethod
    def load(cls, deployment_name: str) -> DownloadDeployment:
        """The deployment of that name. Raises `NotConfigured` when it or one of its blocks is not there."""
        name = deployment_name.strip().removeprefix(f"{FLOW}/")
        if not name or "/" in name:
            raise NotConfigured(f"A deployment of {FLOW} is wanted: write its name alone, such as backfill.")
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
        asked = found.parameters
        try:
            wanted = Filter.model_validate(asked.get("filter") or {})
        except ValidationError:
            raise NotConfigured(
                f"The filter of the deployment {FLOW}/{shown_name(name)} is not valid. See docs/filters.md."
            ) from None
        account_name = str(asked.get("account") or "default")
        return cls(
            name=name,
            deployment_id=found.id,
            work_pool=found.work_pool_name,
            work_queue=found.work_queue_name,
            filter=wanted,
            account=load_account(account_name),
            store=load_store(str(asked.get("store") or "default")).store(),
            force=bool(asked.get("force")),
            account_name=account_name,
        )


class Stage(Enum):
    """Where a run is."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FOR_NOW = "failed for now"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_ended(self) -> bool:
        """Whether nothing more comes of the run."""
        return self not in {Stage.WAITING, Stage.RUNNING}


ENDS = {
    StateType.COMPLETED: Stage.SUCCEEDED,
    StateType.CANCELLED: Stage.CANCELLED,
    StateType.FAILED: Stage.FOR_NOW,
}


@dataclass(frozen=True)
class Child:
    """A run, and where it is; when it failed, by which code."""

    id: UUID | None
    """None when Prefect did not take it."""
    stage: Stage
    code: str | None = None
    tags: frozenset[str] = frozenset()
    since: datetime | None = None
    """When it came to be there."""

    @property
    def is_later_attempt(self) -> bool:
        """Whether it waits for its time to try again what has failed before."""
        return self.stage is Stage.WAITING and any(ATTEMPT.fullmatch(tag) for tag in self.tags)


class ChildRuns:
    """Runs of a target. Its methods wait while Prefect is away, and may be called by several threads.

    They raise `PrefectLost` when it stays away, `NotConfigured` when the deployment is gone, and `RunCancelled`.
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
            raise ValueError(
                "child runs need a tag: cancelling them goes by their tags, and none would match every run"
            )
        self._tags = tuple(tags)
        self._force = force
        # Whatever deployment it is: old mail waits behind live mail.
        lives_with_others = target.work_queue in {None, DEFAULT_QUEUE}
        self._work_queue = BACKFILL if BACKFILL in self._tags and lives_with_others else None

    def create(self, wanted: MessageRef, after: UUID | None = None) -> Child:
        """The run of a message: made once, however often it is asked for under the same prefix, and after that run."""
        values = wanted.model_dump(mode="json", exclude_none=True)
        parameters = {**values, "force": True} if self._force else values

        def make() -> Child:
            run = self._client.create_flow_run_from_deployment(
                self._target.deployment_id,
                name=wanted.key[:SHORT_KEY_LENGTH],
                parameters=parameters,
                tags=self._tags,
                idempotency_key=f"{self._key_prefix}/{wanted.key}{f'/after/{after}' if after else ''}",
                work_queue_name=self._work_queue,
            )
            return _child(run)

        try:
            return answered(make)
        except PrefectHTTPStatusError as error:
            if error.response.status_code in THIS_RUN:
                return Child(None, Stage.FAILED, REFUSED)
            raise NotConfigured(
                f"The deployment {FLOW}/{shown_name(self._target.name)} is gone. Deploy it, then run this again."
            ) from None

    def look(self, run_ids: Collection[UUID], *, at_all: bool) -> Mapping[UUID, Child]:
        """Those of these runs that have started or ended, in as few requests as can be; `at_all` also those that wait.

        A run that somebody has deleted has failed, which only `at_all` tells.
        """
        ids, told = list(run_ids), dict[UUID, Child]()
        for at in range(0, len(ids), PAGE):
            told.update(self._looked(ids[at : at + PAGE], at_all=at_all))
        return told

    def _looked(self, run_ids: Sequence[UUID], *, at_all: bool) -> Mapping[UUID, Child]:
        asked = FlowRunFilter(id=FlowRunFilterId(any_=list(run_ids)))
        if not at_all:
            asked.state = FlowRunFilterState(type=FlowRunFilterStateType(any_=BEGUN))
        found = answered(lambda: self._client.read_flow_runs(flow_run_filter=asked, limit=len(run_ids)))
        told: dict[UUID, Child] = {run.id: _child(run) for run in found}
        if at_all:
            told.update({run_id: Child(run_id, Stage.FAILED, DELETED) for run_id in set(run_ids) - set(told)})
        return told

    def is_any_under_way(self) -> bool:
        """Whether the target's workers have any run that downloads a message, whoever made it: a place comes free.

        Runs of other flows do not count. They may wait for places themselves.
        """
        pool = self._target.work_pool
        found = answered(
            lambda: self._client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])) if pool else None,
                flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))),
                limit=1,
            )
        )
        return bool(found)

    def latest(self, wanted: MessageRef) -> Child | None:
        """The message's newest run of this deployment, whoever made it; one that has not ended comes first."""
        found = answered(
            lambda: self._client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[self._target.deployment_id])),
                flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[wanted.key[:SHORT_KEY_LENGTH]])),
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=RUNS,
            )
        )
        runs = [_child(run) for run in found if message_key(str(run.parameters.get("message_id"))) == wanted.key]
        return next((run for run in runs if not run.stage.is_ended), runs[0] if runs else None)

    def is_ours(self, child: Child) -> bool:
        """Whether a run has the tags of these."""
        return child.tags.issuperset(self._tags)

    def is_same_kind(self, child: Child) -> bool:
        """Whether a run is of the kind of these, whoever had it made."""
        return bool(self._tags) and self._tags[0] in child.tags

    def waiting(self, *, but: Collection[UUID]) -> list[UUID] | None:
        """Some of the runs with the tags of these that have not started, later attempts among them, but for those.

        None when Prefect does not answer now.
        """
        asked = FlowRunFilter(
            id=FlowRunFilterId(not_any_=list(but)) if but else None,
            tags=FlowRunFilterTags(all_=list(self._tags)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        )
        with suppress(PrefectAway, httpx.HTTPError):
            return [run.id for run in self._client.read_flow_runs(flow_run_filter=asked, limit=PAGE)]
        return None

    def cancel(self, run_id: UUID) -> bool:
        """Cancel a run that waits; False when it has started, or Prefect does not answer now."""
        with suppress(PrefectAway, httpx.HTTPError, ObjectNotFound, Abort):
            now = self._client.read_flow_run(run_id).state
            if now is not None and now.is_scheduled():
                withdrawn: State[None] = Cancelled(message="Its parent run was cancelled before this run started.")
                self._client.set_flow_run_state(run_id, write_record(withdrawn, StateRecord(code=WITHDRAWN)))
                return True
        return False


def answered(ask: Callable[[], T]) -> T:
    """The response of Prefect, for a caller who can wait `PATIENCE` seconds: as `retry_until_available`, but a refusal
    is a response.

    Raises:
        PrefectHTTPStatusError: Prefect will not, and asking again would not change that.
        PrefectLost: it has not answered.
    """
    refusals = {*THIS_RUN, httpx.codes.NOT_FOUND}

    def asked() -> T | PrefectHTTPStatusError:
        try:
            return ask()
        except PrefectAway as away:
            raise httpx.TransportError(str(away)) from None
        except PrefectHTTPStatusError as error:
            if error.response.status_code in refusals:
                return error
            raise

    answer = retry_until_available(asked)
    if isinstance(answer, PrefectHTTPStatusError):
        raise answer
    return answer


def _child(run: FlowRun) -> Child:
    stage, code = _stage(run.state)
    return Child(run.id, stage, code, frozenset(run.tags), run.state.timestamp if run.state else None)


def _stage(state: State[Any] | None) -> tuple[Stage, str | None]:
    if state is None or not state.is_final():
        is_waiting = state is None or state.is_scheduled() or state.is_paused()
        return (Stage.WAITING if is_waiting else Stage.RUNNING), None
    record = read_record(state)
    if state.is_failed() and record.next_attempt is None:
        return Stage.FAILED, record.code or UNKNOWN
    if state.is_crashed():
        return Stage.FAILED, CRASHED
    return ENDS[state.type], record.code if state.is_cancelled() else None


def made_before(client: SyncPrefectClient, tag: str) -> Iterator[tuple[str, Child]]:
    """The runs with a tag, and the keys of their messages, in no particular order. Raises as `answered`."""
    asked = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
    offset = 0
    while True:
        page = answered(
            lambda offset=offset: client.read_flow_runs(  # type: ignore[misc]  # bound now
                flow_run_filter=asked, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=offset
            )
        )
        yield from ((message_key(str(run.parameters.get("message_id"))), _child(run)) for run in page)
        if len(page) < PAGE:
            return
        offset += PAGE


@contextmanager
def child_runs(target: DownloadDeployment, *, key_prefix: str, tags: Sequence[str], force: bool) -> Iterator[ChildRuns]:
    """`ChildRuns` with a client of its own, which other threads may use."""
    # Not the flow run's, whose patience would not hear of cancelling.
    with own_client(ANSWER_TIMEOUT, raise_if_unreachable=True, shortest=BUSY) as client:
        yield ChildRuns(client, target, key_prefix=key_prefix, tags=tags, force=force)
