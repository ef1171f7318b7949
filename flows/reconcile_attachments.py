"""What no webhook has told: each mailbox's report is compared with what is stored, and what is missing is fetched."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from attachments.cancelling import RunCancelled
from attachments.emailgistics import EmailgisticsError, Forbidden, InvalidKey, Mailbox, ReceivedMessage
from attachments.prefect_busy import make_patient
from attachments.reconciling import LOST, moved, span
from flows.child_runs import Child, Stage
from flows.children import ChildrenLeft, NobodyStarts, Target, Wanted, process
from flows.continuing import Lineage
from flows.failures import OUR_ERRORS, contained, patiently
from flows.marks import Marks, mailbox_key
from flows.report import gave_up

MISSED = "emailgistics.message.missed"
RECONCILE = "reconcile"
"""The tag of the runs that fetch what was missed."""
MOST_TOLD = 100
"""Events, and rows of the table, in one run; the rest is a number."""


@dataclass
class Found:
    """What a reconciliation has found so far."""

    mailboxes: int = 0
    seen: int = 0
    elsewhere: int = 0
    """Another run is at it, or will be."""
    missed: int = 0
    stored: int = 0
    later: int = 0
    """Failed for now: further attempts follow by themselves."""
    failed: int = 0
    known: int = 0
    """Failed in an earlier reconciliation of the day, and still does."""
    rows: list[dict[str, str]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    """Mailboxes that could not be looked at, by key, and why."""


@flow(name="reconcile-attachments", persist_result=False)
def reconcile_attachments(
    mailboxes: list[str] | None = None,
    deployment: str = "default",
    overlap_hours: Annotated[float, Field(ge=0, le=24 * 30)] = 2,
    settling_minutes: Annotated[float, Field(ge=0, le=24 * 60)] = 10,
    first_days: Annotated[float, Field(gt=0, le=366)] = 3,
) -> State[None]:
    """Find messages that no webhook told of, and fetch their attachments. The API key needs the scope reporting.

    Args:
        mailboxes: Addresses or ids of shared mailboxes; all active ones of the account when left out.
        deployment: The deployment of download-attachments that fetches, with its account, store and filter.
        overlap_hours: How much of what was looked at the last time is looked at again.
        settling_minutes: Messages younger than this are left to the next time: their webhook may still come.
        first_days: How far back a mailbox is looked at for the first time.
    """
    try:
        with contained():
            target = Target.load(deployment)
            wish = _Wish(
                target=target,
                overlap=timedelta(hours=overlap_hours),
                settling=timedelta(minutes=settling_minutes),
                first=timedelta(days=first_days),
                lineage=Lineage.current(),
            )
            found = Found()
            try:
                _reconcile(wish, _chosen(target.account.client().mailboxes(), mailboxes, found), found)
            except NobodyStarts as stuck:
                told = wish.lineage.go_on_later(stuck.counts, waiting=stuck.counts.unfinished)
                return Completed(
                    message=f"No worker has a place for the runs that wait: this one gives its own up. {told}"
                )
            except ChildrenLeft as left:
                return Cancelled(message=str(left))
            return _ended(found)
    except RunCancelled:
        raise Abort("The run was cancelled.") from None  # whoever cancelled it says so to Prefect
    except OUR_ERRORS as error:
        return gave_up(error)


@dataclass(frozen=True)
class _Wish:
    """What a reconciliation is asked for."""

    target: Target
    overlap: timedelta
    settling: timedelta
    first: timedelta
    lineage: Lineage

    @property
    def tag(self) -> str:
        """Which reconciliation made a run."""
        return f"{RECONCILE}:{self.lineage.short}"


def _chosen(known: Sequence[Mailbox], asked: list[str] | None, found: Found) -> list[Mailbox]:
    """The mailboxes that are meant. One that is not there is noted, and does not stop the others."""
    if asked is None:
        return [mailbox for mailbox in known if mailbox.active]
    chosen = []
    for number, name in enumerate((name.strip() for name in asked), 1):
        boxes = [box for box in known if name == box.id or (name and name.casefold() == box.address.casefold())]
        chosen += boxes
        if not boxes:
            found.broken[f"number {number} of mailboxes"] = (
                "the account has no such mailbox, or the API key may not see it; check address and allowlist"
            )
    return list({box.id: box for box in chosen}.values())


def _reconcile(wish: _Wish, boxes: Sequence[Mailbox], found: Found) -> None:
    with _prefect() as client:
        marks = Marks(client, wish.target.account_name, wish.target.name)
        for box in boxes:
            key = mailbox_key(box.id)
            try:
                _mailbox(box, key, wish, marks, found)
                found.mailboxes += 1
            except (InvalidKey, Forbidden):
                raise  # it is the same for every mailbox
            except EmailgisticsError as error:
                found.broken[key] = str(error)


def _mailbox(box: Mailbox, key: str, wish: _Wish, marks: Marks, found: Found) -> None:
    logger = get_run_logger()
    known = patiently(lambda: marks.read(key))
    now = datetime.now(UTC)
    if known is not None and known.until > now:
        logger.warning("The mark of mailbox %s lies in the future; it counts as now.", key)
    asked = span(known.until if known else None, now, overlap=wish.overlap, settling=wish.settling, first=wish.first)
    held_at: datetime | None = None
    for piece in asked.slices():
        rows = wish.target.account.client().received_messages(box.id, piece.start, piece.end, on_wait=logger.info)
        is_held = _fetch(box, rows, wish, found)
        if rows.skipped:
            logger.warning("%s rows of the report name no message and were left out.", rows.skipped)
        held_at = piece.start if is_held and held_at is None else held_at
        covered = min(piece.end, rows.covered_until)
        until = moved(covered, held_at)
        patiently(lambda until=until: marks.move(key, until))  # type: ignore[misc]  # bound now
        if covered < piece.end:
            return  # the report does not reach further yet


def _fetch(box: Mailbox, rows: Iterable[ReceivedMessage], wish: _Wish, found: Found) -> bool:
    """Fetch what is missing of these messages. Whether one of them has to be looked at again."""
    held = []

    def ended(wanted: Wanted, child: Child) -> None:
        if child.stage is not Stage.SUCCEEDED and child.code not in LOST:
            held.append(wanted.key)
        _note(wanted, child, wish, found)

    counts = process(
        (
            Wanted(
                message_id=row.message_id,
                mailbox=box.address or None,
                received=row.received,
                conversation_id=row.conversation_id,
            )
            for row in rows
        ),
        wish.target,
        key_prefix=f"{RECONCILE}/{wish.target.name}/{datetime.now(UTC):%Y-%m-%d}",
        tags=(RECONCILE, wish.tag),
        on_ended=ended,
        avoids_others=True,
        steps_aside=wish.lineage.can_continue,
    )
    found.seen += counts.seen - counts.duplicates
    found.elsewhere += counts.elsewhere
    return bool(held)


def _note(wanted: Wanted, child: Child, wish: _Wish, found: Found) -> None:
    """Tell of a message that was missed: once, also when a later reconciliation meets the same run again."""
    if child.id is not None and wish.tag not in child.tags:
        found.known += child.stage is not Stage.SUCCEEDED
        return
    found.missed += 1
    match child.stage:
        case Stage.SUCCEEDED:
            found.stored += 1
            outcome = "stored now"
        case Stage.FOR_NOW:
            found.later += 1
            outcome = "failed for now, tried again by itself"
        case _:
            found.failed += 1
            outcome = f"failed ({child.code})" if child.code else child.stage.value
    if len(found.rows) >= MOST_TOLD:
        return
    found.rows.append({"message": wanted.key, "outcome": outcome})
    emit_event(
        event=MISSED,
        resource={
            "prefect.resource.id": f"emailgistics.message.{wanted.key}",
            "prefect.resource.name": wanted.key,
        },
        payload={"message_key": wanted.key, "deployment": wish.target.name, "outcome": outcome},
    )


def _ended(found: Found) -> State[None]:
    if found.rows or found.broken:
        more = found.missed - len(found.rows)
        rest = [{"message": f"and {more:,} more", "outcome": ""}] if more else []
        broken = [{"message": f"mailbox {key}", "outcome": why} for key, why in found.broken.items()]
        patiently(
            lambda: create_table_artifact(
                key="missed-messages",
                table=[*found.rows, *rest, *broken],
                description="Messages that no webhook told of, and what became of them. By key.",
            )
        )
    told = f"Of {found.seen:,} messages in {found.mailboxes:,} mailboxes {found.missed:,} had been missed"
    parts = [
        (found.stored, "stored now"),
        (found.later, "failed for now and are tried again by themselves"),
        (found.failed, "failed"),
    ]
    if found.missed:
        told += f": {', '.join(f'{count:,} {words}' for count, words in parts if count)}"
    told += "."
    if found.elsewhere:
        told += f" {found.elsewhere:,} are under way in other runs."
    if found.known:
        told += f" {found.known:,} had failed before, and are tried again tomorrow."
    if found.broken:
        first = next(iter(found.broken.items()))
        told += f" {len(found.broken):,} mailboxes could not be looked at. {first[0]}: {first[1]}"
    if found.broken or found.failed:
        return Failed(message=told)
    return Completed(message=told)


@contextmanager
def _prefect() -> Iterator[SyncPrefectClient]:
    """A client of this run's own, which asks again quickly while SQLite is busy."""
    client = get_client(sync_client=True)
    make_patient(client)
    with client:
        yield client
