"""A backfill's request, validated before any work is done. Does not depend on Prefect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from attachments.domain.message_ids import checked_ids

MOMENT = "2026-01-31T00:00:00Z"
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}", re.ASCII)


class InvalidRequest(Exception):
    """A parameter is wrong or missing; the text says what to write."""


@dataclass(frozen=True)
class IdList:
    """The messages in a list."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class IdFile:
    """The messages in a file; `block` names the block with the storage's options."""

    url: str
    block: str | None = None


@dataclass(frozen=True)
class Window:
    """The messages that a mailbox received from `start` until before `end`."""

    mailbox: str
    start: datetime
    end: datetime


BackfillRequest = IdList | IdFile | Window


def checked_order(
    *,
    message_ids: Sequence[str] | None,
    ids_url: str | None,
    ids_block: str | None,
    mailbox: str | None,
    start: str | None,
    end: str | None,
) -> BackfillRequest:
    """The request that these parameters make. Empty texts count as not set. Raises InvalidRequest, IdsError."""
    url, block, box = _text(ids_url), _text(ids_block), _text(mailbox)
    ways = [
        name
        for name, value in (("message_ids", message_ids), ("ids_url", url), ("mailbox (with start and end)", box))
        if value
    ]
    if len(ways) != 1:
        said = "None of them is set" if not ways else f"{' and '.join(ways)} are set"
        raise InvalidRequest(f"Set one of message_ids, ids_url, and mailbox with start and end. {said}.")
    if block and not url:
        raise InvalidRequest("ids_block holds the options for ids_url, which is not set. Remove it, or set ids_url.")
    if not box and (_text(start) or _text(end)):
        raise InvalidRequest("start and end belong to mailbox, which is not set. Remove them, or set mailbox alone.")
    if message_ids:
        return IdList(checked_ids(message_ids))
    if url:
        return IdFile(url, block)
    assert box is not None  # noqa: S101  one of the three is set
    window = Window(box, moment(start, "start"), moment(end, "end"))
    if window.end <= window.start:
        raise InvalidRequest("end is not after start. Exchange them, or write a later end.")
    now = datetime.now(UTC)
    if window.start >= now:
        raise InvalidRequest("start lies in the future. Write an earlier one.")
    return replace(window, end=min(window.end, now))


def moment(text: str | None, name: str) -> datetime:
    """A date and time with its zone. Raises OrderError."""
    written = _text(text)
    if written is None:
        raise InvalidRequest(f"{name} is missing. Write a date and time with its zone: {MOMENT}")
    if _DATE.fullmatch(written):
        raise InvalidRequest(f"{name} is a date without a time. Write date and time with the zone: {MOMENT}")
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        raise InvalidRequest(f"{name} is not a date and time. Write it like this: {MOMENT}") from None
    if found.tzinfo is None:
        raise InvalidRequest(f"{name} has no zone. Add Z for UTC, or the offset: 2026-01-31T00:00:00+01:00")
    return found


def _text(value: str | None) -> str | None:
    """The text without surrounding blanks; None if it is empty."""
    return (value or "").strip() or None
