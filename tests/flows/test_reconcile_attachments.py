"""Which time spans are checked, and what holds back a watermark."""

import itertools
import json
import logging
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from attachments.domain.progress import Counts
from attachments.domain.watermark_policy import HELD_FOR, SLICE, SliceResult, Span, span_to_check
from attachments.emailgistics import Mailbox, ReceivedMessage, ReportFailed
from attachments.flows import reconcile_attachments
from attachments.flows.reconcile_attachments import ReconcileResult, _chosen
from attachments.runs import watermarks as marking
from attachments.runs.child_runs import Child, Stage
from attachments.runs.errors import Starved
from attachments.runs.fan_out import FanOutCancelled
from attachments.runs.state_record import WITHDRAWN
from attachments.runs.watermarks import UnreadableWatermark, Watermarks

NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MINE = frozenset({"reconcile:mine"})
USUAL = {"overlap": 2 * HOUR, "settling": timedelta(minutes=10), "first": 3 * DAY}


def test_the_first_time_some_days_are_looked_at() -> None:
    """From three days ago until what has settled."""
    assert span_to_check(None, NOW, **USUAL) == Span(NOW - 3 * DAY, NOW - timedelta(minutes=10))


def test_later_it_goes_on_a_little_before_the_mark() -> None:
    """A report may lag behind: two hours are looked at twice."""
    assert span_to_check(NOW - HOUR, NOW, **USUAL).start == NOW - 3 * HOUR


@pytest.mark.parametrize("ahead", [timedelta(seconds=1), HOUR, 400 * DAY])
def test_a_mark_in_the_future_counts_for_nothing(ahead: timedelta) -> None:
    """A clock was wrong: it must not blind it for ever, and nobody knows what was looked at meanwhile."""
    assert span_to_check(NOW + ahead, NOW, **USUAL) == span_to_check(None, NOW, **USUAL)


def test_a_clock_that_falls_behind_looks_at_what_was_looked_at() -> None:
    """The mark is younger than what has settled: the span ends where it must, and is no negative one."""
    found = span_to_check(NOW - timedelta(minutes=5), NOW, **USUAL)
    assert found == Span(NOW - timedelta(minutes=10) - 2 * HOUR, NOW - timedelta(minutes=10))


def test_a_span_is_of_whole_seconds() -> None:
    """Reports are: each day would be a report and another one of a second."""
    found = span_to_check(NOW - DAY + timedelta(microseconds=7), NOW + timedelta(microseconds=3), **USUAL)
    assert {found.start.microsecond, found.end.microsecond} == {0}


def test_without_an_overlap_nothing_is_left_between_two() -> None:
    """The next begins where the last one ended."""
    one = span_to_check(None, NOW, **{**USUAL, "overlap": timedelta(0)})
    two = span_to_check(one.end, NOW + HOUR, **{**USUAL, "overlap": timedelta(0)})
    assert two.start == one.end


def test_a_long_absence_is_caught_up_with_in_slices() -> None:
    """Three weeks: a day each, the oldest first, without a gap."""
    found = span_to_check(NOW - 21 * DAY, NOW, **USUAL)
    slices = list(found.slices())
    assert slices[0].start == found.start
    assert slices[-1].end == found.end
    assert all(a.end == b.start for a, b in itertools.pairwise(slices))
    assert max(piece.end - piece.start for piece in slices) == SLICE
    assert list(Span(NOW, NOW).slices()) == []


@pytest.mark.parametrize(
    ("result", "has_failed"),
    [
        (SliceResult(), False),
        (SliceResult(stored=50), False),
        (SliceResult(held=50), False),  # failed before, or left to others: it says nothing about now
        (SliceResult(failed=2, held=2), False),  # two bad messages of a quiet mailbox
        (SliceResult(failed=3, held=3), True),
        (SliceResult(stored=25, failed=25, held=25), False),
        (SliceResult(stored=24, failed=26, held=26), True),
        (SliceResult(expired=50), False),
    ],
)
def test_when_most_fail_the_vendor_or_the_store_is_unavailable(result: SliceResult, has_failed: bool) -> None:
    """Otherwise all of them would be passed, slice by slice."""
    assert result.has_failed is has_failed


