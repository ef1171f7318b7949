"""Which spans of time are looked at, and how far a mark may move."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from attachments.emailgistics import Mailbox
from attachments.reconciling import HELD_FOR, SLICE, Slice, Span, may_pass, moved, span
from flows.reconcile_attachments import Found, _chosen

NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
USUAL = {"overlap": 2 * HOUR, "settling": timedelta(minutes=10), "first": 3 * DAY}


def test_the_first_time_some_days_are_looked_at() -> None:
    """From three days ago until what has settled."""
    assert span(None, NOW, **USUAL) == Span(NOW - 3 * DAY, NOW - timedelta(minutes=10))


def test_later_it_goes_on_a_little_before_the_mark() -> None:
    """A report may lag behind: two hours are looked at twice."""
    assert span(NOW - HOUR, NOW, **USUAL).start == NOW - 3 * HOUR


@pytest.mark.parametrize("ahead", [timedelta(seconds=1), HOUR, 400 * DAY])
def test_a_mark_in_the_future_counts_for_nothing(ahead: timedelta) -> None:
    """A clock was wrong: it must not blind it for ever, and nobody knows what was looked at meanwhile."""
    assert span(NOW + ahead, NOW, **USUAL) == span(None, NOW, **USUAL)


def test_a_clock_that_falls_behind_looks_at_what_was_looked_at() -> None:
    """The mark is younger than what has settled: the span ends where it must, and is no negative one."""
    found = span(NOW - timedelta(minutes=5), NOW, **USUAL)
    assert found == Span(NOW - timedelta(minutes=10) - 2 * HOUR, NOW - timedelta(minutes=10))


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


@pytest.mark.parametrize(
    ("became", "is_held", "is_away"),
    [
        (Slice(), False, False),
        (Slice(stored=50), False, False),
        (Slice(lost=50), False, False),  # all of them deleted
        (Slice(failed=2), True, False),  # two bad messages of a quiet mailbox
        (Slice(failed=3), True, True),
        (Slice(elsewhere=50), True, False),  # nobody knows yet how that ends, and nothing has failed
        (Slice(stored=25, failed=25), True, False),
        (Slice(stored=24, failed=26, lost=9), True, True),
    ],
)
def test_when_most_fail_the_vendor_or_the_store_is_away(became: Slice, is_held: bool, is_away: bool) -> None:
    """To go on from slice to slice would then pass over all of them; what is gone for good says nothing of it."""
    assert (became.is_held, became.is_away) == (is_held, is_away)


def test_a_slice_is_passed_over_after_some_days() -> None:
    """Whatever is the matter with it: what comes later must not wait for ever."""
    assert not may_pass(NOW - HELD_FOR + timedelta(seconds=1), NOW)
    assert may_pass(NOW - HELD_FOR, NOW)


def test_the_mailboxes_that_are_meant() -> None:
    """All active ones, also when a form sends an empty list; or by address or id, each once, however it is written."""
    known = [
        Mailbox(id="1", address="Claims@example.com"),
        Mailbox(id="2", address="old@example.com", active=False),
        Mailbox(id="3", address=""),
    ]
    for nothing in (None, []):
        assert [box.id for box in _chosen(known, nothing, Found())] == ["1", "3"]
    found = Found()
    chosen = _chosen(known, ["claims@EXAMPLE.com ", "1", "2", "", "nobody@example.com"], found)
    assert [box.id for box in chosen] == ["1", "2"]
    assert list(found.broken) == ["number 4 of mailboxes", "number 5 of mailboxes"]
    assert "nobody" not in str(found.broken)


def test_a_key_that_sees_no_mailbox_is_no_success() -> None:
    """Nothing would be watched, and nobody would know."""
    found = Found()
    assert _chosen([Mailbox(id="2", address="old@example.com", active=False)], None, found) == []
    assert "no active mailbox" in found.broken["all"]
