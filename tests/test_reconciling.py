"""Which spans of time are looked at, and how far a mark may move."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from attachments.reconciling import HELD_FOR, SLICE, Span, moved, span

NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
USUAL = {"overlap": 2 * HOUR, "settling": timedelta(minutes=10), "first": 3 * DAY}


def test_the_first_time_some_days_are_looked_at() -> None:
    """From three days ago until what has settled."""
    assert span(None, NOW, **USUAL) == Span(NOW - 3 * DAY, NOW - timedelta(minutes=10))


def test_later_it_goes_on_a_little_before_the_mark() -> None:
    """A report may lag behind: two hours are looked at twice."""
    assert span(NOW - HOUR, NOW, **USUAL).start == NOW - 3 * HOUR


@pytest.mark.parametrize("ahead", [timedelta(0), HOUR, 400 * DAY])
def test_a_mark_in_the_future_counts_as_now(ahead: timedelta) -> None:
    """A clock that was wrong must not blind it for ever."""
    found = span(NOW + ahead, NOW, **USUAL)
    assert found.end == NOW - timedelta(minutes=10)
    assert found.start == found.end - 2 * HOUR


def test_without_an_overlap_nothing_is_left_between_two() -> None:
    """The next begins where the last one ended."""
    one = span(None, NOW, **{**USUAL, "overlap": timedelta(0)})
    two = span(one.end, NOW + HOUR, **{**USUAL, "overlap": timedelta(0)})
    assert two.start == one.end


def test_a_long_absence_is_caught_up_with_in_slices() -> None:
    """Three weeks: a day each, the oldest first, without a gap."""
    found = span(NOW - 21 * DAY, NOW, **USUAL)
    slices = list(found.slices())
    assert slices[0].start == found.start
    assert slices[-1].end == found.end
    assert all(a.end == b.start for a, b in itertools.pairwise(slices))
    assert max(piece.end - piece.start for piece in slices) == SLICE
    assert list(Span(NOW, NOW).slices()) == []


def test_what_cannot_be_fetched_yet_holds_the_mark_for_some_days() -> None:
    """Where its slice began, and no further behind than that: one message must not hold it for ever."""
    assert moved(NOW, None) == NOW
    assert moved(NOW, NOW - HOUR) == NOW - HOUR
    assert moved(NOW, NOW - 30 * DAY) == NOW - HELD_FOR
    assert moved(NOW, NOW + HOUR) == NOW
