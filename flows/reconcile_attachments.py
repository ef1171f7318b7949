"""Messages whose webhook never arrived: each mailbox's report is compared with the store, and the rest is fetched."""

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
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from attachments.domain.watermark_policy import HELD_FOR, PERMANENT_CODES, SLICE, SliceResult, span_to_check
from attachments.emailgistics import EmailgisticsError, Forbidden, InvalidKey, Mailbox, ReceivedMessage
from attachments.emailgistics.envelopes import FURTHEST_ZONE
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped_line
from attachments.prefect_api.prefect_retry import own_client
from attachments.rate_limit.priority import low_priority
from attachments.runs.announcements import announce, event, send
from attachments.runs.child_runs import RESPONSE_TIMEOUT, Child, Stage, runs_with_tag
from attachments.runs.continuation import Lineage
from attachments.runs.errors import OUR_ERRORS, OurError, error_code, flow_boundary, retry_until_available
from attachments.runs.fan_out import BACKFILL, DownloadDeployment, FanOutCancelled, MessageRef, run_children
from attachments.runs.state_record import WITHDRAWN, StateRecord, write_record
from attachments.runs.watermarks import UnreadableWatermark, Watermarks, mailbox_key

MISSED = "emailgistics.message.missed"
MANY_MISSED = "emailgistics.messages.missed"
RECONCILE = "reconcile"
"""The tag of the runs that fetch what was missed."""
MAX_EVENTS = 100
"""Events, and rows of the table, in one run; the rest is a number."""
MAX_NAMED = 5
"""Messages that the final state names."""
STAGE_TEXTS = {
    Stage.SUCCEEDED: "stored now",
    Stage.RETRY_SCHEDULED: "failed for now, to be tried again automatically",
    Stage.FAILED: "failed",
    Stage.CANCELLED: "cancelled",
    Stage.RUNNING: "under way",
    Stage.WAITING: "waiting for a worker",
}
WORST_FIRST = (Stage.FAILED, Stage.CANCELLED, Stage.RETRY_SCHEDULED, Stage.WAITING, Stage.RUNNING, Stage.SUCCEEDED)


@dataclass
class ReconcileResult:
    """What a reconciliation has found so far. The runs that it created are in Prefect: see `_read_created_runs`."""

    mailboxes: int = 0
    seen: int = 0
    in_other_runs: int = 0
    """Messages that another run is processing, or will retry."""
    retry_scheduled: int = 0
    """Messages that failed earlier this day; another run follows."""
    failed_permanently: int = 0
    """Messages that failed permanently earlier this day."""
    events: dict[str, Event] = field(default_factory=dict)
    """Events about a message that were sent, by its key."""
    unnamed_rows: int = 0
    """Rows of reports without a message ID that were not reported before."""
    unreported: set[str] = field(default_factory=set)
    """Mailboxes, by key, whose watermarks record that such rows are yet to be reported."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why no run was created for a message, by its key."""
    expired_holds: set[str] = field(default_factory=set)
    """Mailboxes, by key, in which something held back the watermark for so long that it no longer does."""
    incomplete: dict[str, str] = field(default_factory=dict)
    """Mailboxes that could not be checked completely, by key, and why."""


@flow(name="reconcile-attachments", persist_result=False)
def reconcile_attachments(
    mailboxes: list[str] | None = None,
    deployment: str = "default",
    overlap_hours: Annotated[float, Field(ge=0, le=24 * 30)] = 2,
    settling_minutes: Annotated[float, Field(ge=0, le=24 * 60)] = 10,
    first_days: Annotated[float, Field(gt=0, le=366)] = 3,
) -> State[None]:
    """Find messages whose webhook never arrived, and fetch their attachments. The API key needs the scope reporting.

    Args:
        mailboxes: Addresses or ids of shared mailboxes; all active ones of the account when left out.
        deployment: The deployment of download-attachments that fetches, with its account, store and filter.
        overlap_hours: How much of what was checked the last time is checked again.
        settling_minutes: Messages younger than this are left to the next time: their webhook may still come.
        first_days: How far back a mailbox is checked for the first time.
    """
    try:
        with flow_boundary(), low_priority():
            options = _Options(
                target=DownloadDeployment.load(deployment),
                overlap=timedelta(hours=overlap_hours),
                settling=timedelta(minutes=settling_minutes),
                first=timedelta(days=first_days),
                lineage=Lineage.current(),
            )
            return _reconcile(options, mailboxes)
    except OUR_ERRORS as error:
        return _failed(_failure_text(error), error)


