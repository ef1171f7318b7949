"""What a backfill was asked to do, checked before anything is done. Knows no Prefect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from attachments.domain.message_ids import listed_ids

MOMENT = "2026-01-31T00:00:00Z"
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}", re.ASCII)


class OrderError(Exception):
    """A parameter is wrong or missing; the text says what to write."""


@dataclass(frozen=True)
class IdList:
    """The messages of a list."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class IdFile:
    """The messages of a file; `block` names where the storage's options are."""

    url: str
    block: str | None = None


@dataclass(frozen=True)
class Window:
    """The messages that a mailbox received from `start` until before `end`."""

    mailbox: str
    start: datetime
    end: datetime


Order = IdList | IdFile | Window


def checked_order(
    *,
    message_ids: Sequence[str] | None,
    ids_url: str | None,
    ids_block: str | None,
    mailbox: str | None,
    start: str | None,
    end: str | None,
) -> Order:
    """Which messages are meant. A form sends empty texts for what was emptied. Raises OrderError, IdsError."""
    url, block, box = _text(ids_url), _text(ids_block), _text(mailbox)
    ways = [
        name
        for name, value in (("message_ids", message_ids), ("ids_url", url), ("mailbox (with start and end)", box))
        if value
    ]
    if len(ways) != 1:
        said = "None of them is set" if not ways else f"{' and '.join(ways)} are set"
        raise OrderError(f"Set one of message_ids, ids_url, and mailbox with start and end. {said}.")
    if block and not url:
        raise OrderError("ids_block holds the options for ids_url, which is not set. Remove it, or set ids_url.")
    if not box and (_text(start) or _text(end)):
        raise OrderError("start and end belong to mailbox, which is not set. Remove them, or set mailbox alone.")
    if message_ids:
        return IdList(listed_ids(message_ids))
    if url:
        return IdFile(url, block)
    assert box is not None  # noqa: S101  one of the three is set
    window = Window(box, moment(start, "start"), moment(end, "end"))
    if window.end <= window.start:
        raise OrderError("end is not after start. Exchange them, or write a later end.")
    now = datetime.now(UTC)
    if window.start >= now:
        raise OrderError("start lies in the future. Write an earlier one.")
    return replace(window, end=min(window.end, now))


def moment(text: str | None, name: str) -> datetime:
    """A date and time with its zone. Raises OrderError."""
    written = _text(text)
    if written is None:
        raise OrderError(f"{name} is missing. Write a date and time with its zone: {MOMENT}")
    if _DATE.fullmatch(written):
        raise OrderError(f"{name} is a date without a time. Write the moment with its zone: {MOMENT}")
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        raise OrderError(f"{name} is no date and time. Write it so: {MOMENT}") from None
    if found.tzinfo is None:
        raise OrderError(f"{name} has no zone. Add Z for UTC, or the difference: 2026-01-31T00:00:00+01:00")
    return found


def _text(value: str | None) -> str | None:
    """The text without blanks around it; nothing when it is empty."""
    return (value or "").strip() or None
