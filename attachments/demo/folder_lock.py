"""A file that is locked while a folder is in use, so that no two commands share it."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LOOK = 0.1  # seconds between two tries


class Locked(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[TextIO]:
    """Hold the lock of this file, which is made if need be; a process that keeps its descriptor open holds it as well.

    Raises `Locked` when another one still holds it after `seconds`.
    """
    end = time.monotonic() + seconds
    with path.open("a+", encoding="utf-8") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Locked from None
                time.sleep(LOOK)
            else:
                break
        lock.seek(0)
        yield lock
