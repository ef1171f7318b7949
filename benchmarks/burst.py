"""A thousand webhooks in ten seconds, while Prefect's server is stopped for the first minute."""

from __future__ import annotations

import asyncio
import time

import httpx

from attachments.demo.processes import wait_for
from benchmarks.figures import Figure
from benchmarks.installations import WAIT, Installation, installation, without_worker
from benchmarks.latency import percentile

WEBHOOKS = 1000
SECONDS = 10.0
AWAY = 60.0


def measure() -> list[Figure]:
    # The worker is left out: what counts is that all runs exist, and it would only make the wait for that longer.
    with installation(before=without_worker) as everything:
        everything.stack.prefect.stop()
        stopped = time.monotonic()
        answers = asyncio.run(_posted(everything))
        time.sleep(max(0.0, AWAY - (time.monotonic() - stopped)))
        everything.stack.prefect.start()
        back = time.monotonic()
        wait_for(lambda: everything.count_runs() >= WEBHOOKS, "all flow runs to exist", WAIT, every=1)
        took = time.monotonic() - back
        lost = WEBHOOKS - everything.count_runs()
    seconds = [seconds for _, seconds in answers]
    accepted = sum(status == httpx.codes.OK for status, _ in answers)
    return [
        Figure("burst.lost", lost, "runs", f"of {WEBHOOKS} webhooks in {SECONDS:g} s, Prefect stopped for {AWAY:g} s"),
        Figure("burst.answered_200", accepted, "webhooks", "at the first attempt"),
        Figure("burst.p99_s", percentile(seconds, 99), "s", "from the request to its answer"),
        Figure("burst.most_s", round(max(seconds), 3), "s", "the slowest answer"),
        Figure("burst.all_runs_s", round(took, 1), "s", "from Prefect's return until all flow runs existed"),
    ]


async def _posted(everything: Installation) -> list[tuple[int, float]]:
    """Status and seconds of each webhook, sent at an even pace however slow the answers are."""
    messages = everything.messages(WEBHOOKS, 1000)
    headers = {"Authorization": f"Bearer {everything.stack.secret}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # a connection each, as from strangers
    # Without TLS, for a context of its own for each connection takes longer than the request.
    settings = {"timeout": 100, "limits": limits, "headers": headers}
    async with httpx.AsyncClient(trust_env=False, verify=False, **settings) as client:  # noqa: S501  no TLS is spoken
        begin = time.perf_counter()

        async def post(number: int) -> tuple[int, float]:
            await asyncio.sleep(begin + number * SECONDS / WEBHOOKS - time.perf_counter())
            started = time.perf_counter()
            answer = await client.post(everything.stack.webhook_url(), json=messages[number]["webhook"])
            return answer.status_code, time.perf_counter() - started

        return await asyncio.gather(*map(post, range(WEBHOOKS)))
