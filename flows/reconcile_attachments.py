"""What no webhook has told: each mailbox's report is compared with what is stored, and what is missing is fetched."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated
from uuid import NAMESPACE_URL, uuid5

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.events import Event
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from attachments.domain.watermark_policy import HELD_FOR, PERMANENT_CODES, SLICE, Hold, Slice, Span, span
from attachments.emailgistics import EmailgisticsError, Forbidden, InvalidKey, Mailbox, ReceivedMessage
from attachments.emailgistics.envelopes import FURTHEST_ZONE
from attachments.foundation.cancellation import RunCancelled
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped_line
from attachments.prefect_api.prefect_retry import own_client
from attachments.rate_limit.priority import low_priority
from attachments.runs.announcements import announce, event, send
from attachments.runs.child_runs import ANSWER_TIMEOUT, Child, Stage, made_before
from attachments.runs.continuation import Lineage
from attachments.runs.errors import OUR_ERRORS, OurError, error_boundary, error_code, retry_until_available
from attachments.runs.fan_out import BACKFILL, DownloadDeployment, FanOutCancelled, MessageRef, Starved, run_children
from attachments.runs.state_record import WITHDRAWN, StateRecord, write_record
from attachments.runs.watermarks import UnreadableWatermark, Watermarks, mailbox_key

MISSED = "emailgistics.message.missed"
MANY_MISSED = "emailgistics.messages.missed"
RECONCILE = "reconcile"
"""The tag of the runs that fetch what was missed."""
MOST_TOLD = 100
"""Events, and rows of the table, in one run; the rest is a number."""
MOST_NAMED = 5
"""Messages that the final state names."""
WORDS = {
    Stage.SUCCEEDED: "stored now",
    Stage.FOR_NOW: "failed for now, to be tried again automatically",
    Stage.FAILED: "failed",
    Stage.CANCELLED: "cancelled",
    Stage.RUNNING: "under way",
    Stage.WAITING: "waiting for a worker",
}
WORST_FIRST = (Stage.FAILED, Stage.CANCELLED, Stage.FOR_NOW, Stage.WAITING, Stage.RUNNING, Stage.SUCCEEDED)


@dataclass
class Found:
    """What a reconciliation has found so far. What it had fetched, Prefect knows: see `_missed`."""

    mailboxes: int = 0
    seen: int = 0
    elsewhere: int = 0
    """Another run is at it, or will be."""
    again: int = 0
    """Failed earlier this day; another try follows."""
    lost: int = 0
    """Failed earlier this day, for good."""
    told: dict[str, Event] = field(default_factory=dict)
    """Events about a message that were sent, by its key."""
    unnamed: int = 0
    """Rows of reports without the id of a message, of which was not told before."""
    untold: set[str] = field(default_factory=set)
    """Mailboxes, by key, whose marks remember that such rows are to be told."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why no run was made for a message, by its key."""
    passed: set[str] = field(default_factory=set)
    """Mailboxes, by key, in which something has held the mark for so long that it holds it no more."""
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
        with error_boundary(), low_priority():
            wish = _Wish(
                target=DownloadDeployment.load(deployment),
                overlap=timedelta(hours=overlap_hours),
                settling=timedelta(minutes=settling_minutes),
                first=timedelta(days=first_days),
                lineage=Lineage.current(),
            )
            return _reconcile(wish, mailboxes)
    except RunCancelled:
        raise Abort("The run was cancelled.") from None  # the worker sets the run's state to Cancelled
    except OUR_ERRORS as error:
        return _failed(_stopped(error), error)


@dataclass(frozen=True)
class _Wish:
    """What a reconciliation is asked for."""

    target: DownloadDeployment
    overlap: timedelta
    settling: timedelta
    first: timedelta
    lineage: Lineage

    @property
    def tag(self) -> str:
        """Which reconciliation made a run. After its worker's death, or a step aside, it is still the same."""
        return f"{RECONCILE}:{self.lineage.short}"


def _reconcile(wish: _Wish, asked: list[str] | None) -> State[None]:
    """Look at each mailbox, then tell what was found, also when that could not be done to the end."""
    found = Found()
    stopped = None
    try:
        with error_boundary():
            try:
                _look(wish, asked, found)
            except Starved as stuck:
                told = wish.lineage.schedule_continuation(stuck.counts, waiting=stuck.counts.unfinished)
                message = f"No worker has a place for the runs that wait: this one gives its own up. {told}"
                # The one that goes on sees the marks as they are now.
                told_once = _told_once(found)
                _tell_of_rows(wish, (), found)
                return Failed(message=" ".join([message, *told_once])) if told_once else Completed(message=message)
            except FanOutCancelled as left:
                _tell_of_rows(wish, (), found)
                return Cancelled(message=" ".join([str(left), *_told_once(found)]))
    except RunCancelled:
        raise
    except OUR_ERRORS as error:
        stopped = error
    return _ended(wish, found, stopped)


