"""What a backfill is asked to do, checked before anything is done; and how far it is."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from attachments.domain.backfill_request import IdFile, IdList, InvalidRequest, Window, checked_order, moment
from attachments.domain.message_ids_source import ALLOWED_FOLDERS_VARIABLE
from attachments.domain.progress import Counts, RateEstimator, Tally
from attachments.flows.backfill_attachments import _messages
from attachments.runs.fan_out import DownloadDeployment

NOTHING: Mapping[str, None] = dict.fromkeys(("message_ids", "ids_url", "ids_block", "mailbox", "start", "end"))
SPAN = {"mailbox": "claims@example.com", "start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00+01:00"}


def test_each_way_is_taken_alone() -> None:
    """A list, a file, or a mailbox and a span of time; what a form sends for emptied fields is nothing."""
    emptied = {**dict.fromkeys(NOTHING, ""), "message_ids": []}
    assert checked_order(**{**emptied, "message_ids": [" a ", "b"]}) == IdList(("a", "b"))
    assert checked_order(**{**emptied, "ids_url": " s3://b/ids ", "ids_block": "mine"}) == IdFile("s3://b/ids", "mine")
    window = checked_order(**{**emptied, **SPAN})
    assert isinstance(window, Window)
    assert window.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert window.end == datetime(2026, 1, 31, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Set one of message_ids, ids_url, and mailbox with start and end. None of them is set."),
        ({"message_ids": ["a"], "ids_url": "x"}, "message_ids and ids_url are set"),
        ({"ids_url": "x", **SPAN}, "ids_url and mailbox (with start and end) are set"),
        ({"message_ids": ["a"], "ids_block": "x"}, "Remove it, or set ids_url"),
        ({"message_ids": ["a"], "start": "2026-01-01T00:00:00Z"}, "start and end belong to mailbox"),
        ({"mailbox": "a", "end": SPAN["end"]}, "start is missing. Write a date and time with its zone"),
        ({"mailbox": "a", "start": SPAN["start"]}, "end is missing"),
        ({**SPAN, "start": "2026-01-01"}, "start is a date without a time. Write date and time with the zone: 2026-"),
        ({**SPAN, "end": "20260101"}, "end is a date without a time"),
        ({**SPAN, "end": "2026-02-01T00:00:00"}, "end has no zone. Add Z for UTC"),
        ({**SPAN, "start": "yesterday"}, "start is not a date and time. Write it like this: 2026-"),
        ({**SPAN, "end": SPAN["start"]}, "end is not after start. Exchange them"),
        ({**SPAN, "end": "2025-01-01T00:00:00Z"}, "end is not after start"),
        ({**SPAN, "start": "2998-01-01T00:00:00Z", "end": "2999-01-01T00:00:00Z"}, "start lies in the future"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_write(given: dict[str, object], said: str) -> None:
    """Before anything is done."""
    with pytest.raises(InvalidRequest) as caught:
        checked_order(**{**NOTHING, **given})  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_window_ends_now_at_the_latest() -> None:
    """A year that was mistyped must not start a report for each of its days."""
    before = datetime.now(UTC)
    window = checked_order(**{**NOTHING, **SPAN, "end": "9999-12-31T00:00:00Z"})  # type: ignore[arg-type]
    assert isinstance(window, Window)
    assert before <= window.end <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00Z", "2026-01-31T13:00:00.000+01:00", " 2026-01-31 12:00+00:00 "])
def test_a_moment_is_taken_in_any_zone(text: str) -> None:
    """As the picker in the UI, a script or a person writes it."""
    assert moment(text, "start") == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_a_file_is_needed_no_longer_once_it_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill takes hours; and it keeps none of the ids when it ends before the last of them."""
    monkeypatch.setenv(ALLOWED_FOLDERS_VARIABLE, tmp_path.as_uri())
    path = tmp_path / "ids.txt"
    path.write_text("messageId\na\nb\nc\n")
    target = cast("DownloadDeployment", SimpleNamespace(store=SimpleNamespace(message_id=str)))
    with _messages(IdFile(str(path)), target) as messages:
        path.write_text("another\n")
        stream = iter(messages.stream)
        assert messages.total(Counts()) == 3
        assert [next(stream).message_id, next(stream).message_id] == ["a", "b"]
    with pytest.raises(ValueError, match="closed file"):
        next(stream)


def test_every_message_is_counted_once() -> None:
    """The parts add up to what was seen, whatever has happened so far."""
    tally = Tally()
    tally.add(seen=10)
    assert tally.counts(running=3) == Counts(seen=10, waiting=7, running=3)
    tally.add(succeeded=4, already_done=1, duplicates=1)
    tally.add(retry_scheduled=1)
    tally.add_failed("not-found")
    counts = tally.counts(running=5)
    assert (counts.ended, counts.running, counts.waiting) == (8, 2, 0)
    assert not counts.is_success
    assert str(counts) == (
        "Of 10 messages 4 done now, 1 done before, 1 named twice, 1 failed (not-found 1), "
        "1 failed for now, to be tried again automatically, 2 not finished"
    )


def test_the_end_is_estimated_from_the_pace_of_late() -> None:
    """Slow at first and quick of late: what was long ago does not count."""
    pace, today = RateEstimator(), datetime(2026, 1, 1, tzinfo=UTC)
    assert pace.estimate(Counts(), 1000, 0, today).per_minute is None
    for second in range(10, 610, 10):
        ended = 0 if second <= 300 else second - 300  # one a second for the last five minutes
        estimate = pace.estimate(Counts(seen=ended, succeeded=ended), 1000, second, today)
    assert estimate.per_minute == pytest.approx(60)
    assert estimate.share == pytest.approx(0.3)
    assert estimate.end == pytest.approx(today + timedelta(seconds=700), abs=timedelta(seconds=1))


def test_no_total_is_no_estimate_and_a_low_one_is_corrected() -> None:
    """A report says in the end how much there was; a file may have grown."""
    pace = RateEstimator()
    assert pace.estimate(Counts(seen=5, succeeded=5), None, 0).end is None
    assert pace.estimate(Counts(seen=5, succeeded=5), 3, 1).share == 1
    assert pace.estimate(Counts(), 0, 2).share == 1
