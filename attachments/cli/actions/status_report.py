"""How much waits, runs and has ended, in a few seconds; and what could not be read."""

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
from attachments.doctor.deployments import Deployments, blocks_named, read_deployments
from attachments.doctor.limits import read_limit
from attachments.doctor.probe import PREFECT_ERRORS, NoResponse, TimedCall, asked, describe_error, prefect
from attachments.doctor.work import NO_RUNS, are_runs_given, living_workers
from attachments.foundation.numerals import counted
from attachments.prefect_api.url_path import path_part
from attachments.receiver.inbox import InboxUnavailable
from attachments.receiver.inbox_reader import read_depth
from attachments.runs.watermarks import read_watermarks

SECONDS = 2.5
"""For all answers together."""
LATE = timedelta(seconds=60)
"""A run that should have started so long ago is late."""
DAY = timedelta(hours=24)
MAILBOXES = 20
"""Shown on a terminal; there may be hundreds."""
LIMITS = ("limit_name", "backlog_limit_name")
"""Where an account's block names its limits."""
ENDED = ("completed", "failed", "crashed", "cancelled")
UNFINISHED = ("scheduled", "pending", "running", "cancelling", "paused")

T = TypeVar("T")


class InboxStatus(BaseModel):
    """Deliveries that wait for Prefect, and for how many seconds the oldest has."""

    model_config = ConfigDict(frozen=True)

    entries: int
    oldest_seconds: float


class Calls(BaseModel):
    """Calls to Emailgistics in the last minute, of those that the limit allows."""

    model_config = ConfigDict(frozen=True)

    last_minute: int
    limit: int


class Reconciled(BaseModel):
    """Up to when a mailbox has been looked through for what no webhook told of."""

    model_config = ConfigDict(frozen=True)

    mailbox_key: str
    """32 hex digits of the SHA-256 of the mailbox's id."""
    account: str
    deployment: str
    until: datetime


class StatusReport(BaseModel):
    """What could be seen. None: it could not, and `problems` says why; `inbox` is also None where there is none."""

    model_config = ConfigDict(frozen=True)

    inbox: InboxStatus | None = None
    workers: int | None = None
    runs: dict[str, int] | None = None
    """Unfinished runs by state, `late` being a part of `scheduled`; ended ones by state, of the last 24 hours."""
    calls: dict[str, Calls] | None = None
    """By limit."""
    reconciliation: tuple[Reconciled, ...] | None = None
    """The mailboxes that lag behind come first."""
    problems: tuple[str, ...] = ()