def _look(wish: _Wish, asked: list[str] | None, found: Found) -> None:
    boxes = _chosen(wish.target.account.client().mailboxes(), asked, found)
    with own_client(ANSWER_TIMEOUT) as client:
        marks = Watermarks(client, wish.target.account_name, wish.target.name)
        for box in boxes:
            key = mailbox_key(box.id)
            try:
                _mailbox(box, key, wish, marks, found)
                found.mailboxes += 1
            except UnreadableWatermark as error:
                found.broken[key] = str(error)
            except (InvalidKey, Forbidden):
                raise  # it is the same for every mailbox
            except EmailgisticsError as error:
                found.broken[key] = str(error)


def _chosen(known: Sequence[Mailbox], asked: list[str] | None, found: Found) -> list[Mailbox]:
    """The mailboxes that are meant. One that is not there is noted, and does not stop the others."""
    if not asked:  # a form that was filled and emptied sends an empty list
        active = [mailbox for mailbox in known if mailbox.active]
        if not active:
            found.broken["all"] = "the API key may see no active mailbox; check its allowlist"
        return active
    chosen = []
    for number, name in enumerate((name.strip() for name in asked), 1):
        boxes = [box for box in known if name == box.id or (name and name.casefold() == box.address.casefold())]
        chosen += boxes
        if not boxes:
            found.broken[f"number {number} of mailboxes"] = (
                "the account has no such mailbox, or the API key may not see it; check address and allowlist"
            )
    return list({box.id: box for box in chosen}.values())


def _mailbox(box: Mailbox, key: str, wish: _Wish, marks: Watermarks, found: Found) -> None:
    logger = get_run_logger()
    known = retry_until_available(lambda: marks.read(key))
    now = datetime.now(UTC)
    asked = span(known.until if known else None, now, overlap=wish.overlap, settling=wish.settling, first=wish.first)
    hold = Hold(known.tried if known else ())
    unnamed, untold = (known.unnamed, known.untold) if known else ((), 0)
    if untold:  # by a reconciliation that died before it could tell
        found.unnamed += untold
        found.untold.add(key)
    if known is None or known.until > now:
        if known is not None:
            logger.warning(
                "The mark of mailbox %s lies in the future, so a clock was wrong: it is looked at from %s days ago on.",
                key,
                wish.first / timedelta(days=1),
            )
        # At once: else, while reports fail, time would catch up with it, or a new mailbox's first days move on, and
        # nobody would look at what lies between.
        retry_until_available(lambda: marks.advance(key, asked.start, (), unnamed, untold))
        hold = Hold()
    # What lies before it and is only looked at again was told when the mark went past it.
    old, beyond = known.until if known and known.until <= now else asked.start, False
    for piece in asked.slices():
        rows = wish.target.account.client().received_messages(box.id, piece.start, piece.end, on_wait=logger.info)
        became = _fetch(box, rows, wish, found)
        new = [row for row in rows.unnamed if row not in unnamed]
        if new:
            found.unnamed += len(new)
            untold += len(new)
            found.untold.add(key)
            names = "row of the report names no message and was", "rows of the report name no message and were"
            logger.warning("%s left out.", counted(len(new), *names))
            unnamed = (*reversed(new), *unnamed)
        now = datetime.now(UTC)
        covered = min(piece.end, rows.covered_until)
        hold = hold.record_attempt(Span(piece.start, covered), now, is_held=became.is_held)
        is_stopped = became.is_away and not hold.expired(piece, now)
        until = hold.next_watermark(piece.start if is_stopped else covered, now)
        beyond |= became.is_held and piece.end > old
        if beyond and hold.at is not None and until > max(hold.at, old):
            found.passed.add(key)
            logger.warning("The mark of mailbox %s goes past messages that could not be fetched for days.", key)
        move = partial(marks.advance, key, until, hold.tried, unnamed, untold)
        retry_until_available(move)
        if is_stopped:
            found.broken[key] = (
                f"{became.failed:,} of its messages could not be fetched, and {became.stored:,} could: its mark stays, "
                "and it is looked at again the next time. The messages' runs say why."
            )
        elif covered < piece.end < asked.end and now - covered > SLICE + FURTHEST_ZONE:
            # More than a day lies beyond the report, even where its cut-off counts as earlier for want of a zone.
            found.broken[key] = (
                "the report's own cut-off lies more than 38 hours back, so later messages cannot be compared; its "
                "mark goes no further than that. If it goes on, ask Emailgistics"
            )
        if is_stopped or covered < piece.end:
            return  # nothing later is looked at now


