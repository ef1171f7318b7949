"""The demo's folder: made afresh for each run, without touching what is not the demo's."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attachments.demo.folder_lock import Locked, locked

MARKER = ".attachments-demo"
"""Stands in every folder that the demo has made its own, and is locked while a demo runs there."""
OURS = ("attachments", "mail", "prefect", "inbox.sqlite", "inbox.sqlite-shm", "inbox.sqlite-wal")
LOGS = ("prefect-server.log", "receiver.log", "worker.log")
_NOTE = "`attachments demo` made this folder and removes its files at the next run.\n"


class NotOurs(Exception):
    """The folder cannot be used; the text says why and what to do."""


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """The folder without what an earlier demo left, and with nobody else's demo in it.

    Raises `NotOurs` for a folder that holds something and was not made by a demo.
    """
    marker = folder / MARKER
    if folder.exists() and not marker.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise NotOurs(
            f"{folder} exists and was not made by this demo, so nothing in it was touched. "
            "Name another folder: attachments demo --folder FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(marker) as lock:
            lock.truncate(0)
            lock.write(_NOTE)
            lock.flush()
            for name in (*OURS, *LOGS):
                _remove(folder / name)
            yield folder
    except Locked:
        raise NotOurs(f"Another demo is running in {folder}. End it with Ctrl-C, or name another folder.") from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
