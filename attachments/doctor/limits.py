"""Checks the limits that keep calls below the vendor's cap and reserve a share of it for live mail."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound

from attachments.blocks import EmailgisticsAccount
from attachments.doctor.findings import Finding, failed, ok
from attachments.prefect_api.url_path import path_part
from attachments.rate_limit.fleet_pause import pause_variable

CAP = 100  # calls a minute for the whole account (getting-started/rate-limits)
UPDATE_COMMAND = "prefect global-concurrency-limit update"

Limit = GlobalConcurrencyLimitResponse


class Capacity(Enum):
    """Whether a call may be made under a limit."""

    FREE = "free"
    FULL = "all slots are taken"
    NONE = "nothing would keep the calls below the cap"


def read_limit(client: SyncPrefectClient, name: str) -> Limit | None:
    """The limit of that name; None if there is none."""
    try:
        return client.read_global_concurrency_limit_by_name(path_part(name))
    except ObjectNotFound:
        return None


def is_paused(client: SyncPrefectClient, name: str) -> bool:
    """Whether calls under that limit are paused after a 429."""
    variable = client.read_variable_by_name(pause_variable(name))
    pause = variable.value if variable else None
    with suppress(KeyError, TypeError, ValueError):
        return isinstance(pause, Mapping) and datetime.fromisoformat(str(pause["until"])) > datetime.now(UTC)
    return False


def capacity_of(limit: Limit | None) -> Capacity:
    """Whether the limit allows the doctor to call Emailgistics."""
    if limit is None or not limit.active or limit.limit < 1:
        return Capacity.NONE
    return Capacity.FULL if limit.active_slots >= limit.limit else Capacity.FREE


def check_limits(account: EmailgisticsAccount, limit: Limit | None, backlog: Limit | None) -> Iterator[Finding]:
    """Check an account's two limits."""
    yield _unsafe(account.limit_name, limit) or ok("limit", _size(limit), subject=account.limit_name)
    if backlog is not None and limit is not None and limit.active and 0 < limit.limit <= backlog.limit:
        text = (
            f"A backfill may make {backlog.limit} calls per minute of {limit.limit}, which leaves none for live mail."
        )
        share = min(limit.limit, CAP) * 6 // 10
        remedy = f"Make it smaller: `{UPDATE_COMMAND} {backlog.name} --limit {share}`."
        if not share:
            remedy = f"Make the other larger: `{UPDATE_COMMAND} {limit.name} --limit {CAP}`."
        yield failed("limit", text, remedy, subject=backlog.name)
        return
    name = account.backlog_limit_name
    yield _unsafe(name, backlog) or ok("limit", _size(backlog), subject=name)


def _unsafe(name: str, limit: Limit | None) -> Finding | None:
    """The finding for a limit that is missing or unsafe; None if it is safe."""
    if limit is None:
        text = "It does not exist, so nothing would keep the calls below the cap, and runs make none."
        return failed("limit", text, "Run `attachments setup`, which creates it.", subject=name)
    problems: Sequence[tuple[bool, str, str]] = (
        (
            not limit.active,
            "It is switched off, so nothing would keep the calls below the cap, and runs make none.",
            f"Switch it on: `{UPDATE_COMMAND} {name} --enable`.",
        ),
        (
            limit.limit < 1,
            "It is 0, so no call is ever made.",
            f"Make it larger: `{UPDATE_COMMAND} {name} --limit {CAP}`.",
        ),
        (
            limit.limit > CAP,
            f"It allows {limit.limit} calls per minute; Emailgistics allows {CAP} for the whole account.",
            f"Make it smaller: `{UPDATE_COMMAND} {name} --limit {CAP}`.",
        ),
        (
            limit.slot_decay_per_second > 0,
            "Its slots are released before their minute is over, so it allows more calls than its value.",
            f"Switch that off: `{UPDATE_COMMAND} {name} --slot-decay-per-second 0`.",
        ),
    )
    return next((failed("limit", text, remedy, subject=name) for wrong, text, remedy in problems if wrong), None)


def _size(limit: Limit | None) -> str:
    assert limit is not None  # noqa: S101  a missing one is unsafe
    return f"At most {limit.limit} calls in any 60 s; {limit.active_slots} in the last."
