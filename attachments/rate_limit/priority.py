"""Whether calls are live mail's or a backfill's: live mail goes first."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_low_priority: ContextVar[bool] = ContextVar("attachments_low_priority", default=False)


@contextmanager
def low_priority() -> Iterator[None]:
    """Calls in the block, and in threads that are started from it, are a backfill's."""
    before = _low_priority.set(True)
    try:
        yield
    finally:
        _low_priority.reset(before)


def is_low_priority() -> bool:
    """Whether the caller's calls are a backfill's."""
    return _low_priority.get()
