"""What each reader of bytes from outside costs as its input grows: eight times the size, at most eight times the time.

An input has the worst shape known for its reader. Time is CPU time, the least of several rounds; memory is the most
that Python's allocator held at once, beyond the input.
"""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from attachments.domain.message_ids import read_ids
from attachments.domain.selection import Filter
from attachments.emailgistics.content_disposition import filename_of
from attachments.emailgistics.envelopes import parse_envelope
from attachments.emailgistics.models import parse_listing
from attachments.emailgistics.webhook import InvalidDelivery, authenticate, parse_delivery
from attachments.storage import Manifest, message_key
from attachments.storage.keys import attachment_key
from attachments.storage.names import safe_name
from benchmarks.figures import Figure

BASE = 128 * 1024
"""Bytes of the smallest input."""
TIMES = (1, 2, 4, 8)
ROUNDS = 5
LEAST = 0.01
"""Seconds that a round takes at least, by repeating what is quick."""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Input:
    """A reader, and its input of about `size` bytes."""

    read: Callable[[bytes], object]
    made: Callable[[int], bytes]


def _marks(size: int) -> str:
    """A letter with many marks in the wrong order, which takes quadratic time to normalize."""
    return "a" + "\u0300\u0323" * (size // 4)


def _rows(size: int, row: object) -> list[object]:
    return [row] * (size // len(json.dumps(row)))


def _webhook(body: bytes) -> None:
    with suppress(InvalidDelivery):
        parse_delivery(body)


def _manifest_of(size: int) -> bytes:
    key = message_key("AAMk")
    entry = {"id": "a", "attachment_key": attachment_key("a"), "name": "a.pdf", "outcome": "stored"}
    manifest = {"schema": 1, "message_id": "AAMk", "message_key": key, "updated": "2026-11-30T00:00:00Z"}
    return json.dumps({**manifest, "attachments": _rows(size, entry)}).encode()


def _selected(data: bytes) -> None:
    wanted = Filter.model_validate({"include": [{"names": ["*a*b*c*"]}]})
    for attachment in parse_listing(data):
        wanted.decide(attachment)


def _listing(size: int) -> bytes:
    return json.dumps({"attachments": _rows(size, {"id": "AAMk", "name": _marks(2000), "size": 1})}).encode()


def _page(size: int) -> bytes:
    row = {"id": "1", "messageId": "AAMk1=", "received": "2026-11-01T09:00:00+14:00"}
    return json.dumps({"status": "done", "result": {"data": _rows(size, row)}}).encode()


INPUTS = {
    "webhook": Input(
        _webhook, lambda size: json.dumps({"id": "A", "body": _rows(size, [{"a": _marks(100)}])}).encode()
    ),
    "webhook.deep": Input(_webhook, lambda size: b'{"id": ' + b"[" * size),
    # The server takes 64 KiB of headers.
    "authorization": Input(
        lambda data: authenticate(data.decode(), ["s" * 32]), lambda size: b"Bearer " + b"x" * (size // 16)
    ),
    "list": Input(parse_listing, _listing),
    "list.one_name": Input(
        parse_listing, lambda size: json.dumps({"attachments": [{"id": "A", "name": _marks(size)}]}).encode()
    ),
    "filter": Input(_selected, _listing),
    "content_disposition": Input(
        lambda data: filename_of(data.decode()), lambda size: f"attachment; filename={_marks(size)}".encode()
    ),
    "content_disposition.parts": Input(
        lambda data: filename_of(data.decode()),
        lambda size: b"attachment" + b"".join(b";filename*%d=%%61" % number for number in range(size // 18)),
    ),
    "name": Input(lambda data: safe_name(data.decode()), lambda size: _marks(size).encode()),
    "manifest": Input(lambda data: Manifest.from_bytes(data, message_key=message_key("AAMk")), _manifest_of),
    "report_page": Input(parse_envelope, _page),
    "id_file": Input(lambda data: len(read_ids(lambda: io.BytesIO(data))), lambda size: b"AAMkAGI2=\n" * (size // 10)),
}


def measure() -> list[Figure]:
    return [figure for name, reader in INPUTS.items() for figure in _measured(name, reader)]


def _measured(name: str, reader: Input) -> Iterator[Figure]:
    inputs = [reader.made(BASE * times) for times in TIMES]
    calls = max(1, round(LEAST / _seconds(reader, inputs[0], 1)))
    seconds = [min(_seconds(reader, data, calls) for _ in range(ROUNDS)) for data in inputs]
    peaks = [_peak(reader, data) for data in inputs]
    growth = "/".join(f"{1000 * each:.3g}" for each in seconds)
    yield Figure(
        f"inputs.{name}.time_growth",
        round(seconds[-1] / seconds[0], 2),
        "times",
        f"8 × the input; ms at {'/'.join(map(str, TIMES))} × {BASE // 1024} KiB: {growth}",
    )
    held = "/".join(f"{each / MIB:.2f}" for each in peaks)
    yield Figure(f"inputs.{name}.memory", round(peaks[-1] / MIB, 2), "MiB", f"for 8 × {BASE // 1024} KiB; MiB: {held}")


def _seconds(reader: Input, data: bytes, calls: int) -> float:
    """For one call, of so many."""
    began = time.process_time()
    for _ in range(calls):
        reader.read(data)
    return (time.process_time() - began) / calls


def _peak(reader: Input, data: bytes) -> int:
    tracemalloc.start()
    try:
        reader.read(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
