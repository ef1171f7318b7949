"""`kill -9` of everything, at random moments; and the polite way to stop."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from attachments.storage import message_key
from tests.e2e.installation import FINAL, Installation, until
from tests.servers.proxy import DropReply, Proxy, Reset

MESSAGES = 20


def test_kills_of_every_process_lose_nothing(running: Installation) -> None:
    """Must show 5: 20 messages arrive while receiver, Prefect and worker are killed; all 20 are complete afterwards."""
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"seed {seed}; repeat with KILL_SEED={seed}")
    chance = random.Random(seed)
    control = running.sandbox.control
    messages = [
        control.add_message(attachments=[{"name": f"{n}-{part}.bin", "bytes": 200_000} for part in range(2)])
        for n in range(MESSAGES)
    ]
    victims = list(running.stack.processes)
    chance.shuffle(victims)
    delays = [chance.uniform(0.5, 3) for _ in victims]

    with ThreadPoolExecutor(MESSAGES) as pool:
        for number, message in enumerate(messages):
            pool.submit(
                control.deliver,
                message_id=message["id"],
                url=running.stack.webhook_url(),
                secret=running.stack.secret,
                retry_delay=15,
            )
            if number % 6 == 3 and victims:
                time.sleep(delays.pop())
                victim = victims.pop()
                victim.kill()
                time.sleep(chance.uniform(0, 1))
                victim.start()

    for message in messages:
        manifest = running.complete_manifest(message)
        assert [entry.sha256 for entry in manifest.attachments] == [part["sha256"] for part in message["attachments"]]
        assert len(running.files(message)) == 2
    until(lambda: all(run["state_type"] in FINAL for run in running.runs()), "every run to end")


def test_a_killed_worker_leaves_its_run_to_the_next_one(running: Installation) -> None:
    """Fault 14: killed in mid-download; the run is taken up within 60 s of a worker being alive, by itself."""
    message = running.sandbox.control.add_message(attachments=[{"name": "slow.bin", "bytes": 3_000_000}])
    fault = {"kind": "slow", "bytes_per_second": 200_000}
    running.sandbox.control.fault(endpoint="download", message_id=message["id"], times=1, fault=fault)
    running.send(message)
    until(lambda: bool(running.calls(message, "download")), "the download to begin")
    running.stack.worker.kill()
    running.stack.worker.start()
    alive = time.monotonic()
    manifest = running.complete_manifest(message)
    print(f"taken up and complete {time.monotonic() - alive:.0f} s after a worker was alive")
    assert time.monotonic() - alive < 60
    assert manifest.attachments[0].sha256 == message["attachments"][0]["sha256"]
    assert len(running.files(message)) == 1
    assert len(running.runs(message_id=message["id"])) == 1
    assert not [
        path for path in (running.stack.store / ".incoming").iterdir() if message_key(message["id"]) in path.name
    ]


def test_a_run_whose_final_state_prefect_did_not_hear_ends_completed(running: Installation) -> None:
    """Prefect's engine raises then. The worker takes the run up again, which has nothing to download any more."""
    worker = running.stack.worker
    environment = worker.environment
    set_state = "/api/flow_runs/[^/]+/set_state"
    with Proxy(httpx.URL(running.stack.api_url).port or 0) as proxy:
        address = f"http://127.0.0.1:{proxy.port}/api"
        # With its default Prefect's client asks again for a minute.
        worker.environment = {**environment, "PREFECT_API_URL": address, "PREFECT_CLIENT_MAX_RETRIES": "0"}
        try:
            worker.stop()
            worker.start()
            for fault in (Reset(), DropReply()):
                message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": str(fault)}])
                # Its worker proposes three states: Pending, Running, and the final one.
                proxy.order("POST", set_state, fault, skip=2)
                running.send(message)
                run = running.ended_run(message)
                assert proxy.ordered == 0
                assert run["state_type"] == "COMPLETED"
                told = [state["message"] for state in running.states(run["id"])]
                again = "Its final state could not be set; the run starts again."
                assert (again in told) == isinstance(fault, Reset), told
                assert len(running.calls(message, "download")) == 1
                assert len(running.files(message)) == 1
                assert len(running.runs(message_id=message["id"])) == 1
        finally:
            worker.environment = environment
            worker.stop()
            worker.start()


def test_sigterm_lets_a_short_run_finish(running: Installation) -> None:
    """Fault 22: a worker that is asked to stop takes nothing new, finishes what is under way and ends with 0."""
    message = running.sandbox.control.add_message(attachments=[{"name": "slow.bin", "bytes": 600_000}])
    fault = {"kind": "slow", "bytes_per_second": 200_000}
    running.sandbox.control.fault(endpoint="download", message_id=message["id"], times=1, fault=fault)
    running.send(message)
    until(lambda: bool(running.calls(message, "download")), "the download to begin")
    assert running.stack.worker.stop() == 0
    manifest = running.manifest(message)
    assert manifest is not None
    assert manifest.complete
    assert running.ended_run(message)["state_type"] == "COMPLETED"


def test_sigterm_hands_a_long_run_back_within_the_deadline(running: Installation) -> None:
    """Fault 22: what does not finish in time is scheduled again, and another worker completes it."""
    message = running.sandbox.control.add_message(attachments=[{"name": "endless.bin", "bytes": 200_000}])
    fault = {"kind": "slow", "bytes_per_second": 1000}
    running.sandbox.control.fault(endpoint="download", message_id=message["id"], times=1, fault=fault)
    running.send(message)
    until(lambda: bool(running.calls(message, "download")), "the download to begin")
    running.stack.worker.signal(signal.SIGTERM)
    until(lambda: running.stack.worker.code is not None, "the worker to end")
    (run,) = running.runs(message_id=message["id"])
    assert run["state_name"] == "AwaitingRetry"
    assert running.files(message) == []
    running.stack.worker.start()
    running.complete_manifest(message)
    assert len(running.files(message)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.soak)])
def test_webhooks_are_taken_while_prefect_is_away(running: Installation, number: signal.Signals) -> None:
    """Faults 3 and 4: with Prefect's server gone or hung, 200s go on, and everything runs once it is back."""
    messages = [
        running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": f"message {n}"}]) for n in range(5)
    ]
    server = running.stack.prefect
    server.signal(number)
    try:
        for message in messages:
            running.send(message)
        time.sleep(10)
    finally:
        if number == signal.SIGSTOP:
            server.signal(signal.SIGCONT)
        else:
            server.kill()
            server.start()
    for message in messages:
        running.complete_manifest(message)
        assert len(running.files(message)) == 1
        assert len(running.calls(message, "download")) == 1
