"""The engine under backfill and reconciliation, against a real Prefect, in whose worker's place the test stands."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.settings import temporary_settings
from pydantic import SecretStr

from attachments.blocks import EmailgisticsAccount
from attachments.domain.progress import Counts
from attachments.domain.selection import Filter
from attachments.foundation import cancellation
from attachments.foundation.cancellation import CURRENT, Cancellation
from attachments.runs.child_runs import ChildRuns
from attachments.runs.errors import Starved
from attachments.runs.fan_out import DownloadDeployment, FanOutCancelled, Limits, MessageRef, run_children
from attachments.runs.state_record import FAILED_FOR_NOW
from attachments.storage import Manifest, ManifestAttachment, Store, message_key, open_store
from attachments.storage.errors import AccessDenied
from tests.e2e.installation import Installation, until


@dataclass(frozen=True)
class Bench:
    """A deployment that no worker serves, and what a worker would say of its runs."""

    running: Installation
    target: DownloadDeployment
    store: Store
    prefix: str
    more_tags: tuple[str, ...] = ()
    limits: Limits = field(default_factory=lambda: Limits(poll=0.2, max_poll=0.3, deletion_check_after=1.0))

    def another_deployment(self, name: str, flow: str = "download-attachments") -> UUID:
        """One more deployment that its workers serve, of one of the flows."""
        known = self.running._get(f"deployments/name/{flow}/default")
        fields = ("flow_id", "entrypoint", "parameter_openapi_schema", "pull_steps")
        body = {**{field: known[field] for field in fields}, "name": f"{self.prefix}-{name}"}
        return UUID(self.running._post("deployments/", {**body, "work_pool_name": self.prefix})["id"])

    @property
    def tags(self) -> list[str]:
        return [self.prefix, *self.more_tags]

    def wanted(self, *names: str) -> list[MessageRef]:
        return [MessageRef(message_id=f"{self.prefix}-{name}") for name in names]

    def process(self, wanted: Sequence[MessageRef], prefix: str = "", **options: Any) -> Counts:
        with temporary_settings(self.running.prefect_settings):
            return run_children(
                wanted, self.target, key_prefix=prefix or self.prefix, tags=self.tags, limits=self.limits, **options
            )

    def limited(self, **limits: Any) -> "Bench":
        """The same with other limits."""
        return replace(self, limits=replace(self.limits, **limits))

    def runs(self) -> dict[str, dict[str, Any]]:
        """By the name of the message."""
        return {run["parameters"]["message_id"].rpartition("-")[2]: run for run in self.running.tagged(self.prefix)}

    def end(self, which: str, kind: str = "COMPLETED", **state: Any) -> None:
        """As a worker does."""
        until(lambda: which in self.runs(), f"the run of {which}")
        for one in ({"type": "RUNNING"}, {"type": kind, **state}):
            body = {"state": one, "force": True}
            self.running._post(f"flow_runs/{self.runs()[which]['id']}/set_state", body)

    def settle(self, wanted: MessageRef, outcome: str = "stored", name: str = "a.pdf") -> None:
        """As a run that has done it."""
        entry = ManifestAttachment.model_validate(
            {"id": "x", "attachment_key": message_key("x"), "name": name, "outcome": outcome}
        )
        manifest = Manifest(
            message_id=wanted.message_id, message_key=wanted.key, updated=datetime.now(UTC), attachments=(entry,)
        )
        self.store.update_manifest(wanted.key, lambda _: manifest)

    @contextmanager
    def processing(self, wanted: Sequence[MessageRef], **options: Any) -> Iterator[tuple[Any, Cancellation]]:
        """While it goes on in another thread, which can be cancelled."""
        cancellation = Cancellation()

        def begin() -> Counts:
            CURRENT.set(cancellation)
            return self.process(wanted, **options)

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(copy_context().run, begin)
            try:
                yield future, cancellation
            finally:
                cancellation.cancel()


@pytest.fixture
def bench(running: Installation, tmp_path: Path) -> Bench:
    prefix = f"bench-{uuid4().hex[:8]}"
    running._post("work_pools/", {"name": prefix, "type": "warm"})
    store = open_store((tmp_path / "store").as_uri())
    account = EmailgisticsAccount(api_key=SecretStr("unused"))
    target = DownloadDeployment(prefix, uuid4(), prefix, "default", Filter(), account, store)
    served = Bench(running, target, store, prefix)
    return replace(served, target=replace(target, deployment_id=served.another_deployment("mail")))


def test_each_ending_is_counted_as_what_it_is(bench: Bench) -> None:
    """Done before, done now, failed by code, failed for now, crashed, cancelled, deleted, named twice."""
    names = ("settled", "done", "failed", "later", "last", "crashed", "cancelled", "deleted", "done")
    wanted = bench.wanted(*names)
    bench.settle(wanted[0])
    with bench.processing(wanted) as (future, _):
        bench.end("done")
        bench.end("failed", "FAILED", message="It is gone [code=not-found]")
        bench.end("later", "FAILED", name=FAILED_FOR_NOW, message="x [code=timeout, next_attempt=2]")
        bench.end("last", "FAILED", name=FAILED_FOR_NOW, message="x [code=timeout]")
        bench.end("crashed", "CRASHED")
        bench.end("cancelled", "CANCELLED")
        until(lambda: "deleted" in bench.runs(), "the run to be deleted")
        bench.running.remove(f"flow_runs/{bench.runs()['deleted']['id']}")
        counts = future.result(60)
    failed = {"not-found": 1, "timeout": 1, "crashed": 1, "deleted": 1}
    assert counts == Counts(
        seen=9, duplicates=1, already_done=1, succeeded=1, retry_scheduled=1, cancelled=1, failed=counts.failed
    )
    assert dict(counts.failed) == failed
    assert "settled" not in bench.runs()


def test_what_the_filter_wants_decides_what_is_settled(bench: Bench) -> None:
    """What another deployment's filter has left out is done by a target that wants it, and by no other."""
    wanted = bench.wanted("filtered", "failed", "damaged", "purged")
    bench.settle(wanted[0], "filtered")
    bench.settle(wanted[1], "failed")
    bench.settle(wanted[3], "purged")
    damaged = Path(bench.store.manifest_url(wanted[2].key).removeprefix("file://"))
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with bench.processing(wanted) as (future, _):
        for name in ("filtered", "failed", "damaged"):
            bench.end(name)
        assert future.result(60) == Counts(seen=4, already_done=1, succeeded=3)
    picky = Filter.model_validate({"exclude": [{"names": ["*.pdf"]}]})
    target = replace(bench.target, filter=picky)
    again = Bench(bench.running, target, bench.store, bench.prefix)
    assert again.process(wanted[:2]) == Counts(seen=2, already_done=2)


