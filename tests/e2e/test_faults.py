"""Faults of what the product runs on: Prefect's database, and a vendor who says no for a while."""

import dataclasses
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.installation import FINAL, Installation, installation, until


def test_a_locked_database_delays_and_loses_nothing(running: Installation) -> None:
    """Fault 7: somebody holds Prefect's database exclusively for ten seconds while webhooks arrive."""
    messages = [
        running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": f"message {n}"}]) for n in range(5)
    ]
    lock = sqlite3.connect(running.stack.database, isolation_level=None, timeout=60)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        for message in messages:
            running.send(message)
        time.sleep(10)
        lock.execute("ROLLBACK")
    finally:
        lock.close()
    for message in messages:
        running.complete_manifest(message)
        assert len(running.calls(message, "download")) == 1
        assert len(running.runs(message_id=message["id"])) == 1


@pytest.mark.soak
def test_a_429_storm_slows_down_and_everything_completes(running: Installation) -> None:
    """Fault 10: the vendor says 429 for 20 s; a minute's pause later all is fetched, with few calls in between."""
    message = running.sandbox.control.add_message(attachments=[{"name": f"{n}.txt", "text": "x"} for n in range(5)])
    fault = {"kind": "status", "status": 429}
    running.sandbox.control.fault(endpoint="any", message_id=message["id"], for_seconds=20, fault=fault)
    run = running.run_deployment(message_id=message["id"], patience=400)
    refused = [call for call in running.calls(message) if call["status"] == 429]
    assert run["state_type"] == "COMPLETED"
    assert len(running.files(message)) == 5
    assert len(refused) == 1


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_429_storm_costs_each_worker_two_calls(running: Installation) -> None:
    """The vendor says 429 for 90 s to two workers in the midst of their work; in the end all is stored."""
    log = running.stack.folder / "second worker.log"
    second = dataclasses.replace(running.stack.worker, log=log, is_ready=lambda: "started!" in second.output())
    second.start()
    try:
        made = running.sandbox.control.add_messages(
            [{"attachments": [{"name": "a.txt", "text": f"message {n}"}]} for n in range(60)]
        )
        for message in made[:40]:
            running.send(message)
        until(lambda: any(running.manifest(message) for message in made), "the first manifest")
        fault = {"kind": "status", "status": 429}
        running.sandbox.control.fault(endpoint="any", for_seconds=90, fault=fault)
        for message in made[40:]:
            running.send(message)
        until(lambda: all(running.manifest(message) for message in made), "all manifests", patience=600)
    finally:
        second.stop()
    refused = sorted(call["at"] for call in running.sandbox.control.requests() if call["status"] == 429)
    print(f"refused: {[round(at - refused[0], 1) for at in refused]}")
    # What was on its way when the first was refused could not know of it.
    assert len([at for at in refused if at > refused[0] + 0.5]) <= 2 * 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_burst_of_a_thousand_deliveries_has_a_thousand_outcomes(running: Installation) -> None:
    """Fault 6: all are answered 200 within seconds, and in the end each message is stored once."""
    count = 1000
    made = running.sandbox.control.add_messages(
        [{"attachments": [{"name": "a.txt", "text": f"message {n}"}]} for n in range(count)]
    )
    started = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(running.send, made))
    print(f"{count} deliveries answered in {time.monotonic() - started:.1f} s")
    until(lambda: all(running.manifest(message) for message in made), "all manifests", patience=3000)
    print(f"all stored after {time.monotonic() - started:.0f} s")
    assert all(len(running.files(message)) == 1 for message in made)
    runs = running.runs()
    assert {run["parameters"]["message_id"] for run in runs} >= {message["id"] for message in made}
    until(lambda: all(run["state_type"] in FINAL for run in running.runs()), "all runs to end", patience=300)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_vendors_cap_is_never_exceeded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cap of 20 calls in 60 s, and 40 messages of one attachment: no 429, never more than 20 in any 60 s."""
    with installation(tmp_path_factory.mktemp("cap"), slots=20, limit=20) as running:
        made = running.sandbox.control.add_messages(
            [{"attachments": [{"name": "a.txt", "text": f"message {n}"}]} for n in range(40)]
        )
        for message in made:
            running.send(message)
        until(lambda: all(running.manifest(message) for message in made), "all manifests", patience=600)
        summary = running.sandbox.control.summary()
        print(summary)
        assert not [call for call in running.sandbox.control.requests() if call["status"] == 429]