def _fetch(box: Mailbox, rows: Iterable[ReceivedMessage], wish: _Wish, found: Found) -> Slice:
    """Fetch what is missing of these messages, and say what became of them."""
    became = Slice()

    def made(wanted: MessageRef, _: Child) -> None:
        if len(found.told) < MOST_TOLD and wanted.key not in found.told:
            found.told[wanted.key] = _missed_event(wanted.key, wish)
            send([found.told[wanted.key]])

    def ended(wanted: MessageRef, child: Child) -> None:
        is_lost = child.code in PERMANENT_CODES
        if child.stage is Stage.SUCCEEDED:
            became.stored += 1
        elif child.code == WITHDRAWN:
            became.before += 1  # with another reconciliation that had made it
        elif is_lost or child.stage is Stage.CANCELLED:
            became.lost += 1
        elif child.id is None or wish.tag in child.tags:
            became.failed += 1
        else:
            became.before += 1
        if child.id is None:
            found.refused[wanted.key] = child.code or "refused"
        elif wish.tag not in child.tags and child.stage is not Stage.SUCCEEDED:
            found.lost += is_lost
            found.again += not is_lost

    counts = run_children(
        (
            MessageRef(
                message_id=row.message_id,
                mailbox=box.address or None,
                received=row.received,
                conversation_id=row.conversation_id,
            )
            for row in rows
        ),
        wish.target,
        key_prefix=f"{RECONCILE}/{wish.target.deployment_id}",
        # What comes so late lets live mail go first, as a backfill does: there may be weeks of it.
        tags=(RECONCILE, wish.tag, BACKFILL),
        on_made=made,
        on_ended=ended,
        skip_existing_runs=True,
        yield_slot=wish.lineage.can_continue,
    )
    found.seen += counts.seen - counts.duplicates
    found.elsewhere += counts.elsewhere
    became.elsewhere = counts.elsewhere
    return became


def _missed_event(message: str, wish: _Wish) -> Event:
    return _event(MISSED, "message", message, wish, {"message_key": message, "deployment": wish.target.name})


def _event(name: str, about: str, subject: str, wish: _Wish, payload: dict[str, object]) -> Event:
    """What automations are told. The same again, after a worker's death, is the same event to Prefect."""
    event_id = uuid5(NAMESPACE_URL, f"{name}/{wish.lineage.origin}/{subject}")
    return event(name, about=about, subject=subject, event_id=event_id, payload=payload)


def _missed(wish: _Wish, found: Found) -> list[tuple[str, Child]]:
    """What this reconciliation had fetched, as Prefect has it: what it did before its worker died is in it."""
    with own_client(ANSWER_TIMEOUT) as client:
        missed = [
            *made_before(client, wish.tag),
            *((key, Child(None, Stage.FAILED, code)) for key, code in found.refused.items()),
        ]
    # A later attempt has the same tags: the one that came last says how it stands.
    latest = dict(sorted(missed, key=lambda pair: pair[1].since or datetime.min.replace(tzinfo=UTC)))
    return sorted(latest.items(), key=lambda pair: WORST_FIRST.index(pair[1].stage))


def _events(wish: _Wish, found: Found, missed: Sequence[tuple[str, Child]]) -> list[Event]:
    """What Prefect must have of what was missed before this ends, whoever sent it, and whatever died before it did."""
    told = dict(found.told)
    for key, child in missed:
        if child.id is not None and len(told) < MOST_TOLD:
            told.setdefault(key, _missed_event(key, wish))
    if len(missed) <= MOST_TOLD:
        return list(told.values())
    more: dict[str, object] = {"missed": len(missed), "told": MOST_TOLD, "deployment": wish.target.name}
    return [*told.values(), _event(MANY_MISSED, "reconciliation", wish.lineage.short, wish, more)]