def test_force_does_again_what_is_settled(bench: Bench) -> None:
    """And the runs are told to."""
    wanted = bench.wanted("settled")
    bench.settle(wanted[0])
    with bench.processing(wanted, force=True) as (future, _):
        bench.end("settled")
        assert future.result(60) == Counts(seen=1, succeeded=1)
    assert bench.runs()["settled"]["parameters"]["force"] is True


def test_a_caller_that_was_killed_finds_its_runs_again(bench: Bench) -> None:
    """The stream starts again: ended runs are recognised and not created again, unfinished ones are awaited."""
    wanted = bench.wanted("done", "failed", "waiting")
    with bench.processing(wanted) as (future, _):
        bench.end("done")
        bench.end("failed", "FAILED", message="x [code=forbidden]")
        until(lambda: "waiting" in bench.runs(), "the third run")
        before = {name: run["id"] for name, run in bench.runs().items()}
        # The first caller hangs on, as one that was taken for dead would; the second one is the same run, started anew.
        with bench.processing(wanted) as (retaken, _):
            bench.end("waiting")
            counts = retaken.result(60)
        future.result(60)
    assert counts == Counts(seen=3, succeeded=2, failed=counts.failed)
    assert {name: run["id"] for name, run in bench.runs().items()} == before
    with bench.processing(wanted, prefix=f"{bench.prefix}-another") as (_, cancellation):
        until(lambda: len(bench.running.tagged(bench.prefix)) == 6, "another caller's own runs")
        cancellation.cancel()


