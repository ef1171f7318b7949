"""Types of the commands' arguments: each converts one word, or raises a ValueError that says what to write instead."""

import math
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from attachments.cli.command_boundary import CommandFailed
from attachments.foundation.message_id import mistake_in, normalized

DEFAULT_INBOX = "~/.local/state/emailgistics-attachments/inbox.sqlite"
HIGHEST_PORT = 65535
MAX_CONCURRENT = 64


def inbox_path(inbox: Path | None) -> Path:
    """The inbox that the option or `ATTACHMENTS_INBOX` names. Raises `CommandFailed`."""
    path = inbox or Path(os.environ.get("ATTACHMENTS_INBOX") or DEFAULT_INBOX)
    try:
        return path.expanduser()
    except RuntimeError:  # no home folder, or no such user
        raise CommandFailed(
            f"There is no home folder for the inbox {path}. Give an absolute path with ATTACHMENTS_INBOX or --inbox."
        ) from None


def _converted(convert: Callable[[str], Any], **more: Any) -> Parameter:
    return Parameter(converter=lambda _, tokens: convert(tokens[0].value), n_tokens=1, **more)


def _number(text: str) -> float:
    """The number; NaN, which no range contains, for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _message_id(text: str) -> str:
    message_id = normalized(text)  # or the message's key
    if not message_id:
        raise ValueError("the message's id is empty; check that the shell variable is set")
    mistake = mistake_in(message_id)
    if mistake is not None:
        raise ValueError(f"this is not a message id: {mistake}; copy the whole id")
    return message_id


def _path(text: str) -> Path:
    if not text:
        raise ValueError("the path is empty; check that the shell variable is set")
    return Path(text)


def _port(text: str) -> int:
    port = _number(text)
    if not 0 <= port <= HIGHEST_PORT or port != int(port):  # the resolver would map 99999 to another port
        raise ValueError(f"a port is a number from 0 to {HIGHEST_PORT}")
    return int(port)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host.strip("[]"):
        raise ValueError("write HOST:PORT, such as 127.0.0.1:8081")
    return host.strip("[]"), _port(port)


def _hours(text: str) -> timedelta:
    hours = _number(text)
    if not 0 <= hours < 24 * 365 * 100:  # excludes NaN and more than a date supports
        raise ValueError("write a number of hours without a unit, such as 24 or 0.5")
    return timedelta(hours=hours)


def _count(text: str) -> int:
    count = _number(text)
    if not 1 <= count <= MAX_CONCURRENT or count != int(count):
        raise ValueError(f"write a whole number from 1 to {MAX_CONCURRENT}")
    return int(count)


def _wait(text: str) -> float:
    seconds = _number(text)
    if not 0 <= seconds <= 95:  # noqa: PLR2004  `receiver.responses.MAX_WAIT`, whose import takes a second
        raise ValueError("write 0 to 95 seconds, because Emailgistics waits 100 for a response")
    return seconds


MessageId = Annotated[
    str,
    _converted(
        _message_id, help="The message's id, its key of 32 hex digits, or a path or address that contains the key."
    ),
]
FilePath = Annotated[Path, _converted(_path)]
InboxPath = Annotated[Path, _converted(_path, help=f"The inbox file (default: ATTACHMENTS_INBOX or {DEFAULT_INBOX}).")]
Port = Annotated[int, _converted(_port, metavar="PORT")]
Address = Annotated[tuple[str, int], _converted(_address, metavar="HOST:PORT")]
Hours = Annotated[
    timedelta, _converted(_hours, metavar="HOURS", show_default=lambda age: f"{age.total_seconds() / 3600:g}")
]
Count = Annotated[int, _converted(_count, metavar="COUNT")]
Wait = Annotated[float, _converted(_wait, metavar="TIMEOUT")]
Url = Annotated[str, Parameter(metavar="URL")]
Name = Annotated[str, Parameter(metavar="NAME")]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
