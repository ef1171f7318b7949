"""A marker object records that a store has encrypted; within a minute, every process refuses plaintext.

``<root>/.encryption/age`` is created before the first encrypted file. If a block has lost its recipients, its store
finds the marker and stores nothing until the block allows plaintext. Stores of older versions get the marker with their
next encrypted file. Anyone who may delete objects may delete the marker too: it protects against mistakes and lost
settings, not against those who control the store.
"""

from __future__ import annotations

import math
import os
import threading
import time

from attachments.storage.backends.base import Backend, Conflict, ObjectHeaders
from attachments.storage.conflicts import retry_conflicts
from attachments.storage.errors import PlaintextRefused, StoreUnavailable
from attachments.storage.local.folders import Folder

MARKER_FOLDER = ".encryption"
MARKER_NAME = "age"
MARKER_KEY = f"{MARKER_FOLDER}/{MARKER_NAME}"
MARKER_CONTENT = (
    b"Attachments in this store were encrypted to age recipients. While this file is here, the store refuses to store "
    b"attachments unencrypted, unless its block allows plaintext.\n"
)
_MARKER_HEADERS = ObjectHeaders("text/plain")
_MAX_CREATE_ATTEMPTS = 10


class EncryptionMarker:
    """The marker in an object store. Threads may share it. Raises the backend's errors.

    A store either encrypts or does not, so it calls `ensure_exists` or `refuse_plaintext`, never both.
    """

    def __init__(self, backend: Backend, recheck_interval: float) -> None:
        """`recheck_interval`: seconds for which a check that allowed a write is cached. A refusal is never cached."""
        self._backend = backend
        self._recheck_interval = recheck_interval
        self._lock = threading.Lock()
        self._checked_at = -math.inf

    def exists(self) -> bool:
        """Whether the store has encrypted. Not cached."""
        return self._backend.stat(MARKER_KEY) is not None

    def ensure_exists(self) -> None:
        """Create the marker if it is missing. Call it before storing something encrypted."""
        with self._lock:
            if self._is_check_fresh():
                return
            if not self.exists():
                self._create()
            self._checked_at = time.monotonic()

    def refuse_plaintext(self, key: str) -> None:
        """Raise PlaintextRefused if the store has encrypted. Call it before storing plaintext."""
        with self._lock:
            if self._is_check_fresh():
                return
            if self.exists():
                raise plaintext_refused_error(key)
            self._checked_at = time.monotonic()

    def _is_check_fresh(self) -> bool:
        return time.monotonic() - self._checked_at < self._recheck_interval

    def _create(self) -> None:
        try:
            retry_conflicts(self._try_to_create, _MAX_CREATE_ATTEMPTS)
        except Conflict:
            raise StoreUnavailable(
                "could not create the encryption marker", remedy="other writers conflicted; this will be retried"
            ) from None

    def _try_to_create(self) -> None:
        try:
            self._backend.put(MARKER_KEY, MARKER_CONTENT, _MARKER_HEADERS, replaces=None)
        except Conflict:
            # Another writer created the marker first, or failed while creating it; some services report both as a
            # conflict.
            if not self.exists():
                raise


def plaintext_refused_error(key: str) -> PlaintextRefused:
    """The error for an attachment that would be stored as plaintext."""
    return PlaintextRefused(
        f"attachment {key} was not stored: the store holds encrypted attachments, and its block has no age recipients "
        "now. "
        "Put the recipients back into the block, or switch on its field Allow plaintext to store unencrypted",
        key=key,
    )


def has_local_marker(root: Folder) -> bool:
    """Whether the local store in this folder has encrypted. Raises OSError."""
    if not root.has(MARKER_FOLDER):
        return False
    with root.folder(MARKER_FOLDER) as folder:
        return folder.has(MARKER_NAME)


def create_local_marker(root: Folder) -> None:
    """Create the marker of a local store if it is missing, durably. Raises OSError."""
    if has_local_marker(root):
        return
    with root.made(MARKER_FOLDER) as folder:
        with folder.opened(MARKER_NAME, os.O_WRONLY | os.O_CREAT) as fd:
            os.pwrite(fd, MARKER_CONTENT, 0)
            os.fsync(fd)
        folder.sync()
    root.sync()
