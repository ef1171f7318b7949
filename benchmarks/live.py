"""Live mail while a backfill of 2,000 messages waits and is worked on, under the vendor's cap."""

from __future__ import annotations

import random
import sys
import time

import httpx

from attachments.demo.processes import wait_for
from benchmarks.figures import Figure
from benchmarks.installations import Installation, installation, wait_for_file, without_worker
from benchmarks.latency import percentile

BACKLOG = 2000
LIVE = 20
CAP = 100
SIZE = 100_000


def measure() -> list[Figure]:
    with (
        installation(limit=CAP, slots=CAP, before=without_worker) as everything,
        httpx.Client(trust_env=False, timeout=60) as client,
    ):
        backlog = everything.messages(BACKLOG, SIZE)
        # All are there before any is worked on: with a worker beside it the making alone took a quarter of an hour.
        everything.create_runs("backfill", backlog)
        everything.add_worker("worker", [sys.executable, "-m", "prefect", "worker", "start", "--pool", "attachments"])
        wait_for(lambda: _stored(everything, backlog) >= 5, "the backfill to be under way", 300, every=1)
        begun = time.monotonic()
        before = _stored(everything, backlog)
        seconds = []
        for message in everything.messages(LIVE, SIZE):
            time.sleep(random.uniform(3, 6))  # noqa: S311  no secret
            started = time.perf_counter()
            everything.deliver(client, message)
            seconds.append(wait_for_file(everything.file(message)) - started)
        worked_off = (_stored(everything, backlog) - before) / (time.monotonic() - begun) * 60
        waiting = BACKLOG - _stored(everything, backlog)
    what = f"webhook sent → file committed, {waiting} of {BACKLOG} backfill messages still waiting in the end"
    return [
        Figure("live_under_backlog.p95_s", percentile(seconds, 95), "s", what),
        Figure.median("live_under_backlog.median_s", seconds, "s", f"the same; {LIVE} live messages"),
        Figure("live_under_backlog.backfill_per_minute", round(worked_off, 1), "messages", "stored meanwhile"),
    ]


def _stored(everything: Installation, messages: list[dict[str, object]]) -> int:
    return sum(everything.file(message).exists() for message in messages)
