"""Counts of waiting, running and ended work, read within seconds, and what could not be read."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from pydantic import BaseModel, ConfigDict

from attachments.blocks import EmailgisticsAccount
from attachments.doctor.deployments import Deployments, block_names, read_deployments
from attachments.doctor.limits import read_limit
from attachments.doctor.probe import PREFECT_ERRORS, NoResponse, TimedCall, describe_error, prefect_client, request_json
from attachments.doctor.workers import NO_RUNS, can_read_runs, count_live_workers
from attachments.foundation.numerals import counted
from attachments.prefect_api.url_path import path_part
from attachments.receiver.inbox import InboxUnavailable
from attachments.receiver.inbox_reader import read_depth
from attachments.runs.watermarks import read_watermarks

TIMEOUT = 2.5
"""Seconds for all responses together."""
LATE_AFTER = timedelta(seconds=60)
"""A run whose scheduled start is longer ago is late."""
DAY = timedelta(hours=24)
MAX_MAILBOXES = 20
"""Mailboxes shown on a terminal; there may be hundreds."""
LIMITS = ("limit_name", "backlog_limit_name")
"""The fields of an account's block with the names of its limits."""
FINAL_STATES = ("completed", "failed", "crashed", "cancelled")
UNFINISHED_STATES = ("scheduled", "pending", "running", "cancelling", "paused")

T = TypeVar("T")


class InboxStatus(BaseModel):
    """Deliveries waiting for Prefect, and the age of the oldest in seconds."""

    model_config = ConfigDict(frozen=True)

    entries: int
    oldest_seconds: float


class Calls(BaseModel):
    """Calls to Emailgistics in the last minute, and how many the limit allows."""

    model_config = ConfigDict(frozen=True)

    last_minute: int
    limit: int


class Reconciled(BaseModel):
    """Up to when a mailbox has been looked through for what no webhook block_fields of."""

    model_config = ConfigDict(frozen=True)

    mailbox_key: str
    """32 hex digits of the SHA-256 of the mailbox's id."""
    account: str
    deployment: str
    until: datetime


class StatusReport(BaseModel):
    """The status. A field is None if it could not be read, and `problems` says why; `inbox` is also None without an
    inbox."""

    model_config = ConfigDict(frozen=True)

    inbox: InboxStatus | None = None
    workers: int | None = None
    runs: dict[str, int] | None = None
    """Unfinished runs by state, where `late` is a part of `scheduled`, and runs that ended in the last 24 hours."""
    calls: dict[str, Calls] | None = None
    """By limit."""
    reconciliation: tuple[Reconciled, ...] | None = None
    """The mailboxes that lag behind come first."""
    problems: tuple[str, ...] = ()


def read_status(inbox: Path, *, seconds: float = TIMEOUT, clock: Callable[[], float] = time.monotonic) -> StatusReport:
    """Read the status. All requests share `seconds`; what does not respond in time is listed in `problems`."""
    problems: list[str] = []
    seen: dict[str, Any] = {}
    depth = TimedCall(lambda: read_depth(inbox))
    if PREFECT_API_URL.value():
        try:
            with prefect_client(seconds) as client:
                seen = read_prefect(client, TimeBudget(seconds, clock), problems)
        except PREFECT_ERRORS as error:
            problems.append(" ".join(describe_error(error)))
    else:
        problems.append("PREFECT_API_URL is not set. Set it to your server's, such as http://127.0.0.1:4200/api.")
    try:
        found = depth.result(seconds)
    except NoResponse:
        problems.append("The inbox could not be read in time. Check its disk.")
        found = None
    except InboxUnavailable as error:
        problems.append(str(error))
        found = None
    return StatusReport(
        inbox=found and InboxStatus(entries=found.entries, oldest_seconds=round(found.oldest_seconds, 1)),
        problems=tuple(problems),
        **seen,
    )


def to_lines(status: StatusReport) -> Iterator[str]:
    """The lines for a terminal, problems first."""
    yield from (f"UNKNOWN         {problem}" for problem in status.problems)
    if status.inbox is None:
        yield "inbox           none on this machine, or unreadable"
    else:
        oldest = f", the oldest for {status.inbox.oldest_seconds:.0f} s" if status.inbox.entries else ""
        yield f"inbox           {counted(status.inbox.entries, 'delivery waits', 'deliveries wait')}{oldest}"
    if status.workers is not None:
        yield f"workers         {status.workers} alive"
    if status.runs is not None:
        now = ", ".join(
            f"{status.runs[state]} {state}"
            for state in UNFINISHED_STATES
            if status.runs[state] or state in _STATES_ALWAYS_SHOWN
        )
        yield f"runs now        {now} ({status.runs['late']} late)"
        yield f"runs, 24 hours  {', '.join(f'{status.runs[state]} {state}' for state in FINAL_STATES)}"
    for name, calls in (status.calls or {}).items():
        yield f"calls           {calls.last_minute} of {calls.limit} in the last minute ({name})"
    for mark in (status.reconciliation or ())[:MAX_MAILBOXES]:
        until = mark.until.isoformat(timespec="seconds").replace("+00:00", "Z")
        yield f"reconciliation  up to {until}: mailbox {mark.mailbox_key} of account {mark.account} ({mark.deployment})"
    if status.reconciliation and len(status.reconciliation) > MAX_MAILBOXES:
        more = counted(
            len(status.reconciliation) - MAX_MAILBOXES, "more mailbox is further", "more mailboxes are further"
        )
        yield f"reconciliation  {more}; --json has them"