@dataclass(frozen=True)
class _Options:
    """The parameters of a reconciliation."""

    target: DownloadDeployment
    overlap: timedelta
    settling: timedelta
    first: timedelta
    lineage: Lineage

    @property
    def tag(self) -> str:
        """Identifies the reconciliation that created a run. It stays the same when its worker dies."""
        return f"{RECONCILE}:{self.lineage.short}"


def _reconcile(options: _Options, mailboxes: list[str] | None) -> State[None]:
    """Check each mailbox, then report the results, even if the check was incomplete."""
    found = ReconcileResult()
    stopped = None
    try:
        with flow_boundary():
            try:
                _check_all(options, mailboxes, found)
            except FanOutCancelled as cancelled:
                _report_rows(options, (), found)
                return Cancelled(message=" ".join([str(cancelled), *_reported_once(found)]))
    except OUR_ERRORS as error:
        stopped = error
    return _final_state(options, found, stopped)


def _check_all(options: _Options, mailboxes: list[str] | None, found: ReconcileResult) -> None:
    boxes = _chosen(options.target.account.client().mailboxes(), mailboxes, found)
    with own_client(RESPONSE_TIMEOUT) as client:
        watermarks = Watermarks(client, options.target.account_name, options.target.name)
        for box in boxes:
            key = mailbox_key(box.id)
            try:
                _check(box, key, options, watermarks, found)
                found.mailboxes += 1
            except UnreadableWatermark as error:
                found.incomplete[key] = str(error)
            except (InvalidKey, Forbidden):
                raise  # it is the same for every mailbox
            except EmailgisticsError as error:
                found.incomplete[key] = str(error)


def _chosen(known: Sequence[Mailbox], names: list[str] | None, found: ReconcileResult) -> list[Mailbox]:
    """The mailboxes to check. One that does not exist is noted, and does not stop the others."""
    if not names:  # a form field that was filled and cleared sends an empty list
        active = [mailbox for mailbox in known if mailbox.active]
        if not active:
            found.incomplete["all"] = "the API key may see no active mailbox; check its allowlist"
        return active
    chosen = []
    for number, name in enumerate((name.strip() for name in names), 1):
        boxes = [box for box in known if name == box.id or (name and name.casefold() == box.address.casefold())]
        chosen += boxes
        if not boxes:
            found.incomplete[f"number {number} of mailboxes"] = (
                "the account has no such mailbox, or the API key may not see it; check address and allowlist"
            )
    return list({box.id: box for box in chosen}.values())


def _check(box: Mailbox, key: str, options: _Options, watermarks: Watermarks, found: ReconcileResult) -> None:
    """Fetch what is missing of a mailbox, slice by slice, and move its watermark after each."""
    logger = get_run_logger()
    known = retry_until_available(lambda: watermarks.read(key))
    now = datetime.now(UTC)
    whole = span_to_check(
        known.until if known else None, now, overlap=options.overlap, settling=options.settling, first=options.first
    )
    unnamed, unreported = (known.unnamed, known.unreported) if known else ((), 0)
    if unreported:  # a reconciliation died before it could report them
        found.unnamed_rows += unreported
        found.unreported.add(key)
    if known is None or known.until > now:
        if known is not None:
            logger.warning(
                "The watermark of mailbox %s is in the future (a wrong clock): it is checked from %s days ago on.",
                key,
                options.first / timedelta(days=1),
            )
        # Set it at once. Otherwise, while reports fail, a watermark in the future would become valid, or a new
        # mailbox's first days would move forward, and the time between would never be checked.
        retry_until_available(lambda: watermarks.advance(key, whole.start, unnamed, unreported))
    # Messages before the old watermark were reported when the watermark passed them.
    old = known.until if known and known.until <= now else whole.start
    held_at: datetime | None = None
    for piece in whole.slices():
        rows = options.target.account.client().received_messages(box.id, piece.start, piece.end, on_wait=logger.info)
        result = _fetch(box, rows, options, found)
        new = [row for row in rows.unnamed if row not in unnamed]
        if new:
            found.unnamed_rows += len(new)
            unreported += len(new)
            found.unreported.add(key)
            names = "row of the report names no message and was", "rows of the report name no message and were"
            logger.warning("%s left out.", counted(len(new), *names))
            unnamed = (*reversed(new), *unnamed)
        now = datetime.now(UTC)
        covered = min(piece.end, rows.covered_until)
        if result.held and held_at is None:
            held_at = piece.start
        if result.expired and held_at is None and piece.end > old:
            found.expired_holds.add(key)
            logger.warning("The watermark of mailbox %s goes past messages that could not be fetched for days.", key)
        until = covered if held_at is None else min(covered, held_at)
        retry_until_available(partial(watermarks.advance, key, until, unnamed, unreported))
        if result.has_failed:
            found.incomplete[key] = (
                f"{result.failed:,} of its messages could not be fetched, and {result.stored:,} could: its watermark "
                "stays, and it is checked again the next time. The messages' runs say why."
            )
        elif covered < piece.end < whole.end and now - covered > SLICE + FURTHEST_ZONE:
            # More than a day lies beyond the report, even if its cut-off counts as earlier for want of a zone.
            found.incomplete[key] = (
                "the report's own cut-off lies more than 38 hours back, so later messages cannot be compared; its "
                "watermark goes no further than that. If this continues, ask Emailgistics"
            )
        if result.has_failed or covered < piece.end:
            return  # later slices are left to the next time


