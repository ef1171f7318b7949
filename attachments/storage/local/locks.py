"""Locks between processes, threads and, if the file system supports it, machines."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from attachments.storage.errors import StoreUnavailable, UnsupportedStore
from attachments.storage.local.folders import Folder

LOCKS = ".locks"
"""Folder in the root; holds at most 256 empty files, which are never deleted.

Deleting a lock file while others wait for it lets two in at once; locking the message's own folder does not
work on NFS, which wants a descriptor open for writing.
"""

PATIENCE = 60.0
"""Seconds to wait for a lock. It is held for milliseconds, so a longer holder is stopped or stuck."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_TAKEN = {errno.EAGAIN, errno.EACCES}


@contextmanager
def locked(root: Folder, message_key: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of this message. Not re-entrant; messages whose keys begin alike share a lock."""
    with root.made(LOCKS) as locks, locks.opened(message_key[:2], os.O_RDWR | os.O_CREAT) as fd:
        deadline = time.monotonic() + patience
        while not claim(fd):
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"another process has held the lock of message {message_key} for {patience:.0f} s; "
                    "if it is stopped, end it; this is retried",
                    key=message_key,
                )
            # Random pauses, so that the waiters do not stay in step.
            time.sleep(random.uniform(0.002, 0.02))  # noqa: S311  # no secret
        try:
            yield
        finally:
            # Closing is not enough, because a forked child may have a copy of the descriptor.
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)


def claim(fd: int) -> bool:
    """Lock an open file for this descriptor; False if another one has the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            problem = errno.errorcode[error.errno]
        elif error.errno in _TAKEN:
            return False
        else:
            raise
    else:
        return True
    raise UnsupportedStore(
        f"the store's file system has no file locks ({problem}); "
        "put the store on one that has, or mount this one with locks"
    )
