"""From the inbox to Prefect: the real dispatcher and Prefect's real client, over a socket to a stand-in."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from attachments.emailgistics import Delivery
from attachments.prefect_api import prefect_retry
from attachments.receiver.dispatcher import MAX_CREATIONS, Dispatcher
from attachments.receiver.flow_runs import (
    MAX_DELIVERY_DURATION,
    MAX_LOCKED_RETRY_DELAY,
    PrefectRefused,
    PrefectUnavailable,
    prefect_flow_runs,
)
from attachments.receiver.inbox import Entry, Inbox
from attachments.receiver.limits import ReceiverLimits
from attachments.receiver.metrics import Metrics
from attachments.storage import message_key

from .prefect_stub import FIRST_PARAMETERS, Mood, PrefectStub

Story = Callable[["Desk"], Awaitable[None]]


class Desk:
    """A running dispatcher with its inbox, and the stand-in behind it."""

    def __init__(self, inbox: Inbox, dispatcher: Dispatcher, metrics: Metrics, prefect: PrefectStub) -> None:
        self.inbox = inbox
        self.dispatcher = dispatcher
        self.metrics = metrics
        self.prefect = prefect

    async def deliver(self, *message_ids: str, deployment: str = "default", **fields: Any) -> None:
        deliveries = [Delivery(message_id=message_id, **fields) for message_id in message_ids]
        await asyncio.gather(*(self.inbox.append(deployment, delivery) for delivery in deliveries))
        self.dispatcher.wake()

    async def depth(self) -> int:
        return (await self.inbox.depth()).entries

    async def until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_depth(self, entries: int, seconds: float = 120) -> None:
        async with asyncio.timeout(seconds):
            while await self.depth() != entries:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def desk(path: Path, prefect: PrefectStub, limits: ReceiverLimits | None = None) -> AsyncIterator[Desk]:
    inbox, metrics = Inbox(path), Metrics()
    try:
        with temporary_settings({PREFECT_API_URL: prefect.url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with prefect_flow_runs() as flow_runs:
                dispatcher = Dispatcher(inbox, flow_runs, metrics, limits)
                async with dispatcher.running():
                    yield Desk(inbox, dispatcher, metrics, prefect)
    finally:
        inbox.close()


@pytest.fixture
def limits() -> ReceiverLimits:
    """Those of production, unless a test has others."""
    return ReceiverLimits()


@pytest.fixture
def play(tmp_path: Path, prefect: PrefectStub, limits: ReceiverLimits) -> Callable[[Story], None]:
    """Runs a test's story with a dispatcher on the test's folder. Each call is one life of the process."""

    def play(story: Story) -> None:
        async def life() -> None:
            async with desk(tmp_path / "inbox.sqlite", prefect, limits) as at:
                await story(at)

        asyncio.run(life())

    return play


HASTY = ReceiverLimits(
    refresh_interval=0.2,
    refresh_interval_while_unavailable=0.2,
    reminder_interval=0.5,
    max_retry_delay=0.3,
    refused_retry_delay=0.3,
    create_timeout=1.0,
)
"""Shorter pauses and deadlines than in production, so that a test sees several of them."""
hasty = pytest.mark.parametrize("limits", [HASTY], ids=["hasty"])


def test_each_entry_becomes_a_run_and_leaves(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """Under the message's key, with the first 12 digits of it as the run's name."""

    async def story(at: Desk) -> None:
        await at.deliver("a", "b", "c")
        await at.until_depth(0)
        await at.until(lambda: at.metrics.registry.get_sample_value("attachments_dispatched_total") == 3)

    play(story)
    assert sorted(prefect.message_ids) == ["a", "b", "c"]
    for key, run in prefect.runs.items():
        digest = message_key(run["parameters"]["message_id"])
        assert key == f"download-attachments/default/{digest}"
        assert run["name"] == digest[:12]


def test_a_deployment_of_an_older_version_gets_its_runs(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """Until `attachments setup` is run again its flow takes no new parameter: a run with one would fail.

    Also just after a start, when the deployments are those that the inbox remembers.
    """
    prefect.parameters = FIRST_PARAMETERS

    async def story(at: Desk) -> None:
        await at.deliver("a", has_attachments=True, mailbox="shared@example.com")
        await at.until_depth(0)

    async def asked_at_once(url: str) -> str:
        """As the dispatcher does with a deployment that the inbox remembers, before it has read the list."""
        entry = Entry(1, "default", message_key("b"), "b", None, None, None, time.time(), has_attachments=True)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with prefect_flow_runs() as flow_runs:
                return await flow_runs.create(entry, prefect.deployments["default"])

    play(story)
    asyncio.run(asked_at_once(prefect.url))
    parameters = [run["parameters"] for run in prefect.runs.values()]
    assert parameters == [{"message_id": "a", "mailbox": "shared@example.com"}, {"message_id": "b"}]


def test_a_current_deployment_gets_to_know_whether_the_webhook_named_attachments(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """Its flow then reads an empty list again."""

    async def story(at: Desk) -> None:
        await at.deliver("a", has_attachments=True)
        await at.until_depth(0)

    play(story)
    assert [run["parameters"] for run in prefect.runs.values()] == [{"message_id": "a", "has_attachments": True}]


@pytest.mark.parametrize("received", ["not a date", "9999-99-99", "Subject canary", "2026-11-22T10:00:00", "12", None])
def test_an_odd_date_does_not_cost_the_run(
    play: Callable[[Story], None], prefect: PrefectStub, received: str | None
) -> None:
    """Prefect refuses a run whose `received` is no date-time; it is left out rather."""

    async def story(at: Desk) -> None:
        await at.deliver("a", received=received)
        await at.until_depth(0)

    play(story)
    (run,) = prefect.runs.values()
    assert run["parameters"].get("received") in (None, "2026-11-22T10:00:00+00:00")


def test_an_opaque_id_goes_through_unchanged(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """Of the greatest length, in any script, with what templates and paths are made of."""
    ids = ["é" * 2048, "a/b+c=", "{{ flow.name }}", " x ", "../..", "%2F", "\u2028日本", '"\\']

    async def story(at: Desk) -> None:
        await at.deliver(*ids)
        await at.until_depth(0)

    play(story)
    assert sorted(prefect.message_ids) == sorted(ids)


def test_at_most_two_creations_are_under_way(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """And with enough to do, both are."""
    prefect.delay = 0.05

    async def story(at: Desk) -> None:
        await at.deliver(*(str(number) for number in range(40)))
        await at.until_depth(0)

    play(story)
    assert prefect.most_at_once == MAX_CREATIONS == 2
    assert len(prefect.runs) == 40


@hasty
@pytest.mark.parametrize("mood", ["busy", "hung", "forgetful", "locked-out", "another-site", "odd"])
def test_what_prefect_does_not_confirm_stays(
    play: Callable[[Story], None], prefect: PrefectStub, caplog: pytest.LogCaptureFixture, mood: Mood
) -> None:
    """Whatever answers at its address: nothing leaves the inbox, one run each is there when it is well again."""
    ids = [str(number) for number in range(10)]

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.mood = mood
        await at.deliver(*ids, mailbox="canary@example.com")
        await at.until(lambda: caplog.text.count("stays in the inbox") >= 3)
        assert await at.depth() == 10
        prefect.mood = "well"
        await at.until_depth(0)

    play(story)
    assert sorted(prefect.message_ids) == ids
    assert "canary" not in caplog.text
    assert "nternal error" not in caplog.text


@hasty
def test_prefect_may_be_down_from_the_start(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """What came meanwhile is dispatched when it is there."""
    prefect.stop()

    async def story(at: Desk) -> None:
        await at.deliver("a", "b")
        await at.until(lambda: at.dispatcher.is_synced is False)
        prefect.start()
        await at.until_depth(0)

    play(story)
    assert sorted(prefect.message_ids) == ["a", "b"]


@hasty
def test_while_prefect_is_away_it_is_asked_with_one_entry_at_a_time(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """A server that is coming back is not met by four posts at once."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.mood = "forgetful"  # it counts what it drops
        await at.deliver("first")
        await at.until(lambda: prefect.posts >= 1)
        await at.until(lambda: at.metrics.registry.get_sample_value("attachments_dispatch_failures") == 1)
        prefect.most_at_once, prefect.delay = 0, 0.05
        before = prefect.posts
        await at.deliver(*(str(number) for number in range(20)))
        await at.until(lambda: prefect.posts >= before + 3)
        assert prefect.most_at_once == 1
        prefect.mood = "well"
        await at.until_depth(0)
        assert at.metrics.registry.get_sample_value("attachments_dispatch_failures") == 0

    play(story)


