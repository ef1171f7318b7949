"""Reports against the sandbox on a real socket: every row once, whatever happens on the way."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from attachments.emailgistics import (
    BadAnswer,
    ConnectionFailed,
    EmailgisticsClient,
    Forbidden,
    InvalidArgument,
    InvalidKey,
    NotFound,
    RateLimited,
    ReportFailed,
    ServerError,
    StrayLink,
)
from attachments.emailgistics.envelopes import parse_envelope
from attachments.emailgistics.mailboxes import parse_mailboxes
from attachments.emailgistics.models import ID_CHARACTERS, WORD_CHARACTERS
from attachments.emailgistics.paced_calls import Pacer
from attachments.emailgistics.reports import AGAINS, STARTS, ReportLimits
from attachments.foundation import cancellation
from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.sandbox.process import Sandbox, running_sandbox

from .raw_server import RawServer, Script, head, ok, reset, sent

START = datetime(2026, 3, 1, tzinfo=UTC)
MAILBOX = "invoices@example.com"
DAY = timedelta(days=1)
Clock = Callable[[str], float]


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Sandbox]:
    with running_sandbox(limit=None) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(stand_in: Sandbox) -> Sandbox:
    """Without messages, faults and log; reports are made at once."""
    for path in ("messages", "faults", "requests"):
        stand_in.control.delete(path).raise_for_status()
    stand_in.control.settings(limit=None, reset_reports=True, keys=[{"key": stand_in.key}])
    return stand_in


QUICK = ReportLimits(
    first_look=0.002,
    longest_look=0.06,
    patience=200.0,
    slot_pause=0.06,
    longest_slot_pause=0.3,
    slot_patience=200.0,
    start_pause=0.06,
    trouble_pause=0.002,
    limit_pause=0.06,
)
"""Pauses of a thousandth of what they are."""


def quick(url: str, key: str = "key", *, pacer: Pacer | None = None, **limits: float) -> EmailgisticsClient:
    """A client that waits for a thousandth of the time, with these of its limits otherwise."""
    return EmailgisticsClient(url, key, pacer=pacer, report_limits=replace(QUICK, **limits))


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[EmailgisticsClient]:
    with quick(sandbox.base_url, sandbox.key) as client:
        yield client


def received(sandbox: Sandbox, count: int, over: timedelta = DAY, mailbox: str = MAILBOX) -> list[str]:
    """So many messages without attachments, spread evenly over a span of time; their ids in that order."""
    moments = [START + over * number / count for number in range(count)]
    asked = [{"mailbox": mailbox, "received": f"{moment:%Y-%m-%dT%H:%M:%SZ}"} for moment in moments]
    return [message["id"] for message in sandbox.control.add_messages(asked, digests=False)]


def mailbox_id(client: EmailgisticsClient, address: str = MAILBOX) -> str:
    return next(mailbox.id for mailbox in client.mailboxes() if mailbox.address == address)


def read(client: EmailgisticsClient, over: timedelta = DAY, **how: Any) -> list[str]:
    return [row.message_id for row in client.received_messages(mailbox_id(client), START, START + over, **how)]


def test_mailboxes_are_named_by_id_alone(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """The address is an attribute, and is not in the text that a log would show."""
    received(sandbox, 1)
    found = next(mailbox for mailbox in client.mailboxes() if mailbox.address == MAILBOX)
    assert found.active
    assert MAILBOX not in repr(found) + str(found)
    assert found.id in repr(found)


def test_pages_of_five_hundred(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """1,234 messages of one day come in three pages of one run, each once, in the vendor's order."""
    ids = received(sandbox, 1234)
    assert read(client) == ids
    assert len(sandbox.control.requests("report")) == 1
    assert len(sandbox.control.requests("result")) == 2  # the first page comes with the start


