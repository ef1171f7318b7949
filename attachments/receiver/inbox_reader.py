"""Looks into an inbox that another process may be using, and disturbs nobody.

Readers of a WAL file wait for no writer and hold none up. A receiver that has ended in good order has left no log
beside the file; then it is read as it stands, so that no files are made which the receiver might not own.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from attachments.receiver.inbox import APPLICATION, Depth, InboxUnavailable

PATIENCE = 2.0  # seconds, should the receiver just be folding its log into the file


def read_depth(path: Path) -> Depth | None:
    """How many deliveries wait, and for how long; None when there is no inbox on this machine.

    Raises `InboxUnavailable`.
    """
    try:
        if not path.exists():
            return None
        if path.is_dir():
            raise InboxUnavailable(f"The inbox {path} cannot be read (it is a folder). Name a file in it.")
        is_at_rest = not path.with_name(f"{path.name}-wal").exists()
        try:
            return _depth(path, "immutable=1" if is_at_rest else "mode=ro")
        except sqlite3.Error:
            if not is_at_rest:
                raise
            return _depth(path, "mode=ro")  # a receiver has started meanwhile
    except OSError as error:
        raise InboxUnavailable(f"The inbox {path} cannot be read ({error.strerror}).") from None
    except sqlite3.Error as error:
        raise InboxUnavailable(f"The inbox {path} cannot be read ({error}).") from None


def _depth(path: Path, mode: str) -> Depth:
    address = f"file:{quote(str(path.absolute()))}?{mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE)) as database:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION:
            raise sqlite3.DatabaseError("it is another program's file")
        entries, oldest = database.execute("SELECT count(*), min(accepted) FROM entry").fetchone()
        return Depth(entries, max(0.0, time.time() - oldest) if oldest else 0.0)
