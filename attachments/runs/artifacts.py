"""What a run publishes: an event, a table in the UI and its final state. They contain keys, never file names."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import httpx
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from attachments.domain.plan import NOT_FINAL
from attachments.domain.selection import known_type
from attachments.domain.watermark_policy import PERMANENT_CODES
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped_line
from attachments.runs.announcements import announce, event
from attachments.runs.delayed_retry import failed_for_now
from attachments.runs.errors import OurError, error_code, is_retryable
from attachments.runs.state_record import CODE, UNKNOWN, StateRecord, write_record
from attachments.storage import Manifest, ManifestAttachment
from attachments.storage.manifest import Outcome, Pending

STORED_EVENT = "emailgistics.attachments.stored"
OUTCOME_LABELS: dict[Outcome, str] = {
    "stored": "stored",
    "filtered": "excluded by the filter",
    "unsupported": "not downloadable (links and nested items)",
    "purged": "purged earlier",
    "failed": "failed",
}


class AttachmentResult(Protocol):
    """The outcome of one attachment in this run."""

    @property
    def entry(self) -> ManifestAttachment: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def retryable(self) -> bool: ...


@dataclass(frozen=True)
class MessageResult:
    """The outcomes of a message's attachments in this run."""

    message_key: str
    outcomes: Sequence[AttachmentResult]
    pending: Pending | None = None
    """Why the message's list was not final."""


def nothing_to_do_state(manifest: Manifest) -> State[None]:
    """The final state of a run with nothing to do."""
    sentence = f"Nothing to do: everything is done according to the manifest. {_summarize(manifest.attachments)}."
    return _completed(sentence, manifest.attachments)


def announce_stored(manifest: Manifest, manifest_url: str, announcement: UUID, *, look_first: bool) -> bool:
    """Send the event about a message's stored attachments; returns whether Prefect has it in its database.

    Raises:
        PrefectLost: Prefect has not answered for a long while.
    """
    stored = event(
        STORED_EVENT,
        about="message",
        subject=manifest.message_key,
        event_id=announcement,
        payload={
            "message_key": manifest.message_key,
            "manifest_url": manifest_url,
            "complete": manifest.complete,
            "counts": dict(Counter(entry.outcome for entry in manifest.attachments)),
            "bytes": _stored_bytes(manifest.attachments),
        },
    )
    return announce([stored], look_first=look_first)


def finish(report: MessageResult) -> State[None]:
    """Publish the table of outcomes, and return the run's final state."""
    _publish_table(report)
    entries = [outcome.entry for outcome in report.outcomes]
    sentence = _summarize(entries)
    failures = [outcome for outcome in report.outcomes if outcome.entry.outcome == "failed"]
    if not failures and report.pending is None:
        return _completed(f"{sentence}.", entries)
    if report.pending is not None:
        sentence = f"{sentence}. {NOT_FINAL[report.pending]}" if report.outcomes else NOT_FINAL[report.pending]
    if not failures:
        return _failed(sentence, report.pending or UNKNOWN, passing=True)
    # Report a recoverable failure first: a reconciliation decides by this code whether to try again.
    first = next((failure for failure in failures if failure.entry.code not in PERMANENT_CODES), failures[0])
    sentences = f"{_as_sentence(sentence)} First failure: {_as_sentence(first.error or '')}"
    return _failed(
        f"{sentences} A retry fetches only what is missing.",
        _plain_code(first.entry.code) or UNKNOWN,
        passing=report.pending is not None or any(outcome.retryable for outcome in failures),
    )


def failed_state(error: OurError, labels: Mapping[str, str] | None = None) -> State[None]:
    """The final state of a run that cannot continue. The labels are for its next attempt, if there is one."""
    return _failed(_as_sentence(str(error)), error_code(error), passing=is_retryable(error), labels=labels)


def _completed(message: str, entries: Sequence[ManifestAttachment]) -> State[None]:
    stored = sum(entry.outcome == "stored" for entry in entries)
    return write_record(Completed(message=message), StateRecord(stored=stored))


def _failed(message: str, code: str, *, passing: bool, labels: Mapping[str, str] | None = None) -> State[None]:
    shortened = escaped_line(message)
    if passing:
        return failed_for_now(shortened, code, labels)
    return write_record(Failed(message=shortened), StateRecord(code=code))


def _as_sentence(sentence: str) -> str:
    """The sentence with a full stop, unless it has one."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _summarize(entries: Sequence[ManifestAttachment]) -> str:
    if not entries:
        return "The message has no attachments"
    counts = Counter(entry.outcome for entry in entries)
    size = counted(_stored_bytes(entries), "byte is", "bytes are")
    parts = [f"{counts[word]} {text}" for word, text in OUTCOME_LABELS.items() if counts[word]]
    return f"Of {counted(len(entries), 'attachment')} {', '.join(parts)}; {size} in the store"


def _stored_bytes(entries: Sequence[ManifestAttachment]) -> int:
    return sum(entry.bytes or 0 for entry in entries if entry.outcome == "stored")


def _publish_table(report: MessageResult) -> None:
    """Publish the table in the UI. A failure is only logged, because the work itself is done and recorded."""
    try:
        _make_table(report)
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect did not store the table of this run (%s).", type(error).__name__)


def _make_table(report: MessageResult) -> None:
    create_table_artifact(
        key="attachments",
        description=f"Attachments of message `{report.message_key}`",
        table=[
            {
                # The last columns may be cut off in a narrow window.
                "attachment": outcome.entry.attachment_key,
                "outcome": outcome.entry.outcome,
                "code": _plain_code(outcome.entry.code),
                "type": _plain_type(outcome.entry.content_type),
                "bytes": outcome.entry.bytes,
                "seconds": round(outcome.seconds, 2) if outcome.seconds is not None else None,
            }
            for outcome in report.outcomes
        ],
    )


def _plain_code(code: str | None) -> str | None:
    """A valid code, or `other`. A manifest's entry may contain any text, because others may write to the store."""
    return code if code is None or re.fullmatch(CODE, code) else "other"


def _plain_type(content_type: str | None) -> str:
    """A known type, or `other`, because the sender may write anything."""
    return known_type(content_type) or "other"
