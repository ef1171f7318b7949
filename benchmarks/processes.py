"""The benchmark's own child processes: servers that live as long as a block, and jobs that print what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

END_SECONDS = 5.0
JOB_SECONDS = 1800.0


@contextmanager
def serving(module: str, *arguments: object) -> Iterator[int]:
    """The port of a server of ours (`end_with_parent`), which listens until the block ends."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603  our own command
        assert process.stdin
        assert process.stdout
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{module} did not start; what it said stands above")
            yield int(line)
        finally:
            process.stdin.close()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def announce(port: int) -> None:
    """For a server: tells `serving` its port, and ends this process when the one that started it does, however."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(port, flush=True)


def measured(module: str, *arguments: object) -> dict[str, Any]:
    """What a job printed as JSON, run in a fresh process."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipe = subprocess.PIPE
    done = subprocess.run(command, stdout=pipe, timeout=JOB_SECONDS, check=True)  # noqa: S603  our own command
    result: dict[str, Any] = json.loads(done.stdout)
    return result
