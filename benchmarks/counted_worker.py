"""Prefect's worker, which counts the vendor calls that its pacing grants and the requests to Prefect that these cost.

`python -m benchmarks.counted_worker FILE worker start …` writes both numbers to FILE, twice a second.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prefect.cli import app

from attachments.rate_limit.lease_pool import LeasePool, PrefectPacer

counts = {"grants": 0, "requests": 0}
lock = threading.Lock()


def count(what: str) -> None:
    with lock:
        counts[what] += 1


class Counting(httpx.BaseTransport):
    """Below all patience, so that each try counts."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        count("requests")
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def instrument() -> None:
    make, call = LeasePool.__init__, PrefectPacer.call

    def made(self: LeasePool) -> None:
        make(self)
        for client in (self.client, self.asking):
            patience: Any = client._client._transport
            patience.inner = Counting(patience.inner)

    @contextmanager
    def called(self: PrefectPacer) -> Iterator[None]:
        with call(self):
            count("grants")
            yield

    LeasePool.__init__ = made  # type: ignore[method-assign]
    PrefectPacer.call = called  # type: ignore[method-assign]


def report(file: Path) -> None:
    while True:
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(counts))
        fresh.replace(file)
        time.sleep(0.5)


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    instrument()
    threading.Thread(target=report, args=(file,), daemon=True).start()
    app()
