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

import httpx
from prefect.cli import app

from attachments.blocks import emailgistics_account
from attachments.prefect_api.transport import direct_transport
from attachments.rate_limit.pacer import PrefectPacer
from attachments.rate_limit.slot_api import SlotApi
from attachments.rate_limit.timings import RateLimitTimings

counts = {"grants": 0, "requests": 0}
lock = threading.Lock()


def count(what: str) -> None:
    with lock:
        counts[what] += 1


class Counting(httpx.BaseTransport):
    """Below all retries, so that each attempt counts."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        count("requests")
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


class CountingPacer(PrefectPacer):
    """The product's pacer, counted."""

    def __init__(self, limit_name: str, backlog_limit_name: str | None = None) -> None:
        super().__init__(
            limit_name, backlog_limit_name, api=SlotApi(RateLimitTimings(), lambda: Counting(direct_transport()))
        )

    @contextmanager
    def call(self) -> Iterator[None]:
        with super().call():
            count("grants")
            yield


def report(file: Path) -> None:
    while True:
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(counts))
        fresh.replace(file)
        time.sleep(0.5)


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    emailgistics_account.PrefectPacer = CountingPacer  # type: ignore[misc]
    threading.Thread(target=report, args=(file,), daemon=True).start()
    app()
