"""One contender's transfer of one attachment to a file, in a process of its own, which prints the seconds it took.

The clock starts when all is imported and stops when the file is closed, or for ours committed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import requests

from attachments.emailgistics import EmailgisticsClient
from attachments.storage import attachment_key, message_key, open_store
from benchmarks.api_server import download_url, url


def ours(port: int, size: int, folder: Path) -> int:
    """The product's way: SHA-256, fsync and an atomic commit included."""
    store = open_store(f"file://{folder}")
    with EmailgisticsClient(url(port), "key") as client, client.download("bench", str(size)) as download:
        return store.write(message_key("bench"), attachment_key(str(size)), "large.bin", download).bytes


def handler(port: int, size: int, folder: Path) -> int:
    """What one writes without much thought: no hash, and a file that is there before it is whole."""
    file = folder / "large.bin"
    with requests.get(  # noqa: S113  as one writes it without much thought
        download_url(port, size), headers={"Authorization": "Bearer key"}, stream=True
    ) as answer:
        answer.raise_for_status()
        with file.open("wb") as sink:
            for chunk in answer.iter_content(64 * 1024):
                sink.write(chunk)
    return file.stat().st_size


def main(who: str, port: str, size: str, folder: str) -> None:
    transfer = {"ours": ours, "handler": handler}[who]
    began = time.perf_counter()
    received = transfer(int(port), int(size), Path(folder))
    print(json.dumps({"seconds": time.perf_counter() - began, "bytes": received}))


if __name__ == "__main__":
    main(*sys.argv[1:])
