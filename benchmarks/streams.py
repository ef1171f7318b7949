"""Streams from the API into a store, in a process of its own, which prints by how many MiB it has grown.

What is counted begins after the imports and one small file, and ends with the most that was ever resident.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from attachments.emailgistics import EmailgisticsClient
from attachments.storage import attachment_key, message_key, open_store
from benchmarks.api_server import url

MESSAGE = message_key("bench")


def ours(client: EmailgisticsClient, store_url: str, options: dict[str, Any], size: int, streams: int) -> None:
    """The product's way."""
    store = open_store(store_url, options)
    store.write(MESSAGE, attachment_key("warm"), "warm.bin", [b"warm"])
    _measure_from_here()

    def one(number: int) -> None:
        with client.download("bench", str(size)) as download:
            assert store.write(MESSAGE, attachment_key(str(number)), "large.bin", download).bytes == size

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(one, range(streams)))


def plain(client: EmailgisticsClient, store_url: str, options: dict[str, Any], size: int, streams: int) -> None:
    """The obvious way: fsspec's own file, with its defaults."""
    fs, root = fsspec.url_to_fs(store_url, **options)
    if root.startswith("/"):
        fs.makedirs(root, exist_ok=True)
    with fs.open(f"{root}/warm.bin", "wb") as file:
        file.write(b"warm")
    _measure_from_here()

    def one(number: int) -> None:
        with client.download("bench", str(size)) as download, fs.open(f"{root}/{number}.bin", "wb") as file:
            for chunk in download:
                file.write(chunk)

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(one, range(streams)))


def main(who: str, port: str, store_url: str, options: str, size: str, streams: str) -> None:
    with EmailgisticsClient(url(int(port)), "key") as client:
        {"ours": ours, "plain": plain}[who](client, store_url, json.loads(options), int(size), int(streams))
    print(json.dumps({"added_mib": (_resident("VmHWM") - _before[0]) / 1024}))


_before: list[int] = []


def _measure_from_here() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    _before[:] = [_resident("VmRSS")]


def _resident(line: str) -> int:
    """KiB, from `/proc/self/status`."""
    told = Path("/proc/self/status").read_text().splitlines()
    return next(int(found.split()[1]) for found in told if found.startswith(f"{line}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
