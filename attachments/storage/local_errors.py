"""The one place where the operating system's errors become the store's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

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
        symbol = errno.errorcode.get(error.errno or 0, "unknown")
        kind, advice = _KINDS.get(error.errno or 0, _ELSE)
    else:
        return
    whole = f"{doing} {key}" if key else doing
    raise kind(f"could not {whole} ({symbol}): {advice}", key=key) from None
