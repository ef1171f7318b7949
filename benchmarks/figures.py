"""What was measured: shown as a table, and kept in build/bench.json with its date and its machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Self

from rich.console import Console
from rich.table import Table

BUILD = Path(__file__).parents[1] / "build"
KEPT = BUILD / "bench.json"
WIDTH = 130
"""Columns of the table, however narrow the terminal (none at all in CI): no name of a figure may be cut."""


@dataclass(frozen=True)
class Figure:
    """One number, or the median of several with the least and the most of them."""

    name: str
    """As other things ask for it: `throughput.ours_vs_handler`."""
    value: float
    unit: str
    what: str
    """In words, for people."""
    least: float | None = None
    most: float | None = None

    @classmethod
    def median(cls, name: str, values: Sequence[float], unit: str, what: str) -> Self:
        return cls(name, round(median(values), 3), unit, what, round(min(values), 3), round(max(values), 3))


def show(part: str, figures: Sequence[Figure]) -> None:
    table = Table("figure", "value", "least to most", "what it is", title=part, title_justify="left")
    for figure in figures:
        spread = "" if figure.least is None else f"{figure.least:g} to {figure.most:g}"
        table.add_row(figure.name, f"{figure.value:g} {figure.unit}", spread, figure.what)
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)


def keep(part: str, figures: Sequence[Figure]) -> None:
    """Puts the part's figures in the place of its former ones; other parts keep theirs."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept[part] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "figures": {figure.name: asdict(figure) for figure in figures},
    }
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "processor": _after_colon(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "memory": _after_colon(Path("/proc/meminfo"), "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def _after_colon(file: Path, name: str) -> str | None:
    lines = file.read_text().splitlines() if file.exists() else ()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
