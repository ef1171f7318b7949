"""What streams add to a process that is warm: eight of 1 GB to S3 at once, and one of 5 GB to the local disk."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import uuid

from benchmarks.api_server import ONE_GB
from benchmarks.figures import BUILD, Figure
from benchmarks.processes import measured, serving

ROUNDS = 3
STREAMS = 8
FIVE_GB = 5 * ONE_GB
CONTENDERS = {"ours": "client and store, with SHA-256", "plain": "client and fsspec's own file, its defaults, no hash"}


def measure() -> list[Figure]:
    with serving("benchmarks.api_server") as port:
        return [*_to_s3(port), *_to_disk(port)]


def _to_s3(port: int) -> list[Figure]:
    added: dict[str, list[float]] = {who: [] for who in CONTENDERS}
    with serving("benchmarks.s3_sink") as sink:
        options = {
            "key": "benchmark-key",
            "secret": "benchmark-secret",
            "endpoint_url": f"http://127.0.0.1:{sink}",
            "client_kwargs": {"region_name": "us-east-1"},
        }
        for _ in range(ROUNDS):
            for who in CONTENDERS:
                root = f"s3://bucket/{uuid.uuid4().hex}"
                job = (who, port, root, json.dumps(options), ONE_GB, STREAMS)
                added[who].append(measured("benchmarks.streams", *job)["added_mib"])
    return [_figure("s3_8x1GB", who, values) for who, values in added.items()]


def _to_disk(port: int) -> list[Figure]:
    BUILD.mkdir(exist_ok=True)
    if shutil.disk_usage(BUILD).free < 2 * FIVE_GB:
        sys.exit(f"The memory benchmark writes a file of 5 GB; {BUILD} has less than 10 GB free")
    figures = []
    for who in CONTENDERS:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as folder:
            job = (who, port, f"file://{folder}/root", "{}", FIVE_GB, 1)
            figures.append(_figure("local_5GB", who, [measured("benchmarks.streams", *job)["added_mib"]]))
    return figures


def _figure(what: str, who: str, values: list[float]) -> Figure:
    name = f"memory.{what}_added_mib" if who == "ours" else f"memory.{what}_added_mib_{who}"
    return Figure.median(name, values, "MiB", CONTENDERS[who])
