"""Whether an object store can be written and read, tried out with an object of our own.

Its path is always the same: what a prober that died has left is one small object, and the next one replaces it. It is
written as a manifest is, so it needs the rights that a manifest's change needs, and no more.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable

from attachments.storage.backends.base import Backend, Conflict, ObjectHeaders
from attachments.storage.errors import StoreUnavailable
from attachments.storage.store import ProbeResult

PATH = ".probe/doctor"
_LABELS = ObjectHeaders("application/octet-stream")
_TRIES = 10
"""Times that it is tried against other probers."""


def probe(backend: Backend, is_refused: Callable[[Exception], bool]) -> ProbeResult:
    """What came of it. `is_refused` says whether an error is a lack of rights. Raises the backend's errors."""
    for attempt in range(_TRIES):
        try:
            return _tried(backend, is_refused)
        except Conflict:
            time.sleep(random.uniform(0.01, 0.05) * (attempt + 1))  # noqa: S311  # no secret
    raise StoreUnavailable("could not probe the store: it does not return what was written")


def _tried(backend: Backend, is_refused: Callable[[Exception], bool]) -> ProbeResult:
    found = backend.get(PATH)
    # Twice, since to replace what stands there may need another right than to make it.
    for _ in range(2):
        content = secrets.token_bytes(64)
        backend.put(PATH, content, _LABELS, replaces=found and found[1])
        found = backend.get(PATH)
        if found is None or found[0] != content:
            raise Conflict  # another prober was here; or the store has lost it, and so it will again
    try:
        backend.remove(PATH)
    except backend.errors as error:
        if is_refused(error):
            return "kept"
        raise
    return "works"
