"""The demo's folder: emptied for each run, without touching anything that the demo did not create."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attachments.demo.folder_lock import Locked, locked

MARKER = ".attachments-demo"
"""A file in every folder of the demo, locked while a demo runs there."""
DEMO_FILES = ("attachments", "mail", "prefect", "inbox.sqlite", "inbox.sqlite-shm", "inbox.sqlite-wal")
LOGS = ("prefect-server.log", "receiver.log", "worker.log")
_NOTE = "`attachments demo` created this folder and removes its files at the next run.\n"


class FolderInUse(Exception):
    """The folder cannot be used; the text says why and what to do."""


@contextmanager
def clean_folder(folder: Path) -> Iterator[Path]:
    """The folder without an earlier demo's files, locked against other demos.

    Raises `NotOurs` for a non-empty folder that no demo created, and if another demo runs in it.
    """
    marker = folder / MARKER
    if folder.exists() and not marker.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderInUse(
            f"{folder} exists and was not created by this demo, so nothing in it was touched. Choose another folder: "
            "attachments demo --folder FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(marker) as lock:
            lock.truncate(0)
            lock.write(_NOTE)
            lock.flush()
            for name in (*DEMO_FILES, *LOGS):
                _remove(folder / name)
            yield folder
    except Locked:
        raise FolderInUse(
            f"Another demo is running in {folder}. End it with Ctrl-C, or choose another folder."
        ) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