@pytest.mark.parametrize(
    ("age", "has_failed_now", "expected"),
    [
        (None, True, SliceResult(failed=1, held=1)),
        (None, False, SliceResult(held=1)),
        (timedelta(0), True, SliceResult(failed=1, held=1)),
        (HELD_FOR - timedelta(seconds=1), False, SliceResult(held=1)),
        (HELD_FOR, True, SliceResult(expired=1)),
        (HELD_FOR, False, SliceResult(expired=1)),
    ],
)
def test_a_message_holds_for_four_days_from_its_first_attempt(
    age: timedelta | None, has_failed_now: bool, expected: SliceResult
) -> None:
    """An attempt that fails after that says nothing about vendor and store, or it would hold back the mailbox again."""
    result = SliceResult()
    result.add_missing(None if age is None else NOW - age, NOW, has_failed_now=has_failed_now)
    assert result == expected


class Clock(datetime):
    """Stands still."""

    time = NOW

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """The time that a test has set."""
        return cls.time.astimezone(tz)


class Variables:
    """Prefect's Variables, as far as marks need them."""

    def __init__(self) -> None:
        self.value: Any = None

    def read_variable_by_name(self, _: str) -> Any:
        """The only one."""
        return None if self.value is None else SimpleNamespace(value=self.value)

    def create_variable(self, variable: Any) -> None:
        """The same whether it is new or not."""
        self.value = json.loads(json.dumps(variable.value))
        assert len(json.dumps(self.value)) < 5000, "Prefect takes no more"


class OneMailbox:
    """A mailbox in which some messages cannot be fetched, and how it is reconciled, with the time that passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: timedelta) -> None:
        self.bad: list[datetime] = []
        self.first: dict[datetime, datetime] = {}
        """When each bad message was attempted for the first time, as Prefect's runs tell."""
        self.tried: dict[datetime, datetime] = {}
        """And the last time."""
        self.looked: list[Span] = []
        self.reports_fail = False
        self.lag = timedelta(0)
        self.unnamed: list[str] = []
        self.variables = Variables()
        self.marks = Watermarks(cast("Any", self.variables), "default", "default")
        self.shown: list[int] = []
        monkeypatch.setattr(reconcile_attachments, "datetime", Clock)
        monkeypatch.setattr(marking, "datetime", Clock)
        monkeypatch.setattr(reconcile_attachments, "retry_until_available", lambda ask: ask())
        monkeypatch.setattr(reconcile_attachments, "own_client", lambda _: nullcontext(self.variables))
        monkeypatch.setattr(reconcile_attachments, "_show", lambda _, found: self.shown.append(found.unnamed_rows))
        monkeypatch.setattr(reconcile_attachments, "get_run_logger", lambda: logging.getLogger("test"))
        monkeypatch.setattr(reconcile_attachments, "_fetch", lambda _, rows, __, ___: self._fetched(rows))
        client = SimpleNamespace(received_messages=self._report)
        account = SimpleNamespace(client=lambda: client)
        target = SimpleNamespace(account=account, account_name="default", name="default")
        self.wish = SimpleNamespace(target=target, **{**USUAL, **options})

    @property
    def mark(self) -> datetime:
        mark = self.marks.read("key")
        assert mark is not None
        return mark.until

    def reconcile(self, at: datetime, *, dies: bool = False) -> ReconcileResult:
        """Once, at that time. If it dies, then before it has reported what it found."""
        Clock.time = at
        found = ReconcileResult()
        reconcile_attachments._check(Mailbox(id="1", address="a@b.c"), "key", cast("Any", self.wish), self.marks, found)
        if not dies:
            reconcile_attachments._report_rows(cast("Any", self.wish), (), found)
        return found

    def reconcile_hourly(self, begin: datetime, end: datetime) -> None:
        """As the schedule does."""
        while begin < end:
            self.reconcile(begin)
            begin += HOUR

    def _report(self, _: str, start: datetime, end: datetime, **__: Any) -> Any:
        if self.reports_fail:
            raise ReportFailed("no report")
        covered = min(end, Clock.time - self.lag)
        return SimpleNamespace(span=Span(start, end), covered_until=covered, unnamed=self.unnamed)

    def _fetched(self, rows: Any) -> SliceResult:
        self.looked.append(rows.span)
        result = SliceResult()
        for message in self.bad:
            if rows.span.start <= message < rows.span.end:
                is_tried = message not in self.tried or Clock.time - self.tried[message] >= DAY
                result.add_missing(self.first.get(message), Clock.time, has_failed_now=is_tried)
                if is_tried:
                    self.tried[message] = Clock.time
                    self.first.setdefault(message, Clock.time)
        return result