def test_the_runs_of_others_are_considered(bench: Bench) -> None:
    """A message that another run waits for is left to it; one that has just failed is not tried again so soon.

    One that succeeded, and is not settled all the same, is done again: the filter may be another, or its files be gone.
    """
    wanted = bench.wanted("waits", "failed", "done")
    ended: list[tuple[str, str]] = []
    made: list[str] = []
    options: dict[str, Any] = {
        "skip_existing_runs": True,
        "on_created": lambda one, _: made.append(one.message_id.rpartition("-")[2]),
        "on_result": lambda one, child: ended.append((one.message_id.rpartition("-")[2], child.stage.value)),
    }
    with bench.processing(wanted, prefix=f"{bench.prefix}-webhook") as (_, others):
        bench.end("failed", "FAILED", message="It is gone [code=not-found]")
        bench.end("done")
        until(lambda: "waits" in bench.runs(), "the third run")
        mine = replace(bench, more_tags=(f"{bench.prefix}-mine",))
        with mine.processing(wanted, **options) as (future, _):
            until(lambda: len(bench.running.tagged(f"{bench.prefix}-mine")) == 1, "the run of what was done before")
            (again,) = bench.running.tagged(f"{bench.prefix}-mine")
            assert again["parameters"]["message_id"] == wanted[2].message_id
            for one in ({"type": "RUNNING"}, {"type": "COMPLETED"}):
                bench.running._post(f"flow_runs/{again['id']}/set_state", {"state": one, "force": True})
            counts = future.result(60)
        assert (counts.in_other_runs, counts.succeeded, dict(counts.failed)) == (1, 1, {"not-found": 1})
        assert made == ["done"]
        assert sorted(ended) == [("done", "succeeded"), ("failed", "failed"), ("waits", "waiting")]
        assert len(bench.running.tagged(f"{bench.prefix}-mine")) == 1
        with mine.limited(failure_cooldown=timedelta(0)).processing(wanted[1:2], **options) as (_, cancellation):
            until(lambda: len(bench.running.tagged(f"{bench.prefix}-mine")) == 2, "another try a day later")
            cancellation.cancel()
        others.cancel()


def test_what_another_kind_of_run_has_not_found_is_tried_once_more(bench: Bench) -> None:
    """The message comes from a report: it was too new for its webhook, or the key's allowlist was wrong."""
    wanted = bench.wanted("early")
    with bench.processing(wanted) as (future, _):
        bench.end("early", "FAILED", message="It is not there [code=not-found]")
        future.result(60)
    kind = f"{bench.prefix}-kind"
    mine = Bench(bench.running, bench.target, bench.store, kind)
    with mine.processing(wanted, skip_existing_runs=True) as (future, _):
        mine.end("early", "FAILED", message="It is not there [code=not-found]")
        assert dict(future.result(60).failed) == {"not-found": 1}
    assert dict(mine.process(wanted, skip_existing_runs=True, prefix=f"{kind}-next").failed) == {"not-found": 1}
    assert len(bench.running.tagged(kind)) == 1, "and no more than once"


def test_what_was_cancelled_with_its_caller_is_done_after_all(bench: Bench) -> None:
    """Nobody has decided against the message; what a person has cancelled stands."""
    wanted = bench.wanted("withdrawn", "unwanted")
    with bench.processing(wanted) as (future, cancellation):
        bench.end("unwanted", "CANCELLED", message="no, thanks")
        until(lambda: "withdrawn" in bench.runs(), "the other run")
        cancellation.cancel()
        with pytest.raises(FanOutCancelled):
            future.result(60)
    assert {run["state_type"] for run in bench.runs().values()} == {"CANCELLED"}
    mine = replace(bench, more_tags=(f"{bench.prefix}-mine",))
    with mine.processing(wanted, skip_existing_runs=True) as (_, cancellation):
        until(lambda: len(bench.running.tagged(f"{bench.prefix}-mine")) == 1, "a new run")
        time.sleep(0.5)
        (again,) = bench.running.tagged(f"{bench.prefix}-mine")
        assert again["parameters"]["message_id"] == wanted[0].message_id
        cancellation.cancel()


def test_later_attempts_are_not_waited_for(bench: Bench) -> None:
    """They may be hours ahead. Its own have failed for now; how those of others end is not known yet."""
    own, others = wanted = bench.wanted("own", "others")
    for one, tags in ((own, bench.tags), (others, [])):
        body = {
            "name": one.key[:12],
            "parameters": {"message_id": one.message_id},
            "tags": [*tags, "attempt-3"],
            "state": {
                "type": "SCHEDULED",
                "state_details": {"scheduled_time": (datetime.now(UTC) + timedelta(hours=5)).isoformat()},
            },
        }
        bench.running._post(f"deployments/{bench.target.deployment_id}/create_flow_run", body)
    counts = bench.process(wanted, skip_existing_runs=True)
    assert (counts.retry_scheduled, counts.in_other_runs, counts.seen) == (1, 1, 2)