def test_rows_stream(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """The first row is there before the second page has been asked for: memory holds one page."""
    received(sandbox, 600)
    rows = client.received_messages(mailbox_id(client), START, START + DAY)
    assert sandbox.control.requests("report") == []
    next(rows)
    assert len(sandbox.control.requests("report")) == 1
    assert sandbox.control.requests("result") == []


def test_a_long_span_is_cut_into_days(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """One run a day, one after another; what lies on the border comes once."""
    ids = received(sandbox, 40, over=10 * DAY)
    assert read(client, 10 * DAY) == ids
    starts = sandbox.control.requests("report")
    assert len(starts) == 10
    assert max(start["at"] for start in starts) > min(start["at"] for start in starts)


def test_rows_may_tell_no_more_than_is_documented(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """When a message came in is told when the row tells it, and unknown otherwise."""
    received(sandbox, 1)
    (row,) = client.received_messages(mailbox_id(client), START, START + DAY)
    assert row.received == START
    assert row.message_id not in repr(row)
    sandbox.control.settings(reports={"bare_rows": True})
    (row,) = client.received_messages(mailbox_id(client), START, START + DAY)
    assert row.received is None
    assert row.row_id == "row-1"


@pytest.mark.parametrize("shape", ["wrapped", "bare"])
def test_either_shape_of_the_body_is_found(sandbox: Sandbox, client: EmailgisticsClient, shape: str) -> None:
    """Whether the parameters are wrapped is not documented: what is refused is tried the other way, once a span."""
    ids = received(sandbox, 2, over=2 * DAY)
    sandbox.control.settings(reports={"body": shape})
    assert read(client, 2 * DAY) == ids
    assert [call["status"] for call in sandbox.control.requests("report")].count(400) == (shape == "bare")


def test_a_run_that_takes_its_time(sandbox: Sandbox) -> None:
    """It is asked after, in growing intervals, until it is done."""
    ids = received(sandbox, 3)
    sandbox.control.settings(reports={"run_seconds": 2})
    with quick(sandbox.base_url, sandbox.key, first_look=0.1, longest_look=0.5) as client:
        assert read(client) == ids
    looks = [call["at"] for call in sandbox.control.requests("result")]
    assert 4 <= len(looks) <= 9
    assert looks[-1] - looks[-2] > 2 * (looks[1] - looks[0])


@pytest.mark.soak
def test_a_run_of_a_minute(sandbox: Sandbox) -> None:
    """With the real intervals: 60 s, and no more than ten calls for it."""
    ids = received(sandbox, 3)
    sandbox.control.settings(reports={"run_seconds": 60})
    with EmailgisticsClient(sandbox.base_url, sandbox.key) as client:
        started = time.monotonic()
        assert read(client) == ids
    assert time.monotonic() - started >= 60
    assert len(sandbox.control.requests("result")) <= 10


def test_a_run_that_is_never_done_is_given_up(sandbox: Sandbox) -> None:
    """Patience ends, and no second run is begun: the first still holds one of the account's three."""
    received(sandbox, 1)
    sandbox.control.settings(reports={"run_seconds": 600})
    told: list[str] = []
    with (
        quick(sandbox.base_url, sandbox.key, patience=0.05) as client,
        pytest.raises(ReportFailed, match="not done within") as caught,
    ):
        read(client, on_wait=told.append)
    assert caught.value.retryable
    assert len(sandbox.control.requests("report")) == 1
    assert len(told) == 1
    assert "half an hour" in told[0]


def test_a_run_that_ends_in_error(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """It is restarted; if it keeps failing, the error contains the vendor's reason."""
    received(sandbox, 1)
    sandbox.control.settings(reports={"ends_in_error": True})
    told: list[str] = []
    with pytest.raises(ReportFailed, match="report_failed") as caught:
        read(client, on_wait=told.append)
    assert caught.value.retryable
    assert len(sandbox.control.requests("report")) == 1 + AGAINS
    assert len(told) == AGAINS


def test_a_result_that_expires_half_way(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """A 404 on the second page: the report is made again, and no row comes twice."""
    ids = received(sandbox, 1200)
    sandbox.control.settings(reports={"run_seconds": 0, "pages": 1})
    rows = client.received_messages(mailbox_id(client), START, START + DAY)
    first = [next(rows).message_id for _ in range(700)]
    sandbox.control.settings(reports={"pages": None})
    assert first + [row.message_id for row in rows] == ids
    assert len(sandbox.control.requests("report")) == 2


def test_a_result_that_always_expires_is_given_up(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """Bounded: it does not go round for ever."""
    received(sandbox, 600)
    sandbox.control.settings(reports={"pages": 0})
    with pytest.raises(ReportFailed, match="expired") as caught:
        read(client)
    assert caught.value.retryable, "unlike a mailbox that is not there"
    assert len(sandbox.control.requests("report")) == 1 + AGAINS


def test_a_fourth_run_waits_for_one_of_the_three(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """429 at the start: it is said, waited for, and goes on when a run is over. The fleet's calls are not paused."""
    ids = received(sandbox, 2)
    box = mailbox_id(client)
    sandbox.control.settings(reports={"run_seconds": 1.5})
    for _ in range(3):
        _start(sandbox, box)
    sandbox.control.settings(reports={"run_seconds": 0})
    pacer = CountingPacer()
    told: list[str] = []
    with quick(sandbox.base_url, sandbox.key, pacer=pacer) as paced:
        rows = paced.received_messages(box, START, START + DAY, on_wait=told.append)
        assert [row.message_id for row in rows] == ids
    assert "429" in told[0]
    assert pacer.calls >= 2
    assert pacer.refused == 0, "a 429 of the report runs stands for nothing but them"


def test_waiting_for_a_slot_ends(sandbox: Sandbox) -> None:
    """When the three are held for longer than runs last, somebody has to know."""
    received(sandbox, 1)
    sandbox.control.settings(reports={"slots": 0})
    with quick(sandbox.base_url, sandbox.key, slot_patience=0.3) as client, pytest.raises(RateLimited):
        read(client)


def test_a_429_to_a_page_is_the_fleets(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """Every other call counts against the 100 a minute alone."""
    ids = received(sandbox, 600)
    sandbox.control.fault(endpoint="result", times=1, fault={"kind": "status", "status": 429})
    pacer = CountingPacer()
    with quick(sandbox.base_url, sandbox.key, pacer=pacer) as paced:
        assert [row.message_id for row in paced.received_messages(mailbox_id(paced), START, START + DAY)] == ids
    assert pacer.refused == 1


def test_a_start_that_fails_may_have_begun_a_run(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """A 500 although the run was begun: a second one is started after a pause, never more than two more."""
    ids = received(sandbox, 2)
    sandbox.control.fault(endpoint="report", times=1, fault={"kind": "status", "status": 500})
    assert read(client) == ids
    assert len(sandbox.control.requests("report")) == 2
    sandbox.control.clear_requests()
    sandbox.control.fault(endpoint="report", times=None, fault={"kind": "status", "status": 500})
    with pytest.raises(ServerError):
        read(client)
    assert len(sandbox.control.requests("report")) == STARTS


def test_a_cut_page_is_read_again(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """A page that ends early is no shorter page."""
    ids = received(sandbox, 1200)
    sandbox.control.fault(endpoint="result", times=2, fault={"kind": "cut", "after_fraction": 0.5})
    assert read(client) == ids


def test_what_the_data_do_not_cover_is_told(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """A watermark must not advance beyond the report's own cut-off."""
    received(sandbox, 2, over=2 * DAY)
    box = mailbox_id(client)
    rows = client.received_messages(box, START, START + 2 * DAY)
    assert len(list(rows)) == 2
    assert rows.covered_until == START + 2 * DAY
    sandbox.control.settings(reports={"cutoff": "2026-03-01T20:30:00Z"})
    rows = client.received_messages(box, START, START + 2 * DAY)
    assert len(list(rows)) == 2
    assert rows.covered_until == START + timedelta(hours=20, minutes=30)


def test_the_keys_scopes_and_mailboxes(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """403 and 404 are believed at once, and say what to look at."""
    received(sandbox, 1)
    box = mailbox_id(client)
    with pytest.raises(NotFound, match="allowlist"):
        list(client.received_messages("no-such-mailbox", START, START + DAY))
    sandbox.control.settings(keys=[{"key": sandbox.key, "scopes": ["messages:read"]}])
    with pytest.raises(Forbidden, match="reporting"):
        list(client.received_messages(box, START, START + DAY))
    with pytest.raises(Forbidden, match="reporting"):
        client.mailboxes()
    sandbox.control.settings(keys=[])
    with pytest.raises(InvalidKey):
        list(client.received_messages(box, START, START + DAY))
    assert len(sandbox.control.requests("report")) == 3


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(START.replace(tzinfo=None), START, id="no zone"),
        pytest.param(START, START - timedelta(seconds=1), id="end before start"),
        pytest.param(START, datetime.max.replace(tzinfo=UTC), id="beyond the calendar"),
    ],
)
def test_a_span_that_cannot_be(client: EmailgisticsClient, start: datetime, end: datetime) -> None:
    """Refused before anything is asked."""
    with pytest.raises(InvalidArgument):
        client.received_messages("mailbox", start, end)


def test_fractions_of_a_second_widen_the_span(sandbox: Sandbox, client: EmailgisticsClient) -> None:
    """The vendor takes whole seconds: nothing at the edges is left out."""
    ids = received(sandbox, 24)
    begin, end = START + timedelta(microseconds=1), START + timedelta(hours=1) - timedelta(microseconds=1)
    rows = client.received_messages(mailbox_id(client), begin, end)
    assert [row.message_id for row in rows] == ids[:2]


@pytest.mark.parametrize("name", ["self", "next"])
def test_the_key_goes_to_no_other_host(vendor: RawServer, client: EmailgisticsClient, name: str) -> None:
    """Links are followed as they are given, but only below the base URL; what is refused is asked once."""
    with RawServer() as thief:
        host = vendor.url.removesuffix("/api/v1")
        for link in (
            f"{thief.url}/steal",
            vendor.url.replace("http:", "https:") + "/r/1",
            vendor.url.replace("127.0.0.1", "localhost") + "/r/1",
            vendor.url.replace("//", "//someone@") + "/r/1",
            "//thief.example/x",
            "http://[bad",
            f"{host}/elsewhere",
            "/api/v10/r/1",
            "../v2/r/1",
            f"{vendor.url}/%2e%2e/admin",
            f"{vendor.url}/..%2fadmin",
            f"{vendor.url}/..%5cadmin",
        ):
            status = {"self": "running", "next": "done"}[name]
            answer = {"status": status, "result": {"data": []}, "_links": {name: {"href": link}}}
            vendor.answer(sent(ok(json.dumps(answer).encode())))
            before = vendor.connections
            with quick(vendor.url) as robbed, pytest.raises(StrayLink) as caught:
                list(robbed.received_messages("mailbox", START, START + DAY))
            assert not caught.value.retryable
            assert "thief" not in str(caught.value)
            assert vendor.connections == before + 1, link
        assert thief.connections == 0


@pytest.mark.parametrize("link", ["reports/results/1", "/api/v1/reports/results/1?starting_after=a%2F..%2Fb"])
def test_links_may_be_relative(vendor: RawServer, client: EmailgisticsClient, link: str) -> None:
    """Below the base URL; a cursor is opaque and may hold anything."""
    running = {"status": "running", "_links": {"self": {"href": link}}}
    done = {"status": "done", "result": {"data": [{"messageId": "m"}]}}
    vendor.answer(*[sent(ok(json.dumps(answer).encode())) for answer in (running, done)])
    with quick(vendor.url) as reader:
        assert [row.message_id for row in reader.received_messages("mailbox", START, START + DAY)] == ["m"]


def test_pages_that_lead_in_a_circle(vendor: RawServer, client: EmailgisticsClient) -> None:
    """It ends with an error, not never."""
    page = {"status": "done", "result": {"data": []}, "_links": {"next": {"href": "/api/v1/again"}}}
    vendor.answer(*[sent(ok(json.dumps(page).encode()), keep=True)] * 4)
    pacer = CountingPacer()
    with quick(vendor.url, pacer=pacer) as dizzy, pytest.raises(BadAnswer, match="never end"):
        list(dizzy.received_messages("mailbox", START, START + DAY))
    assert pacer.calls == 2


def test_pages_without_end(vendor: RawServer) -> None:
    """Links that are always new are no circle, and bounded all the same."""
    pages = [
        {"status": "done", "result": {"data": []}, "_links": {"next": {"href": f"r/{number}"}}} for number in range(9)
    ]
    vendor.answer(*[sent(ok(json.dumps(page).encode())) for page in pages])
    with quick(vendor.url, most_pages=5) as dizzy, pytest.raises(BadAnswer, match="never end"):
        list(dizzy.received_messages("mailbox", START, START + DAY))
    assert vendor.connections == 1 + 5


@pytest.mark.parametrize(("broken", "error"), [(reset(b""), ConnectionFailed), (sent(ok(b"<html>")), BadAnswer)])
def test_a_start_that_breaks_is_tried_a_bounded_number_of_times(
    vendor: RawServer, client: EmailgisticsClient, broken: Script, error: type[Exception]
) -> None:
    """It may have begun a run: each try waits, and the third is the last."""
    told: list[str] = []
    vendor.answer(*[broken] * 9)
    with quick(vendor.url) as unlucky, pytest.raises(error):
        list(unlucky.received_messages("mailbox", START, START + DAY, on_wait=told.append))
    assert vendor.connections == STARTS
    assert len(told) == STARTS - 1


def test_a_429_to_a_page_waits_a_minute(sandbox: Sandbox) -> None:
    """Also where no pacer makes it wait, and however short the wait after other troubles is."""
    ids = received(sandbox, 600)
    sandbox.control.fault(endpoint="result", times=1, fault={"kind": "status", "status": 429})
    with quick(sandbox.base_url, sandbox.key, limit_pause=0.7) as client:
        assert read(client) == ids
    first, second = [call["at"] for call in sandbox.control.requests("result")]
    assert second - first >= 0.7


def test_rows_that_were_passed_over_are_told_once(
    vendor: RawServer, client: EmailgisticsClient, caplog: pytest.LogCaptureFixture
) -> None:
    """By their number alone."""
    rows = [{"id": "row-secret"}, {"messageId": "m"}, None]
    vendor.answer(sent(ok(json.dumps({"status": "done", "result": {"data": rows}}).encode())))
    with quick(vendor.url) as reader:
        assert len(list(reader.received_messages("mailbox", START, START + DAY))) == 1
    (record,) = [record for record in caplog.records if "passed over" in record.message]
    assert record.message.startswith("2 rows")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted"])
def test_any_success_that_begins_a_report_is_one(vendor: RawServer, client: EmailgisticsClient, status: str) -> None:
    """Which one it is, is not documented; another start would take another of the account's three runs."""
    body = json.dumps({"status": "done", "result": {"data": [{"messageId": "m"}]}}).encode()
    # It answers each connection once, so a second call must not find the first one's in the pool.
    vendor.answer(sent(head(f"Content-Length: {len(body)}", "Connection: close", status=status) + body))
    with quick(vendor.url) as reader:
        assert len(list(reader.received_messages("mailbox", START, START + DAY))) == 1
        with pytest.raises(BadAnswer):
            reader.mailboxes()


@pytest.mark.parametrize(
    ("listed", "is_active"),
    [({"mailboxId": 12}, True), ({"active": None}, True), ({"active": "archived"}, True), ({"active": False}, False)],
)
def test_an_odd_mailbox_does_not_hide_the_others(listed: dict[str, object], is_active: bool) -> None:
    """The types of these fields are not documented."""
    usual = {"mailboxId": "12", "mailboxEmail": "a@example.com", "active": True}
    odd, other = parse_mailboxes(json.dumps({"mailboxes": [{**usual, **listed}, {"mailboxId": "b"}]}).encode())
    assert (odd.id, odd.active, other.id) == ("12", is_active, "b")


@pytest.mark.parametrize("bad", [{"mailboxId": None}, {"mailboxId": True}, {"mailboxId": ""}, {}])
def test_a_mailbox_without_an_id_is_no_listing(bad: dict[str, object]) -> None:
    """Nobody could ask for its report, and its mail would be missed."""
    with pytest.raises(BadAnswer):
        parse_mailboxes(json.dumps({"mailboxes": [bad]}).encode())


@pytest.mark.parametrize(
    ("told", "reaches"),
    [("2026-03-01T20:00:00", 6), ("2026-03-01T20:00:00Z", 20), ("2026-03-01T20:00:00+02:00", 18)],
)
def test_a_cut_off_without_a_zone_may_be_the_mailboxs_time(told: str, reaches: int) -> None:
    """As far ahead as a zone can be: the mark must not pass what was covered."""
    envelope = parse_envelope(
        json.dumps({"status": "done", "result": {"data": [], "dataCutoffTimestamp": told}}).encode()
    )
    assert envelope.cutoff == START + timedelta(hours=reaches)


@pytest.mark.parametrize("told", ["0001-01-01T00:00:00", "0001-01-01", "0001-01-01T13:59:59"])
def test_a_cut_off_at_the_beginning_of_the_calendar_covers_nothing(told: str) -> None:
    """There is no moment 14 hours before it."""
    envelope = parse_envelope(
        json.dumps({"status": "done", "result": {"data": [], "dataCutoffTimestamp": told}}).encode()
    )
    assert envelope.cutoff == datetime.min.replace(tzinfo=UTC)


@pytest.mark.parametrize("cutoff", [1772323200, "soon", {}])
def test_a_cut_off_that_cannot_be_read_covers_nothing(
    vendor: RawServer, client: EmailgisticsClient, cutoff: object
) -> None:
    """The rows are taken, and no mark moves."""
    result = {"data": [{"messageId": "m"}], "dataCutoffTimestamp": cutoff}
    vendor.answer(sent(ok(json.dumps({"status": "done", "result": result}).encode())))
    with quick(vendor.url) as reader:
        rows = reader.received_messages("mailbox", START, START + DAY)
        assert len(list(rows)) == 1
        assert rows.covered_until == START


def test_cancelling_ends_a_wait(sandbox: Sandbox) -> None:
    """A run that waits for a report, for longer than this test may take, ends with the button."""
    received(sandbox, 1)
    sandbox.control.settings(reports={"run_seconds": 60})
    wish = Cancellation()
    CURRENT.set(wish)
    threading.Timer(0.5, wish.cancel).start()
    try:
        with quick(sandbox.base_url, sandbox.key, first_look=1000.0) as client, pytest.raises(RunCancelled):
            read(client)
    finally:
        CURRENT.set(None)
    assert not cancellation.is_cancelled()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"status": "done"}',
        b'{"status": "done", "result": {"data": null}}',
        b'{"progress": 3}',
        b"<html>",
        b"[" * 100_000,
    ],
)
def test_an_envelope_that_cannot_be_read(body: bytes) -> None:
    """A missing list is not "no messages": that would lose them without a word."""
    with pytest.raises(BadAnswer):
        parse_envelope(body)


def test_rows_that_name_no_message_are_known_again() -> None:
    """By their own id, whatever else changes in them, or by all of them. The others are taken."""
    rows: list[Any] = [
        {"id": "1"},
        None,
        7,
        {"messageId": ""},
        {"messageId": "m", "received": "never"},
        {"messageId": 5},
    ]
    envelope = parse_envelope(json.dumps({"status": "done", "result": {"data": rows}}).encode())
    assert [row.message_id for row in envelope.rows] == ["m"]
    assert len(set(envelope.unnamed)) == 5
    rows = [{"id": "1", "read": True}, {"messageId": ""}]
    again = parse_envelope(json.dumps({"status": "done", "result": {"data": rows}}).encode())
    assert again.unnamed == (envelope.unnamed[0], envelope.unnamed[3])


@pytest.mark.parametrize("data", [5, True, {"a": 1}, "rows", None])
def test_what_is_no_list_has_no_rows_while_a_report_is_being_made(data: object) -> None:
    """Its answer is not what was asked for yet, so it is asked again."""
    envelope = parse_envelope(json.dumps({"status": "running", "result": {"data": data}}).encode())
    assert not envelope.is_done
    assert (envelope.rows, envelope.unnamed) == ((), ())


def test_an_unknown_status_is_no_end() -> None:
    """Additive changes come unannounced: it is asked again."""
    envelope = parse_envelope(b'{"status": "queued", "_links": {"self": {"href": "/r/1"}}}')
    assert not envelope.is_done
    assert not envelope.is_failed
    assert envelope.itself == "/r/1"


class CountingPacer:
    """Counts what goes through it."""

    def __init__(self) -> None:
        self.calls = 0
        self.refused = 0

    def call(self) -> Any:
        self.calls += 1
        return cancellation.on_cancel(lambda: None)

    def rate_limited(self) -> None:
        self.refused += 1


def _start(sandbox: Sandbox, box: str) -> None:
    parameters = {
        "mailboxId": box,
        "activityType": "received",
        "activityStart": "2026-03-01T00:00:00Z",
        "activityEnd": "2026-03-02T00:00:00Z",
    }
    headers = {"Authorization": f"Bearer {sandbox.key}"}
    url = f"{sandbox.base_url}/reports/receivedMessageDetail"
    httpx.post(url, json={"parameters": parameters}, headers=headers, trust_env=False).raise_for_status()


def test_every_field_of_an_answer_has_a_limit() -> None:
    """Half an id would be another message's, so a row with one that is too long names none."""
    huge = "A" * 1_000_000
    rows = [
        {"messageId": "AAMk", "id": huge, "conversationId": huge},
        {"messageId": huge, "id": "row"},
        {"messageId": "B" * ID_CHARACTERS},
    ]
    document = {"status": "done", "result": {"data": rows}, "error": {"code": huge}}
    envelope = parse_envelope(json.dumps(document).encode())
    named, longest = envelope.rows
    assert (named.message_id, longest.message_id) == ("AAMk", "B" * ID_CHARACTERS)
    assert (len(named.row_id), len(named.conversation_id or "")) == (ID_CHARACTERS, ID_CHARACTERS)
    assert len(envelope.unnamed) == 1
    assert len(envelope.code or "") == WORD_CHARACTERS
    with pytest.raises(BadAnswer):
        parse_envelope(json.dumps({**document, "_links": {"next": {"href": huge}}}).encode())
    (mailbox,) = parse_mailboxes(
        json.dumps({"mailboxes": [{"mailboxId": 1, "mailboxEmail": huge, "mailboxName": huge}]}).encode()
    )
    assert len(mailbox.address) + len(mailbox.name) < 600
    with pytest.raises(BadAnswer):
        parse_mailboxes(json.dumps({"mailboxes": [{"mailboxId": huge}]}).encode())
