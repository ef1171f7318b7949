"""Long backfills: through deaths of worker and server, and on a worker with a single slot."""

import os
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from attachments.storage import message_key
from tests.e2e.installation import FAST, FINAL, Installation, installation, until
from tests.e2e.test_backfill import FLOW, tag_of

MESSAGES = int(os.environ.get("SOAK_MESSAGES", "2000"))
KILLS = int(os.environ.get("SOAK_KILLS", "5"))
HOURS = 3 * 3600.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(HOURS)]


@pytest.fixture
def unpaced(tmp_path: Path) -> Iterator[Installation]:
    """An installation of its own whose vendor has no cap."""
    with installation(tmp_path / "stack") as everything:
        everything.change("v2/concurrency_limits/emailgistics-backfill", {"limit": FAST})
        yield everything


def added(running: Installation, count: int) -> list[dict[str, Any]]:
    asked = [{"attachments": [{"name": f"{n}.bin", "bytes": 20_000}]} for n in range(count)]
    return running.sandbox.control.add_messages(asked)


def count_done(running: Installation, messages: list[dict[str, Any]]) -> int:
    return sum((running.stack.store / message_key(one["id"]) / "manifest.json").exists() for one in messages)


def test_kills_of_worker_and_server_during_a_long_backfill(unpaced: Installation) -> None:
    """Must show 1: `kill -9` of both at five random moments; all complete, and nothing is fetched that stands."""
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"seed {seed}; repeat with KILL_SEED={seed}")
    chance = random.Random(seed)
    messages = added(unpaced, MESSAGES)
    file = unpaced.stack.ids / "ids.csv"
    file.write_text("messageId\n" + "".join(f"{message['id']}\n" for message in messages))
    started = time.monotonic()
    run = unpaced.start_deployment(flow=FLOW, ids_url=file.as_uri())
    for after in sorted(chance.sample(range(MESSAGES // 20, MESSAGES * 9 // 10), KILLS)):
        until(lambda after=after: count_done(unpaced, messages) >= after, f"{after} messages to be done", HOURS)
        time.sleep(chance.uniform(0, 1))
        victims = [unpaced.stack.worker, unpaced.stack.prefect]
        chance.shuffle(victims)
        for victim in victims:
            victim.kill()
            time.sleep(chance.uniform(0, 2))
        unpaced.stack.prefect.start()
        unpaced.stack.worker.start()
        print(f"killed after {after} messages, {time.monotonic() - started:.0f} s")
    until(lambda: unpaced.run(run["id"])["state_type"] in FINAL, "the backfill to end", HOURS)
    took = time.monotonic() - started
    ended = unpaced.run(run["id"])
    print(f"{took:.0f} s, {MESSAGES / took * 60:.0f} messages a minute, kills and all: {ended['state']['message']}")
    assert ended["state_type"] == "COMPLETED"

    slack = timedelta(milliseconds=50)  # between the clock of the log and that of the file system
    calls: dict[str, list[dict[str, Any]]] = {}
    for call in unpaced.sandbox.control.requests("download"):
        calls.setdefault(call["message_id"], []).append(call)
    again = 0
    for message in messages:
        manifest = unpaced.manifest(message)
        assert manifest is not None
        assert manifest.complete
        (entry,) = manifest.attachments
        assert entry.sha256 == message["attachments"][0]["sha256"]
        assert entry.stored_at is not None
        assert len(unpaced.files(message)) == 1
        again += len(calls[message["id"]]) - 1
        late = [call for call in calls[message["id"]] if datetime.fromisoformat(call["time"]) > entry.stored_at + slack]
        assert late == [], f"message {message_key(message['id'])} was downloaded although it stood"
    print(f"{again} downloads were cut off by a kill and begun again")
    assert again <= 8 * KILLS
    children = unpaced.tagged(tag_of(run))
    assert len({child["parameters"]["message_id"] for child in children}) == len(children) <= MESSAGES


def with_one_slot(running: Installation) -> None:
    running.stack.worker.stop()
    running.stack.worker.command.extend(["--limit", "1"])
    running.stack.worker.start()


def test_a_worker_with_one_slot_does_a_backfill(unpaced: Installation) -> None:
    """The backfill takes an upkeep slot, so its runs have the other one, and one run does all."""
    with_one_slot(unpaced)
    messages = added(unpaced, 120)  # more than may be unfinished at a time
    run = unpaced.run_deployment(flow=FLOW, patience=1500, message_ids=[message["id"] for message in messages])
    assert run["state"]["message"] == "Of 120 messages 120 done now."
    assert count_done(unpaced, messages) == 120
    children = unpaced.tagged(tag_of(run))
    assert len(children) == len({child["parameters"]["message_id"] for child in children}) == 120


def test_a_worker_with_one_slot_reconciles(unpaced: Installation) -> None:
    """Likewise, and its run reports them all."""
    with_one_slot(unpaced)
    came = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    parts = [{"name": "a.bin", "bytes": 20_000}]
    asked = [{"mailbox": "one@road.example", "received": came, "attachments": parts}] * 8
    messages = unpaced.sandbox.control.add_messages(asked)
    run = unpaced.run_deployment(
        flow="reconcile-attachments", patience=900, mailboxes=["one@road.example"], first_days=1
    )
    assert run["state"]["message"] == "Of 8 messages in 1 mailbox 8 had been missed: 8 stored now."
    assert count_done(unpaced, messages) == 8
    assert len({child["parameters"]["message_id"] for child in unpaced.tagged("reconcile")}) == 8