@pytest.mark.soak
def test_the_inbox_drains_soon_after_prefect_is_back(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """With the figures of production, after as many failures as make the pauses longest."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.stop()
        await at.deliver(*(str(number) for number in range(100)))
        await at.until(lambda: (at.metrics.registry.get_sample_value("attachments_dispatch_failures") or 0) >= 6)
        prefect.start()
        await at.until_depth(0)

    play(story)
    assert len(prefect.runs) == 100


@hasty
def test_a_run_that_is_refused_holds_nothing_up(
    play: Callable[[Story], None], prefect: PrefectStub, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays, is offered again, and the log says what to do without quoting its parameters."""
    prefect.refused_ids = {"canary-refused"}

    async def story(at: Desk) -> None:
        await at.deliver("canary-refused", "a", "b")
        await at.until_depth(1)
        await at.until(lambda: caplog.text.count("refused the run") >= 2)
        prefect.refused_ids = set()
        await at.until_depth(0)

    play(story)
    assert set(prefect.message_ids) == {"a", "b", "canary-refused"}
    assert "canary" not in caplog.text
    assert message_key("canary-refused") in caplog.text


@hasty
def test_a_refusal_is_not_an_outage(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """Hundreds of refused entries neither slow the others down nor count as failures of Prefect."""
    refused = [f"refused-{number}" for number in range(200)]
    prefect.refused_ids = set(refused)

    async def story(at: Desk) -> None:
        await at.deliver(*refused)
        await at.deliver("good")
        await at.until(lambda: "good" in prefect.message_ids, seconds=60)
        assert at.metrics.registry.get_sample_value("attachments_dispatch_failures") == 0

    play(story)


@hasty
def test_entries_wait_for_a_deployment_that_does_not_exist(
    play: Callable[[Story], None], prefect: PrefectStub, caplog: pytest.LogCaptureFixture
) -> None:
    """Before `attachments setup`: they stay, are complained about, and go once the deployment is there."""
    prefect.deployments = {}

    async def story(at: Desk) -> None:
        await at.deliver("a", "b")
        await at.until(lambda: "2 deliveries wait for the deployment download-attachments/default" in caplog.text)
        assert prefect.posts == 0
        prefect.deployments["default"] = str(uuid4())
        await at.until_depth(0)

    play(story)


@hasty
def test_a_deployment_that_was_made_anew_is_found(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """Its id has changed; the entry goes to the new one after the next look at the list."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.deployments["default"] = str(uuid4())
        await at.deliver("a")
        await at.until_depth(0)

    play(story)
    (run,) = prefect.runs.values()
    assert run["deployment_id"] == prefect.deployments["default"]


def test_the_deployments_outlive_a_restart_without_prefect(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """What was known last is known from the start, so that webhooks for them are taken."""
    prefect.deployments["pdfs"] = str(uuid4())

    async def first(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        while await at.inbox.deployments() != prefect.deployments:
            await asyncio.sleep(0.01)

    async def second(at: Desk) -> None:
        assert at.dispatcher.deployments == prefect.deployments
        assert not at.dispatcher.is_synced, "what was made since is not known, and must not get a 404, which is final"

    play(first)
    prefect.stop()
    play(second)


@hasty
def test_while_prefect_is_away_the_list_counts_as_old(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """A deployment may have been made since; the known ones are known still."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.mood = "locked-out"
        await at.until(lambda: not at.dispatcher.is_synced)
        assert at.dispatcher.deployments == prefect.deployments
        prefect.mood = "well"
        await at.until(lambda: at.dispatcher.is_synced)

    play(story)


def test_a_deployment_that_was_made_just_now_is_known(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """`prefect deploy` and a webhook right after it: the list is read again, at most once a second in all."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        await asyncio.sleep(ReceiverLimits().min_refresh_interval)
        prefect.deployments["invoices"] = str(uuid4())
        assert await at.dispatcher.knows("invoices")
        lists = prefect.lists
        start = time.monotonic()
        assert not any(await asyncio.gather(*(at.dispatcher.knows(f"no-such-{number}") for number in range(100))))
        assert prefect.lists - lists <= 1 + (time.monotonic() - start) / ReceiverLimits().min_refresh_interval

    play(story)


@pytest.mark.parametrize("limits", [ReceiverLimits(refresh_timeout=0.3, min_refresh_interval=0.0)], ids=["short"])
def test_an_unknown_name_waits_for_a_hanging_prefect_only_shortly(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """Then the list counts as old, so that the sender gets a 503 and tries again."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.mood = "hung"
        assert not await at.dispatcher.knows("no-such")
        assert not at.dispatcher.is_synced
        assert await at.dispatcher.knows("default")
        prefect.mood = "well"

    play(story)


def test_hundreds_of_deployments_are_all_known(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """Prefect lists 200 at a time."""
    prefect.deployments = {f"number-{number:03}": str(uuid4()) for number in range(450)}

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        assert at.dispatcher.deployments == prefect.deployments

    play(story)


@hasty
def test_a_lost_reply_makes_no_second_run(play: Callable[[Story], None], prefect: PrefectStub) -> None:
    """The run is there, its reply was dropped; the entry is offered again under the same key."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.mood = "forgetful"
        await at.deliver("a")
        await at.until(lambda: prefect.posts >= 2)
        assert await at.depth() == 1
        prefect.mood = "well"
        await at.until_depth(0)

    play(story)
    assert len(prefect.runs) == 1


@hasty
def test_a_run_that_failed_before_its_lost_reply_was_noticed_is_not_made_again(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """The failed run came after the delivery, so it is that delivery's own."""

    async def story(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.mood = "forgetful"
        await at.deliver("a")
        await at.until(lambda: len(prefect.runs) == 1)
        prefect.end("a", "FAILED")
        prefect.mood = "well"
        await at.until_depth(0)

    play(story)
    assert len(prefect.runs) == 1


@pytest.mark.parametrize(
    ("ended", "runs"),
    [("FAILED", 2), ("CRASHED", 2), ("COMPLETED", 2), ("RUNNING", 1), ("SCHEDULED", 1), ("CANCELLED", 1)],
)
def test_a_redelivery_looks_again_once_the_run_has_ended_unless_somebody_cancelled_it(
    play: Callable[[Story], None], prefect: PrefectStub, ended: str, runs: int
) -> None:
    """What has failed is tried again; what completed may have lost its files or manifest since.

    The second run has a key of its own, made of the first one's.
    """

    async def story(at: Desk) -> None:
        await at.deliver("a")
        await at.until_depth(0)
        prefect.end("a", ended)
        for _ in range(2):  # the second redelivery finds the fresh run under way
            await at.deliver("a")
            await at.until_depth(0)

    play(story)
    assert len(prefect.runs) == runs
    first, *fresh = prefect.runs.values()
    assert [run["idempotency_key"] for run in fresh] == [
        f"{first['idempotency_key']}/after/{first['id']}" for _ in fresh
    ]


@pytest.mark.parametrize(
    ("ago", "runs"), [(MAX_DELIVERY_DURATION - 60, 1), (MAX_DELIVERY_DURATION + 1, 2), (7 * 86400.0, 2)]
)
def test_a_delivery_long_after_the_cancelling_is_a_wish_to_try_again(
    play: Callable[[Story], None], prefect: PrefectStub, ago: float, runs: int
) -> None:
    """By then it is no attempt of the delivery whose run somebody has cancelled."""

    async def story(at: Desk) -> None:
        await at.deliver("a")
        await at.until_depth(0)
        prefect.end("a", "CANCELLED", ago=ago)
        for _ in range(2):  # the second one finds the fresh run under way
            await at.deliver("a")
            await at.until_depth(0)

    play(story)
    assert prefect.message_ids == ["a"] * runs


@pytest.mark.parametrize(
    ("timestamps", "runs"),
    [
        (["2026-11-30T10:00:00Z"] * 3, 1),
        (["2026-11-30T10:00:00Z", "2026-11-30T10:00:01Z", "2026-11-30T10:00:02Z"], 3),
        ([None, None, None], 3),
    ],
    ids=["one delivery's attempts", "three deliveries", "no telling"],
)
def test_the_attempts_of_one_delivery_make_one_run(
    play: Callable[[Story], None], prefect: PrefectStub, timestamps: list[str | None], runs: int
) -> None:
    """Each arrives after the run has completed, as when the answer was lost on its way to the sender."""

    async def story(at: Desk) -> None:
        for timestamp in timestamps:
            await at.deliver("a", timestamp=timestamp)
            await at.until_depth(0)
            prefect.end("a", "COMPLETED")

    play(story)
    assert len(prefect.runs) == runs


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
@pytest.mark.parametrize("ended", ["COMPLETED", "FAILED"])
def test_a_redelivery_looks_again_whatever_prefects_clock_says(
    play: Callable[[Story], None], prefect: PrefectStub, ahead: float, ended: str
) -> None:
    """The run that a delivery has made is told by its label: times of two machines are not compared."""
    prefect.ahead = ahead

    async def story(at: Desk) -> None:
        for _ in range(3):
            await at.deliver("a")
            await at.until_depth(0)
            prefect.end("a", ended)

    play(story)
    assert len(prefect.runs) == 3


def test_a_delivery_that_is_replayed_long_after_its_run_gets_another(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """Emailgistics makes its attempts within minutes; what comes later is somebody's wish, such as a saved request."""

    async def story(at: Desk) -> None:
        await at.deliver("a", timestamp="2026-11-30T10:00:00Z")
        await at.until_depth(0)
        prefect.end("a", "COMPLETED")
        (run,) = prefect.runs.values()
        run["created"] = (datetime.now(UTC) - timedelta(minutes=11)).isoformat()
        await at.deliver("a", timestamp="2026-11-30T10:00:00Z")
        await at.until_depth(0)

    play(story)
    assert len(prefect.runs) == 2


def test_the_hundredth_redelivery_costs_as_few_requests_as_the_second(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """A monitor may send the same message every minute: the chain of runs is not walked from its beginning."""

    async def story(at: Desk) -> None:
        for _ in range(100):
            await at.deliver("a")
            await at.until_depth(0)
            prefect.end("a", "COMPLETED")

    play(story)
    assert len(prefect.runs) == 100
    assert prefect.posts <= 2 * 100
    assert prefect.questions <= 100


def test_a_message_that_fails_each_time_gets_a_run_for_each_redelivery(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """However often: each failed run's key leads on to the next."""

    async def story(at: Desk) -> None:
        for _ in range(5):
            await at.deliver("a")
            await at.until_depth(0)
            prefect.end("a", "FAILED")

    play(story)
    assert len(prefect.runs) == 5


def test_a_defect_of_ours_is_told_without_data_and_holds_up_one_entry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that nobody has foreseen costs the others a second, and its text does not reach the log."""
    taken: list[str] = []

    class Defective:
        async def deployments(self) -> dict[str, str]:
            return {"default": "1"}

        async def create(self, entry: Entry, _: str) -> None:
            if entry.message_id == "bad":
                raise ZeroDivisionError(entry.mailbox)
            taken.append(entry.message_id)

    async def life() -> None:
        inbox, metrics = Inbox(tmp_path / "inbox.sqlite"), Metrics()
        dispatcher = Dispatcher(inbox, Defective(), metrics, HASTY)
        async with dispatcher.running():
            at = Desk(inbox, dispatcher, metrics, PrefectStub())
            await at.deliver("bad", "a", "b", "c", "d", "e", mailbox="canary@example.com")
            await at.until_depth(1)
        inbox.close()

    asyncio.run(life())
    assert set(taken) == {"a", "b", "c", "d", "e"}
    assert "ZeroDivisionError" in caplog.text
    assert "canary" not in caplog.text
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


def test_a_stop_in_the_moment_of_a_delivery_is_a_stop(tmp_path: Path, prefect: PrefectStub) -> None:
    """Before Python 3.12 `asyncio.wait_for` swallows a cancellation that comes together with what it waits for."""

    async def life() -> None:
        async with asyncio.timeout(120), desk(tmp_path / "inbox.sqlite", prefect) as at:
            await at.until(lambda: at.dispatcher.is_synced)
            await asyncio.sleep(0.1)  # the dispatcher has nothing to do and waits
            at.dispatcher.wake()

    asyncio.run(life())


def test_a_creation_that_is_cut_off_by_a_stop_is_offered_again(
    play: Callable[[Story], None], prefect: PrefectStub
) -> None:
    """The process ended while Prefect had not answered: the entry is there in the next life, and there is one run."""

    async def first(at: Desk) -> None:
        await at.until(lambda: at.dispatcher.is_synced)
        prefect.delay = 0.5
        await at.deliver("a")
        await at.until(lambda: prefect.posts == 1)

    async def second(at: Desk) -> None:
        assert await at.depth() == 1
        await at.until_depth(0)

    play(first)
    prefect.delay = 0
    play(second)
    assert len(prefect.runs) == 1


def test_a_locked_database_is_asked_again_soon_however_long_it_is_locked(
    prefect: PrefectStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a backfill it may be locked for most of the tries, and a person waits for this mail."""
    monkeypatch.setattr(prefect_retry, "PATIENCE", 1.0)
    entry = Entry(1, "default", message_key("a"), "a", None, None, None, 0.0)
    prefect.mood = "busy"
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(seconds / 10)

    monkeypatch.setattr(prefect_retry, "asyncio", SimpleNamespace(sleep=sleep))

    async def create() -> None:
        with temporary_settings({PREFECT_API_URL: prefect.url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with prefect_flow_runs() as flow_runs:
                await flow_runs.create(entry, prefect.deployments["default"])

    with pytest.raises(PrefectUnavailable):
        asyncio.run(create())
    assert len(pauses) > 10
    assert max(pauses) <= MAX_LOCKED_RETRY_DELAY


@pytest.mark.parametrize(
    ("mood", "error"),
    [
        ("busy", PrefectUnavailable),
        ("forgetful", PrefectUnavailable),
        ("locked-out", PrefectUnavailable),
        ("another-site", PrefectUnavailable),
        ("odd", PrefectUnavailable),
        ("refusing", PrefectRefused),
    ],
)
def test_the_seam_raises_its_own_errors_only(
    prefect: PrefectStub, mood: Mood, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they neither carry the client's error nor quote a parameter: Prefect's 409 repeats them all."""
    monkeypatch.setattr(prefect_retry, "PATIENCE", 1.0)
    entry = Entry(1, "default", message_key("a"), "canary", "canary@example.com", None, "canary", 0.0)
    prefect.mood = mood

    async def create() -> None:
        with temporary_settings({PREFECT_API_URL: prefect.url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with prefect_flow_runs() as flow_runs:
                await flow_runs.create(entry, prefect.deployments["default"])

    with pytest.raises(error) as raised:
        asyncio.run(create())
    assert type(raised.value).__module__ == "attachments.receiver.flow_runs"
    assert "canary" not in str(raised.value)
    assert raised.value.__suppress_context__