def test_what_cannot_be_fetched_holds_the_mark_for_four_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer, also where most of the day behind it cannot be fetched either."""
    box = OneMailbox(monkeypatch)
    box.bad = [NOW - 60 * HOUR, *[NOW - 30 * HOUR] * 3]
    box.reconcile_hourly(NOW, NOW + HELD_FOR - 6 * HOUR)
    assert box.mark <= box.bad[0]
    box.reconcile_hourly(NOW + HELD_FOR - 6 * HOUR, NOW + HELD_FOR + 2 * DAY)
    assert box.mark > NOW + HELD_FOR + 2 * DAY - 2 * HOUR


def test_a_day_on_which_most_fails_is_not_passed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The days after it wait for the next time: the store may be away."""
    box = OneMailbox(monkeypatch)
    box.bad = [NOW - 60 * HOUR + timedelta(minutes=minute) for minute in range(4)]
    found = box.reconcile(NOW)
    assert box.looked == [Span(NOW - 3 * DAY, NOW - 2 * DAY)]
    assert "4 of its messages could not be fetched, and 0 could: its watermark stays" in found.incomplete["key"]
    assert box.mark == NOW - 3 * DAY
    found = box.reconcile(NOW + HOUR)  # what failed an hour ago says nothing of now
    assert found.incomplete == {}
    assert box.looked[-1].end > NOW
    assert box.mark == NOW - 3 * DAY


@pytest.mark.parametrize("overlap", [2 * HOUR, 2 * DAY])
def test_a_few_bad_messages_a_day_do_not_hold_it_ever_further_back(
    monkeypatch: pytest.MonkeyPatch, overlap: timedelta
) -> None:
    """It stays four to five days behind, and what comes meanwhile is checked within hours."""
    box = OneMailbox(monkeypatch, overlap=overlap)
    box.bad = [NOW + day * DAY + timedelta(minutes=minute) for day in range(-3, 30) for minute in range(3)]
    box.reconcile_hourly(NOW, NOW + 30 * DAY)
    assert NOW + 30 * DAY - box.mark < HELD_FOR + SLICE
    assert all(
        box.tried[message] - message > HELD_FOR - DAY - 6 * HOUR for message in box.bad if message < NOW + 25 * DAY
    )
    first_tried = OneMailbox(monkeypatch, overlap=overlap)
    first_tried.bad = box.bad
    first_tried.reconcile_hourly(NOW, NOW + 10 * DAY)
    latest = max(message for message in box.bad if message < NOW + 9 * DAY)
    assert latest in first_tried.tried


def test_after_a_long_absence_each_has_its_four_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weeks are caught up with in one go; what fails then is as old as that, and is tried again all the same."""
    box = OneMailbox(monkeypatch)
    box.reconcile(NOW)
    box.bad = [NOW + 1.5 * DAY]
    back = NOW + 14 * DAY
    box.reconcile_hourly(back, back + HELD_FOR - 6 * HOUR)
    assert box.mark <= box.bad[0]
    assert box.tried[box.bad[0]] - back > 2 * DAY
    box.reconcile_hourly(back + HELD_FOR - 6 * HOUR, back + HELD_FOR + DAY)
    assert box.mark > back + HELD_FOR + DAY - 2 * HOUR


@pytest.mark.parametrize("bad", [1, 3])
@pytest.mark.parametrize("apart", [DAY + timedelta(minutes=10), 2 * DAY, 7 * DAY])
def test_a_reconciliation_now_and_then_passes_on_as_well(
    monkeypatch: pytest.MonkeyPatch, bad: int, apart: timedelta
) -> None:
    """Each time has a new try of what failed before, and it fails again; what lies behind it must be looked at."""
    box = OneMailbox(monkeypatch)
    box.bad = [NOW - DAY + timedelta(minutes=minute) for minute in range(bad)]
    for time in range(12):
        box.reconcile(NOW + time * apart)
    assert box.mark > NOW + 11 * apart - DAY


@pytest.mark.parametrize("overlap", [2 * HOUR, 7 * DAY])
def test_what_is_let_go_is_reported_once_or_twice(monkeypatch: pytest.MonkeyPatch, overlap: timedelta) -> None:
    """It fails the run, so that somebody hears of it; the same again each hour nobody would read."""
    box = OneMailbox(monkeypatch, overlap=overlap)
    box.bad = [NOW - DAY]
    reported = [bool(box.reconcile(NOW + hour * HOUR).expired_holds) for hour in range(14 * 24)]
    assert 1 <= sum(reported) <= 2
    assert box.mark > NOW + 13 * DAY


def test_a_mark_in_the_future_is_put_right_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time would else catch up with it while reports fail, and nobody would look at what lies between."""
    box = OneMailbox(monkeypatch)
    box.reconcile(NOW + 12 * HOUR)
    box.reports_fail = True
    with pytest.raises(ReportFailed):
        box.reconcile(NOW)
    box.reports_fail = False
    box.looked.clear()
    box.reconcile(NOW + 13 * HOUR)
    assert box.looked[0].start < NOW - 2 * DAY


