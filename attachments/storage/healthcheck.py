"""Tests whether an object store can be written and read, with a small temporary object.

Its path is always the same: what a prober that died has left is one small object, and the next one replaces it. It is
written as a manifest is, so it needs the rights that a manifest's change needs, and no more.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from attachments.storage.backends.base import Backend, Conflict, ObjectHeaders
from attachments.storage.conflicts import retry_conflicts
from attachments.storage.errors import StoreUnavailable
from attachments.storage.store import ProbeResult

PATH = ".probe/doctor"
_LABELS = ObjectHeaders("application/octet-stream")
_TRIES = 10
"""Attempts despite conflicts with other probes."""


def probe(backend: Backend, is_refused: Callable[[Exception], bool]) -> ProbeResult:
    """Probe the store. `is_refused` tells whether an error means missing permissions. Raises the backend's errors."""
    try:
        return retry_conflicts(lambda: _tried(backend, is_refused), _TRIES)
    except Conflict:
        raise StoreUnavailable("could not probe the store: it does not return what was written") from None


def _tried(backend: Backend, is_refused: Callable[[Exception], bool]) -> ProbeResult:
    found = backend.get(PATH)
    # Twice, because replacing an object may need another permission than creating it.
    for _ in range(2):
        content = secrets.token_bytes(64)
        backend.put(PATH, content, _LABELS, replaces=found and found[1])
        found = backend.get(PATH)
        if found is None or found[0] != content:
            raise Conflict  # another probe interfered, or the store loses objects, which a retry shows
    try:
        backend.remove(PATH)
    except backend.errors as error:
        if is_refused(error):
            return "kept"
        raise
    return "works"
