"""Reads an inbox that another process may be using, without disturbing it.

Readers of a WAL database neither wait for a writer nor block one. A receiver that stopped in order leaves no log beside
the file; the file is then opened as immutable, so that SQLite creates no files which the receiver might not own.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from attachments.receiver.inbox import APPLICATION_ID, Depth, InboxUnavailable

BUSY_TIMEOUT = 2.0  # seconds to wait while the receiver checkpoints its log


def read_depth(path: Path) -> Depth | None:
    """The number of waiting deliveries and the age of the oldest; None when there is no inbox on this machine.

    Raises `InboxUnavailable`.
    """
    try:
        if not path.exists():
            return None
        if path.is_dir():
            raise InboxUnavailable(
                f"The inbox {path} cannot be read (it is a folder). Set ATTACHMENTS_INBOX to a file in it."
            )
        is_at_rest = not path.with_name(f"{path.name}-wal").exists()
        try:
            return _depth(path, "immutable=1" if is_at_rest else "mode=ro")
        except sqlite3.Error:
            if not is_at_rest:
                raise
            return _depth(path, "mode=ro")  # a receiver has started in the meantime
    except OSError as error:
        raise InboxUnavailable(f"The inbox {path} cannot be read ({error.strerror}).") from None
    except sqlite3.Error as error:
        raise InboxUnavailable(f"The inbox {path} cannot be read ({error}).") from None


def _depth(path: Path, mode: str) -> Depth:
    address = f"file:{quote(str(path.absolute()))}?{mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT)) as database:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise sqlite3.DatabaseError("it is another program's file")
        entries, oldest = database.execute("SELECT count(*), min(accepted) FROM entry").fetchone()
        return Depth(entries, max(0.0, time.time() - oldest) if oldest else 0.0)
