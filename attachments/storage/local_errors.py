"""The one place where the operating system's errors become the store's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from attachments.storage.backend import Failure
from attachments.storage.errors import AccessDenied, AlreadyExists, OutOfSpace, StoreError, StoreUnavailable

_KINDS: dict[int, tuple[type[StoreError], str]] = {
    number: (kind, advice)
    for kind, advice, names in (
        (OutOfSpace, "make room or raise the quota, then run it again", "ENOSPC EDQUOT EFBIG"),
        (
            AccessDenied,
            "let the worker's user write to the store's folder, on a file system that is not read-only",
            "EACCES EPERM EROFS",
        ),
        (
            AlreadyExists,
            "something that is not ours stands there and was left alone; move it away, then run it again",
            "EEXIST ENOTDIR EISDIR ELOOP ENOTEMPTY EMLINK ENXIO",
        ),
    )
    for name in names.split()
    if (number := getattr(errno, name, None)) is not None
}
# Whatever else an operating system may say is tried again: giving up on the unknown would lose mail.
_ELSE = (StoreUnavailable, "look at the disk or mount if this goes on; it is tried again")


@contextmanager
def translated(doing: str, *, key: str | None = None) -> Iterator[None]:
    """Turns any OSError inside into a StoreError that says what could not be done, to which key.

    The OSError holds paths, so nothing of it is kept but the symbol of its number.
    """
    try:
        yield
    except OSError as error:
        failure = failure_of(error)
    else:
        return
    raise failure.as_error(doing, key) from None


def failure_of(error: Exception) -> Failure:
    """What an operating system's error means; what has no number is something that may pass."""
    number = (isinstance(error, OSError) and error.errno) or 0
    kind, advice = _KINDS.get(number, _ELSE)
    return Failure(
        kind, errno.errorcode.get(number, "unknown" if isinstance(error, OSError) else type(error).__name__), advice
    )