def read_status(inbox: Path, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> StatusReport:
    """Counts and problems. What does not answer within so many seconds, which all share, is left out and named."""
    problems: list[str] = []
    seen: dict[str, Any] = {}
    depth = TimedCall(lambda: read_depth(inbox))
    if PREFECT_API_URL.value():
        try:
            with prefect(seconds) as client:
                seen = read_prefect(client, Budget(seconds, clock), problems)
        except PREFECT_ERRORS as error:
            problems.append(" ".join(describe_error(error)))
    else:
        problems.append("PREFECT_API_URL is not set. Set it to your server's, such as http://127.0.0.1:4200/api.")
    try:
        found = depth.answer(seconds)
    except NoResponse:
        problems.append("The inbox cannot be read in time. Look at its disk.")
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
    """The lines for a terminal; what could not be seen comes first."""
    yield from (f"NOT SEEN        {problem}" for problem in status.problems)
    if status.inbox is None:
        yield "inbox           none on this machine, or not to be seen"
    else:
        oldest = f", the oldest for {status.inbox.oldest_seconds:.0f} s" if status.inbox.entries else ""
        yield f"inbox           {counted(status.inbox.entries, 'delivery waits', 'deliveries wait')}{oldest}"
    if status.workers is not None:
        yield f"workers         {status.workers} alive"
    if status.runs is not None:
        now = ", ".join(
            f"{status.runs[state]} {state}" for state in UNFINISHED if status.runs[state] or state in _ALWAYS
        )
        yield f"runs now        {now} ({status.runs['late']} late)"
        yield f"runs, 24 hours  {', '.join(f'{status.runs[state]} {state}' for state in ENDED)}"
    for name, calls in (status.calls or {}).items():
        yield f"calls           {calls.last_minute} of {calls.limit} in the last minute ({name})"
    for mark in (status.reconciliation or ())[:MAILBOXES]:
        until = mark.until.isoformat(timespec="seconds").replace("+00:00", "Z")
        yield f"reconciliation  up to {until}: mailbox {mark.mailbox_key} of account {mark.account} ({mark.deployment})"
    if status.reconciliation and len(status.reconciliation) > MAILBOXES:
        more = counted(len(status.reconciliation) - MAILBOXES, "more mailbox is further", "more mailboxes are further")
        yield f"reconciliation  {more}; --json has them"


_ALWAYS = ("scheduled", "pending", "running")


class Budget:
    """Seconds that several answers share, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, and never less than none."""
        return max(0.0, self._end - self._clock())


def read_prefect(client: SyncPrefectClient, budget: Budget, problems: list[str]) -> dict[str, Any]:
    """Fields of a `StatusReport`, all read from Prefect at the same time; adds what cannot be read to `problems`."""
    workers = TimedCall(lambda: living_workers(client))
    reconciled = TimedCall(lambda: _marks(client))
    standing: Deployments = _answer(TimedCall(lambda: read_deployments(client)), budget, problems) or {}
    seen: dict[str, Any] = {}
    if standing:
        ids = [str(deployment.id) for deployment in standing.values()]
        runs = {name: TimedCall(_count(client, filters)) for name, filters in _counts(ids).items()}
        calls = TimedCall(lambda: _calls(client, standing))
        counted = {name: _answer(question, budget, problems) for name, question in runs.items()}
        seen["runs"] = None if None in counted.values() else counted
        seen["calls"] = _answer(calls, budget, problems)
    elif not problems:
        problems.append("There are no deployments of ours in Prefect. Run `attachments setup`.")
    seen["workers"] = _answer(workers, budget, problems)
    if seen["workers"] and _answer(TimedCall(lambda: are_runs_given(client)), budget, problems) is False:
        problems.append(f"{NO_RUNS} `attachments doctor` names what causes it.")
    seen["reconciliation"] = _answer(reconciled, budget, problems)
    return seen


def _answer(question: TimedCall[T], budget: Budget, problems: list[str]) -> T | None:
    try:
        return question.answer(budget.left)
    except NoResponse:
        problem = "Prefect does not answer in time. `attachments doctor` waits longer for it."
    except PREFECT_ERRORS as error:
        problem = " ".join(describe_error(error))
    if problem not in problems:
        problems.append(problem)
    return None


def _counts(deployment_ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """What to count, by the name that it gets."""
    now = datetime.now(UTC)
    ours = {"deployments": {"id": {"any_": list(deployment_ids)}}}

    def of(state: str, **more: Any) -> dict[str, Any]:
        return {**ours, "flow_runs": {"state": {"type": {"any_": [state.upper()]}}, **more}}

    unfinished = {state: of(state) for state in UNFINISHED}
    late = of("scheduled", next_scheduled_start_time={"before_": (now - LATE).isoformat()})
    ended = {state: of(state, end_time={"after_": (now - DAY).isoformat()}) for state in ENDED}
    return {**unfinished, "late": late, **ended}


def _count(client: SyncPrefectClient, filters: Mapping[str, Any]) -> Callable[[], int]:
    return lambda: int(asked(client, "POST", "/flow_runs/count", filters))


def _calls(client: SyncPrefectClient, standing: Deployments) -> dict[str, Calls]:
    """What each limit has granted in the last minute, of the accounts that the deployments name."""
    limits = (read_limit(client, name) for name in _limit_names(client, standing))
    return {
        limit.name: Calls(last_minute=limit.active_slots, limit=limit.limit) for limit in limits if limit is not None
    }


def _limit_names(client: SyncPrefectClient, standing: Deployments) -> Iterable[str]:
    slug = EmailgisticsAccount.get_block_type_slug()
    names: dict[str, None] = {}
    for account in blocks_named(standing, "account"):
        with suppress(ObjectNotFound):
            # Without the secrets, and without making a block of it, of which Prefect would make an event.
            told = client.read_block_document_by_name(path_part(account), slug, include_secrets=False).data
            names.update(
                (str(told.get(name) or EmailgisticsAccount.model_fields[name].default), None) for name in LIMITS
            )
    return names


def _marks(client: SyncPrefectClient) -> tuple[Reconciled, ...]:
    return tuple(
        Reconciled(mailbox_key=mark.mailbox_key, account=mark.account, deployment=mark.deployment, until=mark.until)
        for mark in read_watermarks(client)
    )