def _fetch(box: Mailbox, rows: Iterable[ReceivedMessage], options: _Options, found: ReconcileResult) -> SliceResult:
    """Fetch what is missing of these messages."""
    result = SliceResult()

    def on_created(message: MessageRef, _: Child) -> None:
        if len(found.events) < MAX_EVENTS and message.key not in found.events:
            found.events[message.key] = _missed_event(message.key, options)
            send([found.events[message.key]])

    def on_result(message: MessageRef, child: Child) -> None:
        is_own = child.id is None or options.tag in child.tags
        is_lost = child.code in PERMANENT_CODES
        if child.id is None:
            found.refused[message.key] = child.code or "refused"
        elif child.stage.is_ended and child.stage is not Stage.SUCCEEDED and not is_own:
            found.failed_permanently += is_lost
            found.retry_scheduled += not is_lost
        if child.stage is Stage.SUCCEEDED:
            result.stored += 1
        elif child.code == WITHDRAWN or not (is_lost or child.stage is Stage.CANCELLED):
            has_failed_now = is_own and child.stage.is_ended and child.code != WITHDRAWN
            result.add_missing(child.first_attempt, datetime.now(UTC), has_failed_now=has_failed_now)

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
        options.target,
        key_prefix=f"{RECONCILE}/{options.target.deployment_id}",
        # Low priority, as for a backfill: there may be weeks of missed mail, and live mail goes first.
        tags=(RECONCILE, options.tag, BACKFILL),
        on_created=on_created,
        on_result=on_result,
        skip_existing_runs=True,
    )
    found.seen += counts.seen - counts.duplicates
    found.in_other_runs += counts.in_other_runs
    return result


def _missed_event(message: str, options: _Options) -> Event:
    return _event(MISSED, "message", message, options, {"message_key": message, "deployment": options.target.name})


def _event(name: str, about: str, subject: str, options: _Options, payload: dict[str, object]) -> Event:
    """An event for automations. Sent again, after a worker's death, it is the same event to Prefect."""
    event_id = uuid5(NAMESPACE_URL, f"{name}/{options.lineage.origin}/{subject}")
    return event(name, about=about, subject=subject, event_id=event_id, payload=payload)


def _read_created_runs(options: _Options, found: ReconcileResult) -> list[tuple[str, Child]]:
    """The runs that this reconciliation created, by message, from Prefect: those from before a crash are among them."""
    with own_client(RESPONSE_TIMEOUT) as client:
        missed = [
            *runs_with_tag(client, options.tag),
            *((key, Child(None, Stage.FAILED, code)) for key, code in found.refused.items()),
        ]
    # A later attempt has the same tags: the newest one counts.
    latest = dict(sorted(missed, key=lambda pair: pair[1].since or datetime.min.replace(tzinfo=UTC)))
    return sorted(latest.items(), key=lambda pair: WORST_FIRST.index(pair[1].stage))


def _events(options: _Options, found: ReconcileResult, missed: Sequence[tuple[str, Child]]) -> list[Event]:
    """The events that Prefect must have before this run ends, including those that a crash kept from being sent."""
    events = dict(found.events)
    for key, child in missed:
        if child.id is not None and len(events) < MAX_EVENTS:
            events.setdefault(key, _missed_event(key, options))
    if len(missed) <= MAX_EVENTS:
        return list(events.values())
    more: dict[str, object] = {"missed": len(missed), "told": MAX_EVENTS, "deployment": options.target.name}
    return [*events.values(), _event(MANY_MISSED, "reconciliation", options.lineage.short, options, more)]