def test_a_new_mailbox_whose_reports_fail_begins_where_it_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first days would else move on with the time, and nobody would look at what they leave behind."""
    box = OneMailbox(monkeypatch)
    box.reports_fail = True
    for hours in range(30):
        with pytest.raises(ReportFailed):
            box.reconcile(NOW + hours * HOUR)
    box.reports_fail = False
    box.reconcile(NOW + 30 * HOUR)
    assert box.looked[0].start <= NOW - 3 * DAY


def test_rows_that_name_no_message_are_reported_and_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can fetch what they stand for, so somebody has to know."""
    box = OneMailbox(monkeypatch)
    box.reconcile(NOW)
    box.unnamed = ["row 1", "row 2"]
    found = box.reconcile(NOW + HOUR)
    assert (found.unnamed_rows, box.mark > NOW) == (2, True)
    monkeypatch.setattr(reconcile_attachments, "_read_created_runs", lambda *_: [])
    ended = reconcile_attachments._final_state(cast("Any", box.wish), found, None)
    assert ended.is_failed()
    assert "2 rows of the reports name no message" in (ended.message or "")


@pytest.mark.parametrize("unnamed", [0, 2])
@pytest.mark.parametrize("error", [Starved(3, "pool"), FanOutCancelled("It was cancelled.")])
def test_rows_that_name_no_message_are_reported_by_a_reconciliation_that_breaks_off(
    monkeypatch: pytest.MonkeyPatch, error: Exception, unnamed: int
) -> None:
    """Its watermark knows them already, so the next reconciliation would not report them."""
    options = cast("Any", SimpleNamespace(tag="reconcile:x", target=SimpleNamespace(name="default")))
    reported: list[int] = []

    def check(_: Any, __: Any, found: ReconcileResult) -> None:
        found.unnamed_rows = unnamed
        raise error

    monkeypatch.setattr(reconcile_attachments, "flow_boundary", nullcontext)
    monkeypatch.setattr(reconcile_attachments, "announce", lambda *_, **__: None)
    monkeypatch.setattr(reconcile_attachments, "_read_created_runs", lambda *_: [])
    monkeypatch.setattr(reconcile_attachments, "_check_all", check)
    monkeypatch.setattr(reconcile_attachments, "_report_rows", lambda _, __, found: reported.append(found.unnamed_rows))
    state = reconcile_attachments._reconcile(options, None)
    assert (state.is_failed(), state.is_cancelled()) == (isinstance(error, Starved), isinstance(error, FanOutCancelled))
    assert str(error) in (state.message or "")
    assert ("2 rows of the reports name no message" in (state.message or "")) is (unnamed > 0)
    assert reported == [unnamed]


def test_a_mark_remembers_the_newest_of_the_rows_that_name_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are the first to leave the overlap, so it is them that it may forget."""
    box = OneMailbox(monkeypatch, overlap=2 * DAY)
    box.reconcile(NOW)
    box.unnamed = [f"{row:08x}" for row in range(150)]
    assert box.reconcile(NOW + HOUR).unnamed_rows == 150
    box.unnamed = box.unnamed[50:]
    assert box.reconcile(NOW + 2 * HOUR).unnamed_rows == 0


def test_a_row_that_names_no_message_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the overlap for hours, or for days where something holds the mark; another one is reported again."""
    box = OneMailbox(monkeypatch, overlap=2 * DAY)
    box.bad = [NOW]
    box.unnamed = ["row 1"]
    assert [box.reconcile(NOW + hour * HOUR).unnamed_rows for hour in range(100)] == [1] + 99 * [0]
    box.unnamed = ["row 1", "row 2"]
    assert [box.reconcile(NOW + hour * HOUR).unnamed_rows for hour in range(100, 110)] == [1] + 9 * [0]
    box.unnamed = [f"{row:08x}" for row in range(1000)]  # a report that is broken throughout still fits into the mark
    assert box.reconcile(NOW + 110 * HOUR).unnamed_rows == 1000


