"""The marker of a store that has encrypted: the store refuses plaintext, in every process within a minute.

``<root>/.encryption/age`` is created before the first encrypted file. A store whose block has lost its recipients sees
it and stores nothing, until the block allows plaintext. Stores of versions without the marker get it with their next
encrypted file. Anyone who may delete objects in the store may delete the marker too: it guards against mistakes and
lost settings, not against those who control the store.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time

from attachments.storage.backends.base import Backend, Conflict, ObjectHeaders
from attachments.storage.errors import PlaintextRefused, StoreUnavailable
from attachments.storage.local.folders import Folder

FOLDER = ".encryption"
NAME = "age"
MARKER = f"{FOLDER}/{NAME}"
CONTENT = (
    b"Attachments in this store were encrypted to age recipients. While this file is here, the store refuses to store "
    b"attachments unencrypted, unless its block allows plaintext.\n"
)
LOOK_AGAIN = 60.0
"""Seconds for which an answer that let a file be stored counts. A refusal asks each time."""

_LABELS = ObjectHeaders("text/plain")
_TRIES = 10


class EncryptionMarker:
    """The marker in an object store. Safe to share between threads. Raises the backend's errors.

    A store either encrypts or does not, so it calls `create` or `refuse_plaintext`, never both.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._answered_at = -math.inf

    def exists(self) -> bool:
        """Whether the store has encrypted. Asks the store."""
        return self._backend.stat(MARKER) is not None

    def create(self) -> None:
        """Create the marker where it is missing: to be called before something encrypted is stored."""
        with self._lock:
            if self._is_recent():
                return
            if not self.exists():
                self._create()
            self._answered_at = time.monotonic()

    def refuse_plaintext(self, key: str) -> None:
        """Raises PlaintextRefused when the store has encrypted: to be called before plaintext is stored."""
        with self._lock:
            if self._is_recent():
                return
            if self.exists():
                raise plaintext_refused(key)
            self._answered_at = time.monotonic()

    def _is_recent(self) -> bool:
        return time.monotonic() - self._answered_at < LOOK_AGAIN

    def _create(self) -> None:
        for attempt in range(_TRIES):
            try:
                self._backend.put(MARKER, CONTENT, _LABELS, replaces=None)
            except Conflict:
                # Another writer was faster; or it has failed since, which some services report in the same way.
                if self.exists():
                    return
                time.sleep(random.uniform(0.01, 0.05) * (attempt + 1))  # noqa: S311  # no secret
            else:
                return
        raise StoreUnavailable("could not mark the store as encrypted", remedy="others write to it; it is tried again")


def plaintext_refused(key: str) -> PlaintextRefused:
    """The error for an attachment that would be stored unencrypted."""
    return PlaintextRefused(
        f"attachment {key} was not stored: the store has encrypted before, and its block has no age recipients now. "
        "Put the recipients back into the block, or switch on its field Allow plaintext to store unencrypted",
        key=key,
    )


def is_marked(root: Folder) -> bool:
    """Whether the local store in this folder has encrypted. Raises OSError."""
    if not root.has(FOLDER):
        return False
    with root.folder(FOLDER) as folder:
        return folder.has(NAME)


def mark(root: Folder) -> None:
    """Create the marker of a local store where it is missing, so that it survives a power failure. Raises OSError."""
    if is_marked(root):
        return
    with root.made(FOLDER) as folder:
        with folder.opened(NAME, os.O_WRONLY | os.O_CREAT) as fd:
            os.pwrite(fd, CONTENT, 0)
            os.fsync(fd)
        folder.sync()
    root.sync()
