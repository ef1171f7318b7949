"""A backfill of 10,000 messages on PostgreSQL: pace, the worker's size, and the same with a task for each message."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attachments.demo.processes import process_environment, wait_for
from attachments.storage import message_key
from benchmarks.figures import Figure
from benchmarks.installations import UNPACED, Installation, installation

MESSAGES = int(os.environ.get("BENCH_MESSAGES", "10000"))
PEERS = int(os.environ.get("BENCH_PEERS", "500"))
EARLY = MESSAGES // 10
AT_ONCE = 8
SIZE = 20_000
HOURS = 12 * 3600.0
LOOK = 5.0
"""Seconds between looks at how far it is: each costs time of the processors that are measured."""
MIB = 1024 * 1024
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
PEER_FLOW = Path(__file__).with_name("mapped_flow.py")


def measure() -> list[Figure]:
    with installation("postgresql") as everything:
        everything.prefect.patch("v2/concurrency_limits/emailgistics-backfill", json={"limit": UNPACED})
        _at_once(everything)
        messages = everything.messages(MESSAGES, SIZE)
        seconds, early, late = _child_runs(everything, messages)
        peers = everything.messages(PEERS, SIZE)
        mapped = _mapped_tasks(everything, peers)
    what = f"{MESSAGES:,} messages, {AT_ONCE} at a time, vendor and pacing without a cap"
    return [
        Figure("backfill.messages_per_minute", round(MESSAGES / seconds * 60, 1), "messages", what),
        Figure("backfill.mapped_tasks_per_minute", round(PEERS / mapped * 60, 1), "messages", f"{PEERS:,} as tasks"),
        Figure("backfill.growth_1000_to_10000_mib", round(late - early, 1), "MiB", "the worker's resident size"),
        Figure("backfill.worker_after_10000_mib", round(late, 1), "MiB", "the worker's resident size"),
    ]


def _at_once(everything: Installation) -> None:
    """As many runs at a time as the peer has threads."""
    path = "work_pools/attachments/queues/backfill"
    everything.prefect.patch(path, json={"concurrency_limit": AT_ONCE}).raise_for_status()


def _child_runs(everything: Installation, messages: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Seconds for all, and the worker's size after a tenth and in the end."""
    ids = everything.stack.ids / "ids.txt"
    ids.write_text("".join(f"{message['id']}\n" for message in messages))
    started = time.monotonic()
    run = _run(everything, "backfill-attachments/default", {"ids_url": ids.as_uri()})
    wait_for(lambda: _done(everything, messages) >= EARLY, "a tenth to be done", HOURS, every=LOOK)
    early = _size(everything)
    _wait_for_end(everything, run)
    return time.monotonic() - started, early, _size(everything)


def _mapped_tasks(everything: Installation, messages: Sequence[Mapping[str, Any]]) -> float:
    """Seconds for all as tasks of one flow run, in a process that is warm."""
    report = everything.stack.folder / "mapped.seconds"
    ids = everything.stack.folder / "mapped.txt"
    ids.write_text("".join(f"{message['id']}\n" for message in messages))
    command = [sys.executable, str(PEER_FLOW), str(ids), str(AT_ONCE), str(report)]
    quiet = {**everything.stack.environment, "PREFECT_LOGGING_LEVEL": "WARNING"}
    subprocess.run(command, env=process_environment(quiet), timeout=HOURS, check=True)  # noqa: S603  our own command
    assert _done(everything, messages) == len(messages)
    return float(report.read_text())


def _run(everything: Installation, deployment: str, parameters: Mapping[str, object]) -> str:
    found = everything.prefect.get(f"deployments/name/{deployment}").raise_for_status().json()
    body = {"parameters": dict(parameters)}
    answer = everything.prefect.post(f"deployments/{found['id']}/create_flow_run", json=body)
    return str(answer.raise_for_status().json()["id"])


def _wait_for_end(everything: Installation, run: str) -> None:
    ended: list[str] = []

    def has_ended() -> bool:
        answer = everything.prefect.get(f"flow_runs/{run}")
        ended[:] = [answer.json()["state_type"]] if answer.is_success else ended
        return bool(ended) and ended[0] in FINAL

    wait_for(has_ended, "the backfill to end", HOURS, every=LOOK)
    assert ended == ["COMPLETED"], ended


def _done(everything: Installation, messages: Sequence[Mapping[str, Any]]) -> int:
    stands: Callable[[Mapping[str, Any]], bool] = lambda message: (  # noqa: E731
        everything.stack.store / message_key(message["id"]) / "manifest.json"
    ).exists()
    return sum(map(stands, messages))


def _size(everything: Installation) -> float:
    pages = int(Path(f"/proc/{everything.stack.worker.pid}/statm").read_text().split()[1])
    return pages * 4096 / MIB