def test_a_row_that_names_no_message_is_reported_by_the_next_reconciliation_if_one_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mark has moved on, and remembers that it was not reported; it forgets that once the table shows the row."""
    box = OneMailbox(monkeypatch)
    box.reconcile(NOW)
    box.unnamed = ["row 1", "row 2"]
    assert box.reconcile(NOW + HOUR, dies=True).unnamed_rows == 2
    assert box.shown == []
    assert box.reconcile(NOW + 2 * HOUR, dies=True).unnamed_rows == 2
    box.unnamed = ["row 1", "row 2", "row 3"]
    assert box.reconcile(NOW + 30 * HOUR).unnamed_rows == 3
    assert box.shown == [3]
    assert [box.reconcile(NOW + hour * HOUR).unnamed_rows for hour in range(31, 35)] == 4 * [0]
    assert box.shown == [3]


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        (Child(uuid4(), Stage.SUCCEEDED, tags=MINE), SliceResult(stored=1)),
        (Child(uuid4(), Stage.FAILED, "timeout", MINE), SliceResult(failed=1, held=1)),
        (Child(uuid4(), Stage.RETRY_SCHEDULED, tags=MINE), SliceResult(failed=1, held=1)),
        (Child(None, Stage.FAILED, "refused"), SliceResult(failed=1, held=1)),
        (Child(uuid4(), Stage.FAILED, "timeout"), SliceResult(held=1)),  # another's, earlier
        (Child(uuid4(), Stage.WAITING), SliceResult(held=1)),  # left to another run
        (Child(uuid4(), Stage.FAILED, "not-found", MINE), SliceResult()),
        (Child(uuid4(), Stage.CANCELLED), SliceResult()),  # a person has decided against it
        (Child(uuid4(), Stage.CANCELLED, WITHDRAWN), SliceResult(held=1)),  # nobody has: its parent run was cancelled
    ],
)
def test_what_holds_back_a_watermark(monkeypatch: pytest.MonkeyPatch, child: Child, expected: SliceResult) -> None:
    """What may still be stored; and what failed just now says something about vendor and store."""

    def run(messages: Any, *_: Any, on_result: Any, **__: Any) -> Counts:
        for message in messages:
            on_result(message, child)
        return Counts(seen=1)

    monkeypatch.setattr(reconcile_attachments, "run_children", run)
    options = cast("Any", SimpleNamespace(target=SimpleNamespace(deployment_id=uuid4()), tag="reconcile:mine"))
    box = Mailbox(id="1", address="a@b.c")
    assert reconcile_attachments._fetch(box, [ReceivedMessage("id", NOW)], options, ReconcileResult()) == expected


@pytest.mark.parametrize(("lag", "is_broken"), [(14 * HOUR, False), (37 * HOUR, False), (39 * HOUR, True)])
def test_a_cut_off_of_some_hours_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, lag: timedelta, is_broken: bool
) -> None:
    """After a pause its end may lie in the last but one day; the mark moves up to it."""
    box = OneMailbox(monkeypatch)
    box.lag = lag
    now = NOW
    for pause in (HOUR, 12 * HOUR, 2 * DAY):
        now += pause
        assert bool(box.reconcile(now).incomplete) is is_broken
        assert box.mark == now - lag


@pytest.mark.parametrize("value", ["yesterday", {}, {"until": "2026-06-31"}, 7, []])
def test_a_mark_that_cannot_be_read_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    """As if there were none, the time since would be passed over, and the last trace of it written over."""
    box = OneMailbox(monkeypatch)
    box.variables.value = value
    with pytest.raises(
        UnreadableWatermark, match=r"the Prefect Variable attachments-mark-[0-9a-f]{32}, its watermark, cannot"
    ):
        box.reconcile(NOW)
    assert box.variables.value == value
    assert box.looked == []
    box.variables.value = {"until": NOW.isoformat()}  # put right by hand, with no more than the message says
    box.reconcile(NOW + HOUR)
    assert box.mark > NOW


def test_the_mailboxes_that_are_meant() -> None:
    """All active ones, also when a form sends an empty list; or by address or id, each once, however it is written."""
    known = [
        Mailbox(id="1", address="Claims@example.com"),
        Mailbox(id="2", address="old@example.com", active=False),
        Mailbox(id="3", address=""),
    ]
    for nothing in (None, []):
        assert [box.id for box in _chosen(known, nothing, ReconcileResult())] == ["1", "3"]
    found = ReconcileResult()
    chosen = _chosen(known, ["claims@EXAMPLE.com ", "1", "2", "", "nobody@example.com"], found)
    assert [box.id for box in chosen] == ["1", "2"]
    assert list(found.incomplete) == ["number 4 of mailboxes", "number 5 of mailboxes"]
    assert "nobody" not in str(found.incomplete)


def test_a_key_that_sees_no_mailbox_is_no_success() -> None:
    """Nothing would be watched, and nobody would know."""
    found = ReconcileResult()
    assert _chosen([Mailbox(id="2", address="old@example.com", active=False)], None, found) == []
    assert "no active mailbox" in found.incomplete["all"]