@pytest.mark.parametrize("count", [3, Limits().max_denials])
def test_a_manifest_that_may_not_be_read_is_its_messages_failure(bench: Bench, count: int) -> None:
    """An archived blob, or a file of somebody else's; when it is one after the other, it is the store."""
    denied = {wanted.key for wanted in bench.wanted(*(str(number) for number in range(count)))}

    def read(key: str) -> Manifest | None:
        if key in denied:
            raise AccessDenied("could not read the manifest (TEST)", key=key)
        return bench.store.read_manifest(key)

    reading = replace(bench, target=replace(bench.target, store=cast("Store", SimpleNamespace(read_manifest=read))))
    settled = bench.wanted("settled")
    bench.settle(settled[0])
    wanted = [*bench.wanted(*(str(number) for number in range(count))), *settled]
    if count == Limits().max_denials:
        with pytest.raises(AccessDenied):
            reading.process(wanted[:-1])
    else:
        counts = reading.process(wanted)
        assert (counts.already_done, dict(counts.failed)) == (1, {"access-denied": count})
    assert bench.runs() == {}


def test_never_more_than_a_few_are_unfinished(bench: Bench) -> None:
    """Whatever the length of the stream, and however far it has been checked."""
    bench = bench.limited(window=5, batch=4)
    read = []

    def stream() -> Iterator[MessageRef]:
        for wanted in bench.wanted(*(str(number) for number in range(40))):
            read.append(wanted)
            yield wanted

    with bench.processing(stream()) as (future, cancellation):  # type: ignore[arg-type]
        until(lambda: len(bench.runs()) == 5, "five runs")
        time.sleep(1)
        assert len(bench.runs()) == 5
        assert len(read) <= 5 + 4 - 1  # in the window, and the rest of a batch
        bench.end("0")
        until(lambda: len(bench.runs()) == 6, "a place to be taken")
        time.sleep(0.5)
        assert len(bench.runs()) == 6
        cancellation.cancel()
        with pytest.raises(FanOutCancelled, match="5 runs that waited were cancelled"):
            future.result(60)
    assert sorted(run["state_type"] for run in bench.runs().values()) == [*["CANCELLED"] * 5, "COMPLETED"]


def test_cancelling_leaves_alone_what_has_started(bench: Bench) -> None:
    """It finishes by itself, and the caller says so."""
    with bench.processing(bench.wanted("a", "b")) as (future, cancellation):
        until(lambda: len(bench.runs()) == 2, "both runs")
        body = {"state": {"type": "RUNNING"}, "force": True}
        bench.running._post(f"flow_runs/{bench.runs()['a']['id']}/set_state", body)
        time.sleep(1)
        cancellation.cancel()
        with pytest.raises(
            FanOutCancelled, match="1 run that waited was cancelled with it; 1 that had started finishes"
        ):
            future.result(60)
    assert {name: run["state_type"] for name, run in bench.runs().items()} == {"a": "RUNNING", "b": "CANCELLED"}


def test_runs_that_no_worker_starts_are_reported(bench: Bench) -> None:
    """When nothing is started for a while and nothing is under way; not while its workers download live mail."""
    bench = bench.limited(starvation_timeout=2.0)
    live = replace(bench, target=replace(bench.target, deployment_id=bench.another_deployment("live")))
    with live.processing(bench.wanted("other"), prefix="other") as (_, other):
        until(lambda: "other" in bench.runs(), "another run")
        body = {"state": {"type": "RUNNING"}, "force": True}
        bench.running._post(f"flow_runs/{bench.runs()['other']['id']}/set_state", body)
        with bench.processing(bench.wanted("mine")) as (future, _):
            time.sleep(4)
            assert not future.done()
            bench.end("other")
            with pytest.raises(Starved) as caught:
                future.result(60)
        assert str(caught.value).startswith(
            "1 run waits, and no worker has started one for minutes. Check that a worker"
        )
        assert bench.runs()["mine"]["state_type"] == "SCHEDULED"
        other.cancel()