def _final_state(options: _Options, found: ReconcileResult, stopped: OurError | None) -> State[None]:
    missed = _read_created_runs(options, found)
    announce(_events(options, found, missed), look_first=True)
    if (missed or found.incomplete) and not found.unreported:
        _show(missed, found)
    _report_rows(options, missed, found)
    stages = Counter(child.stage for _, child in missed)
    sentences = [_counts(found, len(missed), stages)]
    if found.in_other_runs:
        others = counted(
            found.in_other_runs, "is under way in another run, or waits", "are under way in other runs, or wait"
        )
        sentences.append(f"{others} there for another attempt.")
    if found.retry_scheduled:
        retried = counted(found.retry_scheduled, "had failed before, and is", "had failed before, and are")
        sentences.append(f"{retried} tried again within a day.")
    if found.failed_permanently:
        lost = counted(
            found.failed_permanently, "had failed permanently before, and is", "had failed permanently before, and are"
        )
        sentences.append(f"{lost} not tried again automatically.")
    sentences += _reported_once(found)
    failed = [(key, child) for key, child in missed if child.stage in {Stage.FAILED, Stage.CANCELLED}]
    if failed:
        named = ", ".join(f"{key} ({child.code or child.stage.value})" for key, child in failed[:MAX_NAMED])
        rest = f" and {len(failed) - MAX_NAMED:,} more" if len(failed) > MAX_NAMED else ""
        sentences.append(
            f"Not stored: {named}{rest}. Their runs have the tag {options.tag}: retry them in the Prefect UI when the "
            "cause is gone."
        )
    if found.incomplete:
        key, why = next(iter(found.incomplete.items()))
        mailboxes = counted(len(found.incomplete), "mailbox", "mailboxes")
        sentences.append(f"{mailboxes} could not be checked completely. {key}: {why}")
    if stopped is not None:
        sentences.append(_failure_text(stopped))
    message = " ".join(sentences)
    if failed or found.incomplete or found.expired_holds or found.unnamed_rows or stopped is not None:
        return _failed(message, stopped)
    return Completed(message=message)


def _report_rows(options: _Options, missed: Sequence[tuple[str, Child]], found: ReconcileResult) -> None:
    """Show in the table how many rows name no message; only then do the watermarks record that this was reported."""
    if not found.unreported:
        return
    _show(missed, found)
    with own_client(RESPONSE_TIMEOUT) as client:
        watermarks = Watermarks(client, options.target.account_name, options.target.name)
        for key in found.unreported:
            retry_until_available(partial(watermarks.clear_unreported, key))


def _reported_once(found: ReconcileResult) -> list[str]:
    """What no later reconciliation reports, because the watermarks have gone past it."""
    sentences = []
    if found.expired_holds:
        mailboxes = counted(len(found.expired_holds), "mailbox", "mailboxes")
        sentences.append(
            f"In {mailboxes}, messages that could not be fetched for {HELD_FOR.days} days, or that wait in another "
            f"run, no longer hold back the watermark: retry the failed runs with the tag {RECONCILE} when the cause is "
            "gone, and see why others wait."
        )
    if found.unnamed_rows:
        unnamed = counted(found.unnamed_rows, "row of the reports names", "rows of the reports name")
        sentences.append(f"{unnamed} no message, so nothing can fetch theirs: ask Emailgistics.")
    return sentences


def _counts(found: ReconcileResult, missed: int, stages: Counter[Stage]) -> str:
    mailboxes = counted(found.mailboxes, "mailbox", "mailboxes")
    total = f"Of {counted(found.seen, 'message')} in {mailboxes} {missed:,} had been missed"
    parts = [f"{stages[stage]:,} {words}" for stage, words in STAGE_TEXTS.items() if stages[stage]]
    return f"{total}: {', '.join(parts)}." if parts else f"{total}."


def _show(missed: Sequence[tuple[str, Child]], found: ReconcileResult) -> None:
    rows = [
        {"message": key, "outcome": f"failed ({child.code})" if child.code else STAGE_TEXTS[child.stage]}
        for key, child in missed[:MAX_EVENTS]
    ]
    more = len(missed) - len(rows)
    rows += [{"message": f"and {more:,} more", "outcome": ""}] if more else []
    rows += [{"message": f"mailbox {key}", "outcome": why} for key, why in found.incomplete.items()]
    if found.unnamed_rows:
        names = counted(found.unnamed_rows, "row of the reports names", "rows of the reports name")
        rows += [{"message": "", "outcome": f"{names} no message: ask Emailgistics"}]
    retry_until_available(
        lambda: create_table_artifact(
            key="missed-messages",
            table=rows,
            description="Messages whose webhook never arrived, and what happened to them. By key.",
        )
    )


def _failure_text(error: OurError) -> str:
    # No retry is scheduled: the deployment's schedule starts the next run.
    return f"{escaped_line(str(error))} The watermarks of what was not done stay, so the next reconciliation does it."


def _failed(message: str, stopped: OurError | None) -> State[None]:
    return write_record(Failed(message=message), StateRecord(code=stopped and error_code(stopped)))
