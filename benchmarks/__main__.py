"""Runs the parts that are named, or all; prints their figures and keeps them in build/bench.json."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from benchmarks import backfill, burst, growth, hostile, inputs, latency, live, memory, pacing, throughput
from benchmarks.figures import Figure, keep, show

PARTS: dict[str, Callable[[], list[Figure]]] = {
    "latency": latency.measure,
    "pacing": pacing.measure,
    "burst": burst.measure,
    "live_under_backlog": live.measure,
    "throughput": throughput.measure,
    "memory": memory.measure,
    "growth": growth.measure,
    "backfill": backfill.measure,
    "inputs": inputs.measure,
    "hostile": hostile.measure,
}


def main(asked: Sequence[str]) -> None:
    if unknown := set(asked) - set(PARTS):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    # So that what was started ends too when a part is broken off.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for part in asked or PARTS:
        figures = PARTS[part]()
        show(part, figures)
        keep(part, figures)


if __name__ == "__main__":
    main(sys.argv[1:])