def _ended(wish: _Wish, found: Found, stopped: OurError | None) -> State[None]:
    missed = _missed(wish, found)
    announce(_events(wish, found, missed), look_first=True)
    if (missed or found.broken) and not found.untold:
        _show(missed, found)
    _tell_of_rows(wish, missed, found)
    stages = Counter(child.stage for _, child in missed)
    told = [_counts(found, len(missed), stages)]
    if found.elsewhere:
        others = counted(
            found.elsewhere, "is under way in another run, or waits", "are under way in other runs, or wait"
        )
        told.append(f"{others} there for another attempt.")
    if found.again:
        again = counted(found.again, "had failed before, and is", "had failed before, and are")
        told.append(f"{again} tried again within a day.")
    if found.lost:
        lost = counted(found.lost, "had failed before for good, and is", "had failed before for good, and are")
        told.append(f"{lost} not tried again automatically.")
    told += _told_once(found)
    failed = [(key, child) for key, child in missed if child.stage in {Stage.FAILED, Stage.CANCELLED}]
    if failed:
        named = ", ".join(f"{key} ({child.code or child.stage.value})" for key, child in failed[:MOST_NAMED])
        rest = f" and {len(failed) - MOST_NAMED:,} more" if len(failed) > MOST_NAMED else ""
        told.append(
            f"Not stored: {named}{rest}. Their runs have the tag {wish.tag}: retry them in the Prefect UI when the "
            "cause is gone."
        )
    if found.broken:
        key, why = next(iter(found.broken.items()))
        mailboxes = counted(len(found.broken), "mailbox", "mailboxes")
        told.append(f"{mailboxes} could not be looked at to the end. {key}: {why}")
    if stopped is not None:
        told.append(_stopped(stopped))
    message = " ".join(told)
    if failed or found.broken or found.passed or found.unnamed or stopped is not None:
        return _failed(message, stopped)
    return Completed(message=message)


def _tell_of_rows(wish: _Wish, missed: Sequence[tuple[str, Child]], found: Found) -> None:
    """Show in the table how many rows name no message; only then do the marks forget that it is to be told."""
    if not found.untold:
        return
    _show(missed, found)
    with own_client(ANSWER_TIMEOUT) as client:
        marks = Watermarks(client, wish.target.account_name, wish.target.name)
        for key in found.untold:
            retry_until_available(partial(marks.forget_untold, key))


def _told_once(found: Found) -> list[str]:
    """What no later reconciliation tells, for the marks have gone past it."""
    told = []
    if found.passed:
        mailboxes = counted(len(found.passed), "mailbox", "mailboxes")
        told.append(
            f"In {mailboxes} what could not be fetched for {HELD_FOR.days} days, or waits in another run, holds the "
            f"mark no longer: retry the failed runs with the tag {RECONCILE} when the cause is gone, and see why "
            "others wait."
        )
    if found.unnamed:
        unnamed = counted(found.unnamed, "row of the reports names", "rows of the reports name")
        told.append(f"{unnamed} no message, so nothing can fetch theirs: ask Emailgistics.")
    return told


def _counts(found: Found, missed: int, stages: Counter[Stage]) -> str:
    mailboxes = counted(found.mailboxes, "mailbox", "mailboxes")
    told = f"Of {counted(found.seen, 'message')} in {mailboxes} {missed:,} had been missed"
    parts = [f"{stages[stage]:,} {words}" for stage, words in WORDS.items() if stages[stage]]
    return f"{told}: {', '.join(parts)}." if parts else f"{told}."


def _show(missed: Sequence[tuple[str, Child]], found: Found) -> None:
    rows = [
        {"message": key, "outcome": f"failed ({child.code})" if child.code else WORDS[child.stage]}
        for key, child in missed[:MOST_TOLD]
    ]
    more = len(missed) - len(rows)
    rows += [{"message": f"and {more:,} more", "outcome": ""}] if more else []
    rows += [{"message": f"mailbox {key}", "outcome": why} for key, why in found.broken.items()]
    if found.unnamed:
        names = counted(found.unnamed, "row of the reports names", "rows of the reports name")
        rows += [{"message": "", "outcome": f"{names} no message: ask Emailgistics"}]
    retry_until_available(
        lambda: create_table_artifact(
            key="missed-messages",
            table=rows,
            description="Messages that no webhook told of, and what became of them. By key.",
        )
    )


def _stopped(error: OurError) -> str:
    # No attempt of its own: the schedule brings the next one, and each of those would bring more.
    return f"{escaped_line(str(error))} The watermarks of what was not done stay, so the next reconciliation does it."


def _failed(message: str, stopped: OurError | None) -> State[None]:
    return write_record(Failed(message=message), StateRecord(code=stopped and error_code(stopped)))
