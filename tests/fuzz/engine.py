"""Tries inputs on a reader: guided by coverage where atheris can be imported, else by what came of each input."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.readers import READERS, Reader

SHORT, LONG = 16 * 1024, 64 * 1024
"""Bytes of an input whose time is measured, and of one four times as long."""
SUSPICIOUS = 0.05  # seconds for SHORT bytes
MOST_GROWTH = 9.0  # of time, where the input grows fourfold: 16 would be quadratic, 4 is linear


class Finding(Exception):
    """An input that broke a promise; the error is its cause."""

    def __init__(self, data: bytes, text: str) -> None:
        super().__init__(text)
        self.data = data


@dataclass(frozen=True)
class Report:
    """How many inputs were tried, and how."""

    inputs: int
    seconds: float
    engine: str


def has_atheris() -> bool:
    """Whether inputs can be guided by coverage."""
    return importlib.util.find_spec("atheris") is not None


def run(name: str, seconds: float, *, seed: int = 0, guided: bool | None = None, corpus: Path | None = None) -> Report:
    """Tries inputs for so long: the seeds, long repetitions, then mutations. Raises Finding.

    The corpus folder keeps the inputs that reached something new, for the next run.
    """
    reader = READERS[name]
    began = time.monotonic()
    inputs = [*reader.seeds(), *(file.read_bytes() for file in sorted(corpus.iterdir()))] if corpus else reader.seeds()
    count = len(inputs)
    for data in inputs:
        attempt(reader, data)
    count += probe_growth(reader)
    left = max(1.0, seconds - (time.monotonic() - began))
    if has_atheris() if guided is None else guided:
        count += _guided(name, inputs, left, seed, corpus)
        engine = "guided by coverage (atheris)"
    else:
        count += _mutated(reader, inputs, left, seed)
        engine = "guided by outcome (built in)"
    return Report(count, time.monotonic() - began, engine)


def attempt(reader: Reader, data: bytes) -> str:
    """What came of an input. Raises Finding for all that escapes the reader's check."""
    try:
        return reader.check(data)
    except Exception as error:
        raise Finding(data, f"{type(error).__name__}: {error}") from error


def probe_growth(reader: Reader) -> int:
    """Repeats each token alone and inside each seed; four times the length must not take much more than four times.

    Returns the number of inputs. Raises Finding.
    """
    count = 0
    limit = min(SHORT, reader.largest // 4)
    for data in reader.seeds():
        middle = len(data) // 2
        for token in [data, *reader.tokens]:
            for before, after in ((b"", b""), (data[:middle], data[middle:])):
                short = before + token * (limit // len(token)) + after
                count += 1
                if _seconds(reader, short) > SUSPICIOUS:
                    long = before + token * (4 * limit // len(token)) + after
                    count += 1
                    ratios = [_seconds(reader, long) / _seconds(reader, short) for _ in range(3)]
                    if min(ratios) > MOST_GROWTH:
                        raise Finding(long, f"four times the input takes {min(ratios):.1f} times as long")
            if data is not reader.seeds()[0]:
                break  # the tokens once, the other seeds by themselves
    return count


def _seconds(reader: Reader, data: bytes) -> float:
    began = time.process_time()
    attempt(reader, data)
    return time.process_time() - began


def _mutated(reader: Reader, seeds: Sequence[bytes], seconds: float, seed: int) -> int:
    chance = random.Random(seed)
    corpus, known = list(seeds), {attempt(reader, data) for data in seeds}
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(chance, corpus, reader.tokens)[: reader.largest]
        label = attempt(reader, data)
        count += 1
        if label not in known and len(known) < 10_000:
            known.add(label)
            corpus.append(data)
    return count


def mutate(chance: random.Random, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """One of the corpus with a few changes."""
    data = chance.choice(corpus)
    for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
        start = chance.randint(0, len(data))
        end = min(len(data), start + chance.choice((0, 1, 1, 2, 4, 8, 32)))
        change: Callable[[], bytes] = chance.choice(
            (
                lambda: bytes([chance.randrange(256)]),
                lambda: chance.choice(tokens),
                lambda: chance.choice(tokens) * chance.choice((2, 3, 10, 100)),
                lambda: b"",
                lambda start=start, end=end, data=data: data[start:end] * 2,  # type: ignore[misc]
                lambda: _piece(chance, chance.choice(corpus)),
                lambda: str(chance.choice((0, -1, 255, 2**31, 2**63, 2**64, 10**400))).encode(),
                lambda: chr(chance.choice((0x130, 0x2028, 0x200D, 0xFFFF, 0x10FFFF, 0x1F3FB, 0x301, 0xAC00))).encode(),
            )
        )
        data = data[:start] + change() + data[end:]
    return data


def _piece(chance: random.Random, data: bytes) -> bytes:
    start = chance.randint(0, len(data))
    return data[start : start + chance.choice((1, 4, 16, 64, 1024))]


def _guided(name: str, seeds: Sequence[bytes], seconds: float, seed: int, corpus: Path | None) -> int:
    """Runs libFuzzer in a process of its own, which it ends itself; the number of inputs is what it says."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        kept, found, tokens = corpus or Path(folder, "corpus"), Path(folder, "found"), Path(folder, "tokens")
        for place in (kept, found):
            place.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds):
            (kept / f"seed-{number:03}").write_bytes(data)
        tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in READERS[name].tokens if len(token) < 64))
        options = [
            f"-max_total_time={int(max(1, seconds))}",
            f"-seed={seed + 1}",
            f"-dict={tokens}",
            f"-artifact_prefix={found}/",
            f"-max_len={min(READERS[name].largest, 4096)}",
            "-print_final_stats=1",
            "-timeout=30",
            "-rss_limit_mb=1024",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", name, str(kept), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        for file in _saved(found):
            raise Finding(file.read_bytes(), f"{file.name.partition('-')[0]}\n{_tail(done.stdout)}")
        count = re.search(r"number_of_executed_units:\s*(\d+)", done.stdout)
        if done.returncode or count is None:
            raise RuntimeError(f"the fuzzer ended with {done.returncode}: {_tail(done.stdout)}")
        return int(count[1])


def _saved(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir()))


def _tail(text: str) -> str:
    return "\n".join(line for line in text.splitlines()[-40:] if not line.startswith(("#", "INFO", "stat::")))


def _escaped(token: bytes) -> str:
    return "".join(chr(b) if 0x20 <= b < 0x7F and chr(b) not in '"\\' else f"\\x{b:02x}" for b in token)
