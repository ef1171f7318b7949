"""A backlog under the vendor's cap: how much of it is used, whether it is ever passed, and what that costs of Prefect.

300 messages of one attachment (600 calls) are worked on by two worker processes, against a sandbox that enforces an
exact sliding window of 100 calls in 60 s and counts what it sees arrive.
"""

from __future__ import annotations

import bisect
import json
import sys
import time
from pathlib import Path

import httpx

from attachments.demo.processes import wait_for
from attachments.storage import message_key
from benchmarks.figures import Figure
from benchmarks.installations import DATABASES, WAIT, Installation, installation, without_worker

MESSAGES = 300
CAP = 100
SMALL_CAP = 10
WINDOW = 60.0
WORKERS = 2
BROKEN_MESSAGES = 400
BREAK_AFTER = 100.0
"""Seconds of work before something breaks."""
FULL_RATE = 97


def measure() -> list[Figure]:
    return [*(figure for database in DATABASES for figure in _measured(database)), *_recovery(), *_thirty()]


def _thirty() -> list[Figure]:
    """A message of 30 attachments under a cap that its calls fill three times over."""
    with installation(limit=SMALL_CAP, slots=SMALL_CAP) as everything, httpx.Client(trust_env=False) as client:
        asked = {"attachments": [{"name": f"{number}.pdf", "bytes": 100_000} for number in range(30)]}
        (message,) = everything.sandbox.control.add_messages([asked], digests=False)
        started = time.monotonic()
        everything.deliver(client, message)
        manifest = everything.stack.store / message_key(message["id"]) / "manifest.json"
        wait_for(manifest.exists, "the message to be stored", WAIT)
        took = time.monotonic() - started
        calls = everything.sandbox.control.requests()
    allowed = (len(calls) - 1) // SMALL_CAP * WINDOW
    return [
        Figure("pacing.thirty.calls", len(calls), "calls", "for a message of 30 attachments"),
        Figure("pacing.thirty.seconds", round(took, 1), "s", f"webhook sent → manifest, {SMALL_CAP} calls in 60 s"),
        Figure("pacing.thirty.of_what_the_cap_allows", round(took / allowed, 3), "", f"1 is {allowed:g} s"),
    ]


def _recovery() -> list[Figure]:
    """A worker is killed and Prefect's server restarted half-way; another worker takes its place."""
    with installation(limit=CAP, slots=CAP, before=without_worker) as everything:
        messages = everything.messages(BROKEN_MESSAGES, 10_000)
        everything.create_runs("default", messages)
        for number in range(WORKERS):
            _counted_worker(everything, f"worker-{number}")
        time.sleep(BREAK_AFTER)
        broken = time.monotonic()
        everything.workers[0].kill()
        everything.stack.prefect.kill()
        everything.stack.prefect.start()
        _counted_worker(everything, "successor")
        everything.wait_until_stored(messages)
        calls = everything.sandbox.control.requests()
    arrived = sorted(float(call["at"]) for call in calls)
    # The sandbox's clock is this machine's.
    full = [at for at in arrived if at > broken and _calls_in(arrived, at, at + WINDOW) >= FULL_RATE]
    refused = sum(call["status"] == 429 for call in calls)
    what = "worker killed, Prefect restarted → the first minute with 97 calls begins"
    return [
        Figure("pacing.recovery.seconds_to_full_rate", round(full[0] - broken, 1) if full else -1, "s", what),
        Figure("pacing.recovery.max_in_any_60s", most_in_any_window(arrived), "calls", "all the time"),
        Figure("pacing.recovery.rejected_429", refused, "calls", "beyond the cap"),
    ]


def _calls_in(arrived: list[float], start: float, end: float) -> int:
    return bisect.bisect_left(arrived, end) - bisect.bisect_left(arrived, start)


def _measured(database: str) -> list[Figure]:
    with installation(database, limit=CAP, slots=CAP, before=without_worker) as everything:
        messages = everything.messages(MESSAGES, 10_000)
        everything.create_runs("default", messages)
        counted = [_counted_worker(everything, f"worker-{number}") for number in range(WORKERS)]
        everything.wait_until_stored(messages)
        calls = everything.sandbox.control.requests()
        counts = [json.loads(file.read_text()) for file in counted]
    arrived = sorted(float(call["at"]) for call in calls)
    refused = sum(call["status"] == 429 for call in calls)
    # The first burst finds all slots free, and takes as long as Prefect takes to start so many runs.
    rate = (len(arrived) - CAP) / (arrived[-1] - arrived[CAP - 1]) * 60
    grants = sum(count["grants"] for count in counts)
    asked = sum(count["requests"] for count in counts)
    name = f"pacing.{database}"
    return [
        Figure(f"{name}.calls_per_minute", round(rate, 1), "calls", f"from the call {CAP} to the last"),
        Figure(f"{name}.max_in_any_60s", most_in_any_window(arrived), "calls", "as the sandbox sees them arrive"),
        Figure(f"{name}.rejected_429", refused, "calls", "beyond the cap"),
        Figure(f"{name}.requests_per_grant", round(asked / grants, 2), "requests", "to Prefect's API, for one call"),
        Figure(f"{name}.calls", len(arrived), "calls", f"for {MESSAGES} messages of 1 attachment"),
    ]


def most_in_any_window(moments: list[float]) -> int:
    """The most of these sorted moments that lie in any 60 s."""
    most = start = 0
    for end, moment in enumerate(moments):
        while moment - moments[start] >= WINDOW:
            start += 1
        most = max(most, end - start + 1)
    return most


def _counted_worker(everything: Installation, name: str) -> Path:
    file = everything.stack.folder / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.counted_worker", str(file), "worker", "start", "--pool", "attachments"]
    everything.add_worker(name, command, {"PYTHONPATH": str(Path(__file__).parents[1])})
    return file
