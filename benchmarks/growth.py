"""The resident size of a worker, after a hundred runs and after two thousand."""

from __future__ import annotations

from pathlib import Path

from attachments.demo.processes import wait_for
from benchmarks.figures import Figure
from benchmarks.installations import WAIT, Installation, installation

EARLY, LATE = 100, 2000
MIB = 1024 * 1024


def measure() -> list[Figure]:
    # On PostgreSQL, for SQLite would take three times as long for the runs.
    with installation("postgresql") as everything:
        sizes = [_after(everything, count) for count in (EARLY, LATE - EARLY)]
    early, late = sizes
    return [
        Figure("memory.growth_100_to_2000_runs_mib", round(late - early, 1), "MiB", "the worker's resident size"),
        Figure("memory.worker_after_2000_runs_mib", round(late, 1), "MiB", "the worker's resident size"),
    ]


def _after(everything: Installation, count: int) -> float:
    messages = everything.messages(count, 100_000)
    everything.create_runs("default", messages)
    everything.wait_until_stored(messages)
    wait_for(lambda: everything.count_runs("RUNNING", "PENDING", "SCHEDULED") == 0, "all runs to end", WAIT, every=1)
    pid = everything.stack.worker.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / MIB
