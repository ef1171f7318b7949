"""The envelope of a report that is being made, or is done (concepts/result-envelope, concepts/pagination)."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from attachments.emailgistics.errors import BadAnswer
from attachments.emailgistics.models import ID_CHARACTERS, capped
from attachments.foundation.message_id import normalized
from attachments.foundation.timestamps import parse_timestamp

logger = logging.getLogger(__name__)

FURTHEST_ZONE = timedelta(hours=14)
"""As far ahead of UTC as a zone can be."""
ROW_DIGITS = 8
HREF_CHARACTERS = 8_000
"""As many as servers take at least of a URL (RFC 9110, section 4.1)."""
RECEIVED = ("received", "receivedDateTime", "receivedAt")
"""Names under which a row may say when the message came in; none is documented."""


@dataclass(frozen=True)
class ReceivedMessage:
    """A message that a mailbox has received, as far as a row of the report tells. Only the ids are documented."""

    message_id: str
    """The id for the attachment endpoints."""
    row_id: str = ""
    received: datetime | None = None
    conversation_id: str | None = None
    has_attachments: bool | None = None

    def __repr__(self) -> str:
        return f"ReceivedMessage(row_id={self.row_id!r})"


@dataclass(frozen=True)
class ReportEnvelope:
    """One answer about a report. A status that is not known counts as still running."""

    is_done: bool
    is_failed: bool
    code: str | None
    """The vendor's word for what failed."""
    itself: str | None
    """Where to ask again, as given."""
    following: str | None
    """Where the next page is, as given."""
    rows: tuple[ReceivedMessage, ...]
    unnamed: tuple[str, ...]
    """The rows without the id of a message: a few letters each, by which the same row is known again."""
    cutoff: datetime | None
    """What came in after this moment is not in the report, if it says so."""


def parse_envelope(body: bytes) -> ReportEnvelope:
    """The envelope in an answer. Raises `BadAnswer` when it is not the documented JSON."""
    try:
        document = json.loads(body)
        status = document["status"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise BadAnswer("The answer about a report is not the documented JSON") from None
    result = _object(document.get("result"))
    data = result.get("data")
    is_done = status == "done"
    if is_done and not isinstance(data, list):
        # Read as "no messages" it would lose them without a word.
        raise BadAnswer("A report that is done has no list of rows")
    listed = data if is_done and isinstance(data, list) else []
    rows = tuple(_row(row) for row in listed)
    return ReportEnvelope(
        is_done=is_done,
        is_failed=status == "error",
        code=capped(_object(document.get("error")).get("code")) or None,
        itself=_href(document, "self"),
        following=_href(document, "next"),
        rows=tuple(row for row in rows if row is not None),
        unnamed=tuple(_known_by(row) for row, parsed in zip(listed, rows, strict=True) if parsed is None),
        cutoff=_cutoff(result.get("dataCutoffTimestamp")),
    )


def _row(row: Any) -> ReceivedMessage | None:
    fields = _object(row)
    # One character more than an id may have: such an id is none, and half an id would be another message's.
    message_id = normalized(capped(fields.get("messageId"), ID_CHARACTERS + 1))
    if not 0 < len(message_id) <= ID_CHARACTERS:
        return None
    flag = fields.get("hasAttachments")
    return ReceivedMessage(
        message_id=message_id,
        row_id=capped(fields.get("id"), ID_CHARACTERS),
        received=next((moment for name in RECEIVED if (moment := parse_timestamp(fields.get(name)))), None),
        conversation_id=capped(fields.get("conversationId"), ID_CHARACTERS) or None,
        has_attachments=flag if isinstance(flag, bool) else None,
    )


def _known_by(row: Any) -> str:
    """A row's own id where it has one, or all of it, as a digest: what it holds may be anything."""
    own = capped(_object(row).get("id"), ID_CHARACTERS) or json.dumps(row, sort_keys=True)
    return hashlib.sha256(own.encode()).hexdigest()[:ROW_DIGITS]


def _href(document: Mapping[str, Any], name: str) -> str | None:
    href = _object(_object(document.get("_links")).get(name)).get("href")
    if isinstance(href, str) and len(href) > HREF_CHARACTERS:
        raise BadAnswer(f"A link in the answer about a report has more than {HREF_CHARACTERS} characters")
    return capped(href, HREF_CHARACTERS) or None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _cutoff(value: Any) -> datetime | None:
    """None if there is none. An unreadable one counts as the earliest, because no watermark may rely on it."""
    if value in (None, ""):
        return None
    earliest = datetime.min.replace(tzinfo=UTC)
    cutoff = parse_timestamp(value)
    if cutoff is None:
        logger.warning("A report does not say readably how far its data go: it is taken to cover nothing for sure.")
        return earliest
    # Without a zone it may be the mailbox's own time, which is up to so much ahead.
    return cutoff if _has_zone(value) else cutoff - min(FURTHEST_ZONE, cutoff - earliest)


def _has_zone(moment: str) -> bool:
    return datetime.fromisoformat(moment).tzinfo is not None
