"""From the webhook's sending to the committed file: one attachment of 1 MB, nothing else going on.

Beside ours: the same deployment on Prefect's `process` worker, and the obvious handler, which does it in the webhook.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from attachments.demo.processes import wait_for
from benchmarks.figures import Figure
from benchmarks.installations import Installation, installation, wait_for_file
from benchmarks.processes import serving

SIZE = 1_000_000
OURS, PROCESS_WORKER, HANDLER = 40, 8, 40
"""Messages. The `process` worker takes some 8 s for each."""
WARM_UP = 3
POOL = "processes"


def measure() -> list[Figure]:
    with installation() as everything, httpx.Client(trust_env=False, timeout=60) as client:
        seconds = {
            "ours": _ours(everything, client, "default", OURS),
            "inline_handler": _handler(everything, client),
            "process_worker": _process_worker(everything, client),
        }
    what = {
        "ours": "webhook sent → file committed",
        "process_worker": "the same deployment on Prefect's process worker",
        "inline_handler": "Flask and requests in the webhook itself",
    }
    return [
        figure
        for who, values in seconds.items()
        for figure in (
            Figure.median(f"latency.{who}.median_s", values, "s", f"{what[who]} ({len(values)} × 1 MB)"),
            Figure(f"latency.{who}.p95_s", percentile(values, 95), "s", what[who]),
        )
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many per cent of all values do not exceed."""
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 3)


def _ours(everything: Installation, client: httpx.Client, deployment: str, count: int) -> list[float]:
    found: list[float] = []
    for message in everything.messages(count + WARM_UP, SIZE):
        # Not in step with the worker's looks.
        time.sleep(random.uniform(1, 2))  # noqa: S311  no secret
        started = time.perf_counter()
        everything.deliver(client, message, deployment)
        found.append(wait_for_file(everything.file(message)) - started)
    return found[WARM_UP:]


def _process_worker(everything: Installation, client: httpx.Client) -> list[float]:
    everything.stack.run("prefect", "work-pool", "create", POOL, "--type", "process")
    default = everything.prefect.get("deployments/name/download-attachments/default").raise_for_status().json()
    fields = ("flow_id", "entrypoint", "parameter_openapi_schema", "pull_steps")
    body = {**{field: default[field] for field in fields}, "name": "process", "work_pool_name": POOL}
    # Making a deployment again changes nothing, and embedded SQLite may say 503 at first.
    wait_for(lambda: everything.prefect.post("deployments/", json=body).is_success, "the deployment to be made")
    prefect = str(Path(everything.stack.worker.command[0]))
    # As quick as it can be: Prefect's own would look every 10 s.
    everything.add_worker(
        "process-worker", [prefect, "worker", "start", "--pool", POOL], {"PREFECT_WORKER_QUERY_SECONDS": "0.5"}
    )
    time.sleep(15)  # until the receiver knows the deployment
    return _ours(everything, client, "process", PROCESS_WORKER)


def _handler(everything: Installation, client: httpx.Client) -> list[float]:
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = (everything.sandbox.base_url, everything.sandbox.key, folder)
        with serving("benchmarks.inline_handler", *arguments) as port:
            for message in everything.messages(HANDLER + WARM_UP, SIZE):
                time.sleep(0.2)
                started = time.perf_counter()
                client.post(f"http://127.0.0.1:{port}/", json=message["webhook"]).raise_for_status()
                found.append(time.perf_counter() - started)
    return found[WARM_UP:]
