"""One attachment of 1 GB from the API into a file in memory: ours, the obvious handler's and curl's.

Ours hashes, syncs and commits; the others do none of it. Contenders take turns, so that what else goes on in the
machine meets all of them, and each round gives a ratio.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.api_server import ONE_GB, download_url
from benchmarks.figures import Figure
from benchmarks.processes import JOB_SECONDS, measured, serving

ROUNDS = 7
CONTENDERS = ("ours", "handler", "curl")
RAM_DISK = Path("/dev/shm")  # noqa: S108  the disk in memory; the file in it gets a folder of its own


def measure() -> list[Figure]:
    if shutil.which("curl") is None:
        sys.exit("The benchmark compares with curl, which is missing: apt-get install curl")
    speeds: dict[str, list[float]] = {who: [] for who in CONTENDERS}
    with serving("benchmarks.api_server") as port:
        for _ in range(ROUNDS):
            for who in CONTENDERS:
                speeds[who].append(ONE_GB / 1e6 / _seconds(who, port))
    what = {"ours": "client and local store, with SHA-256, fsync and commit", "handler": "requests and open()"}
    figures = [
        Figure.median(f"throughput.{who}_mb_s", speeds[who], "MB/s", what.get(who, "curl -o")) for who in CONTENDERS
    ]
    for peer in CONTENDERS[1:]:
        ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds[peer], strict=True)]
        figures.append(Figure.median(f"throughput.ours_vs_{peer}", ratios, "×", f"speed of ours ÷ {peer}'s, by round"))
    return figures


def _seconds(who: str, port: int) -> float:
    with _folder() as folder:
        if who == "curl":
            return _curl(port, folder / "large.bin")
        result = measured("benchmarks.transfers", who, port, ONE_GB, folder)
        assert result["bytes"] == ONE_GB
        return float(result["seconds"])


def _curl(port: int, file: Path) -> float:
    command = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--write-out", "%{time_total}"]
    command += ["--header", "Authorization: Bearer key", "--output", str(file), download_url(port, ONE_GB)]
    pipe = subprocess.PIPE
    done = subprocess.run(command, stdout=pipe, text=True, timeout=JOB_SECONDS, check=True)  # noqa: S603  our own command
    assert file.stat().st_size == ONE_GB
    return float(done.stdout)


@contextmanager
def _folder() -> Iterator[Path]:
    """An empty folder in memory, so that no disk is measured; gone afterwards."""
    room = shutil.disk_usage(RAM_DISK).free if RAM_DISK.is_dir() else 0
    if room < 2 * ONE_GB:
        sys.exit(f"The throughput is measured on a tmpfs with 2 GB free; {RAM_DISK} has {room / 1e9:.1f} GB")
    with tempfile.TemporaryDirectory(prefix="attachments-bench-", dir=RAM_DISK) as folder:
        yield Path(folder)