_STATES_ALWAYS_SHOWN = ("scheduled", "pending", "running")


class TimeBudget:
    """Seconds that several requests share, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """The remaining seconds, at least 0."""
        return max(0.0, self._end - self._clock())


def read_prefect(client: SyncPrefectClient, budget: TimeBudget, problems: list[str]) -> dict[str, Any]:
    """The fields of a `StatusReport` that come from Prefect, requested concurrently; adds failures to `problems`."""
    workers = TimedCall(lambda: count_live_workers(client))
    reconciled = TimedCall(lambda: _read_watermarks(client))
    deployments: Deployments = _result_or_none(TimedCall(lambda: read_deployments(client)), budget, problems) or {}
    seen: dict[str, Any] = {}
    if deployments:
        ids = [str(deployment.id) for deployment in deployments.values()]
        runs = {name: TimedCall(_count(client, filters)) for name, filters in _count_filters(ids).items()}
        calls = TimedCall(lambda: _calls(client, deployments))
        counted = {name: _result_or_none(question, budget, problems) for name, question in runs.items()}
        seen["runs"] = None if None in counted.values() else counted
        seen["calls"] = _result_or_none(calls, budget, problems)
    elif not problems:
        problems.append("Prefect has none of this project's deployments. Run `attachments setup`.")
    seen["workers"] = _result_or_none(workers, budget, problems)
    if seen["workers"] and _result_or_none(TimedCall(lambda: can_read_runs(client)), budget, problems) is False:
        problems.append(f"{NO_RUNS} `attachments doctor` names what causes it.")
    seen["reconciliation"] = _result_or_none(reconciled, budget, problems)
    return seen


def _result_or_none(question: TimedCall[T], budget: TimeBudget, problems: list[str]) -> T | None:
    try:
        return question.result(budget.left)
    except NoResponse:
        problem = "Prefect did not respond in time. `attachments doctor` waits longer for it."
    except PREFECT_ERRORS as error:
        problem = " ".join(describe_error(error))
    if problem not in problems:
        problems.append(problem)
    return None


def _count_filters(deployment_ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """The filters of the runs to count, by the name of each count."""
    now = datetime.now(UTC)
    ours = {"deployments": {"id": {"any_": list(deployment_ids)}}}

    def of(state: str, **more: Any) -> dict[str, Any]:
        return {**ours, "flow_runs": {"state": {"type": {"any_": [state.upper()]}}, **more}}

    unfinished = {state: of(state) for state in UNFINISHED_STATES}
    late = of("scheduled", next_scheduled_start_time={"before_": (now - LATE_AFTER).isoformat()})
    ended = {state: of(state, end_time={"after_": (now - DAY).isoformat()}) for state in FINAL_STATES}
    return {**unfinished, "late": late, **ended}


def _count(client: SyncPrefectClient, filters: Mapping[str, Any]) -> Callable[[], int]:
    return lambda: int(request_json(client, "POST", "/flow_runs/count", filters))


def _calls(client: SyncPrefectClient, deployments: Deployments) -> dict[str, Calls]:
    """The calls in the last minute by limit, for the accounts that the deployments name."""
    limits = (read_limit(client, name) for name in _limit_names(client, deployments))
    return {
        limit.name: Calls(last_minute=limit.active_slots, limit=limit.limit) for limit in limits if limit is not None
    }


def _limit_names(client: SyncPrefectClient, deployments: Deployments) -> Iterable[str]:
    slug = EmailgisticsAccount.get_block_type_slug()
    names: dict[str, None] = {}
    for account in block_names(deployments, "account"):
        with suppress(ObjectNotFound):
            # Without secrets, and without loading the block, for which Prefect would send an event.
            block_fields = client.read_block_document_by_name(path_part(account), slug, include_secrets=False).data
            names.update(
                (str(block_fields.get(name) or EmailgisticsAccount.model_fields[name].default), None) for name in LIMITS
            )
    return names


def _read_watermarks(client: SyncPrefectClient) -> tuple[Reconciled, ...]:
    return tuple(
        Reconciled(mailbox_key=mark.mailbox_key, account=mark.account, deployment=mark.deployment, until=mark.until)
        for mark in read_watermarks(client)
    )