def test_those_who_wait_likewise_are_not_waited_for(bench: Bench) -> None:
    """A reconciliation holds the other slot, and waits itself: each would wait for the other forever."""
    bench = bench.limited(starvation_timeout=2.0)
    waits = bench.another_deployment("waits", "reconcile-attachments")
    run = bench.running._post(f"deployments/{waits}/create_flow_run", {"state": {"type": "PENDING"}})
    bench.running._post(f"flow_runs/{run['id']}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    with bench.processing(bench.wanted("mine")) as (future, _), pytest.raises(Starved):
        future.result(60)


def test_cancelling_takes_the_later_attempts_along(bench: Bench) -> None:
    """They have the caller's tags, and would fetch through the night what nobody wants any more."""
    tomorrow = {"scheduled_time": (datetime.now(UTC) + timedelta(hours=5)).isoformat()}
    for name, tags in (("ours", bench.tags), ("others", [f"{bench.prefix}-others"])):
        body = {
            "parameters": {"message_id": f"{bench.prefix}-{name}"},
            "tags": [*tags, "attempt-2"],
            "state": {"type": "SCHEDULED", "state_details": tomorrow},
        }
        bench.running._post(f"deployments/{bench.target.deployment_id}/create_flow_run", body)
    with bench.processing(bench.wanted("a")) as (future, cancellation):
        until(lambda: "a" in bench.runs(), "its run")
        cancellation.cancel()
        with pytest.raises(FanOutCancelled, match="2 runs that waited were cancelled with it"):
            future.result(60)
    assert {name: run["state_type"] for name, run in bench.runs().items()} == {"a": "CANCELLED", "ours": "CANCELLED"}
    (others,) = bench.running.tagged(f"{bench.prefix}-others")
    assert others["state_type"] == "SCHEDULED"


def test_reading_the_messages_ends_with_the_caller(bench: Bench) -> None:
    """A report that waits for its turn is not waited for, and the runs that wait are cancelled."""

    def stream() -> Iterator[MessageRef]:
        yield from bench.wanted("a", "b")
        while True:
            cancellation.sleep(0.2)

    with bench.limited(batch=1).processing(stream()) as (future, end):  # type: ignore[arg-type]
        until(lambda: len(bench.runs()) == 2, "both runs")
        end.cancel()
        with pytest.raises(FanOutCancelled, match="2 runs that waited were cancelled with it"):
            future.result(60)


@pytest.mark.parametrize("what", ["unstarted", "cancel"])
def test_cancelling_says_when_something_may_be_left(bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Prefect did not answer when it was asked what waits, or to cancel it."""
    monkeypatch.setattr(ChildRuns, what, lambda *_, **__: None)
    with bench.processing(bench.wanted("a")) as (future, cancellation):
        until(lambda: "a" in bench.runs(), "its run")
        cancellation.cancel()
        with pytest.raises(FanOutCancelled, match=r"More of them may still wait: cancel the runs with its tag\."):
            future.result(60)


def test_waiting_takes_no_processor(bench: Bench) -> None:
    """While runs wait, Prefect is polled now and then: live mail has its runs in the same process."""
    polls = 0

    def count(_: Counts) -> None:
        nonlocal polls
        polls += 1

    with bench.processing(bench.wanted("a"), on_progress=count) as (future, _):
        time.sleep(3)
        bench.end("a")
        assert future.result(60).succeeded == 1
    assert 5 < polls < 60


def test_what_reading_the_messages_raises_comes_out(bench: Bench) -> None:
    """A report that breaks off, a file that has changed: the caller says so, and does the rest another time."""

    def stream() -> Iterator[MessageRef]:
        yield from bench.wanted("a")
        raise KeyError("broken off")

    with pytest.raises(KeyError, match="broken off"):
        bench.process(stream())  # type: ignore[arg-type]
    assert threading.active_count() < 60


@pytest.mark.soak
def test_prefect_away_is_waited_for(bench: Bench) -> None:
    """Its server is stopped while runs wait: the caller goes on when it is back."""
    with bench.processing(bench.wanted("a", "b")) as (future, _):
        until(lambda: len(bench.runs()) == 2, "both runs")
        bench.running.stack.prefect.kill()
        time.sleep(3)
        bench.running.stack.prefect.start()
        bench.end("a")
        bench.end("b")
        assert future.result(60) == Counts(seen=2, succeeded=2)
