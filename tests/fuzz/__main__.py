"""`python -m tests.fuzz READER --seconds N`: prints how many inputs were tried; 1 when one broke a promise."""

import argparse
import hashlib
import sys
import traceback
from pathlib import Path

from tests.fuzz.engine import Finding, run
from tests.fuzz.readers import READERS

FOUND = Path("build/fuzz")


def main() -> int:
    """0 when every input kept every promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what reached something new")
    parser.add_argument("--built-in", action="store_true", help="without atheris, though it can be imported")
    parser.add_argument("--input", type=Path, help="try this one file alone")
    options = parser.parse_args()
    if options.input:
        print(READERS[options.reader].check(options.input.read_bytes()))
        return 0
    guided = False if options.built_in else None
    try:
        report = run(options.reader, options.seconds, seed=options.seed, guided=guided, corpus=options.corpus)
    except Finding as finding:
        FOUND.mkdir(parents=True, exist_ok=True)
        file = FOUND / f"{options.reader}-{hashlib.sha256(finding.data).hexdigest()[:12]}"
        file.write_bytes(finding.data)
        traceback.print_exception(finding)
        print(f"{options.reader}: finding, kept in {file} ({len(finding.data)} bytes): {finding.data[:300]!r}")
        return 1
    print(
        f"{options.reader}: {report.inputs:,} inputs in {report.seconds:.0f} s, {report.engine}; no finding", flush=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
