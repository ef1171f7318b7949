"""Translates the operating system's errors into the store's."""

from __future__ import annotations

import errno
import ftplib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from attachments.storage.backends.base import Failure
from attachments.storage.errors import (
    AccessDenied,
    AlreadyExists,
    OutOfSpace,
    StoreError,
    StoreUnavailable,
    UnsupportedStore,
)

_KINDS: dict[int, tuple[type[StoreError], str]] = {
    number: (kind, advice)
    for kind, advice, names in (
        (OutOfSpace, "free space or raise the quota, then run it again", "ENOSPC EDQUOT EFBIG EOVERFLOW"),
        (
            AccessDenied,
            "let the worker's user write to the store's folder, on a file system that is not read-only",
            "EACCES EPERM EROFS",
        ),
        (
            AccessDenied,
            "the folder is encrypted and locked; unlock it for the worker, then run it again",
            "ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED",
        ),
        (
            UnsupportedStore,
            "its path or names are too long for the file system; it must allow 82 bytes a name, and the store's path",
            "ENAMETOOLONG",
        ),
        (
            UnsupportedStore,
            "the file system lacks what a store needs, or does not accept such a name; see docs/stores.md",
            "EINVAL EILSEQ ENOSYS ENOTSUP EOPNOTSUPP",
        ),
        (
            UnsupportedStore,
            "the folders of the store must be on one file system, without mounts or quotas in between",
            "EXDEV",
        ),
        (
            AlreadyExists,
            "something exists there that is not this product's; it was left alone; move it away, then run it again",
            "EEXIST ENOTDIR EISDIR ELOOP ENOTEMPTY EMLINK ENXIO",
        ),
    )
    for name in names.split()
    if (number := getattr(errno, name, None)) is not None
}
# Unknown errors are retried, because giving up on them would lose mail.
_ELSE = (StoreUnavailable, "check the disk or mount if this persists; it is retried")


@contextmanager
def translated(doing: str, *, key: str | None = None) -> Iterator[None]:
    """Translate an OSError into a StoreError that says what failed, for which key.

    The OSError holds paths, so nothing of it is kept but the symbol of its number.
    """
    try:
        yield
    except OSError as error:
        failure = failure_of(error)
    else:
        return
    raise failure.as_error(doing, key) from None


_FTP: Mapping[str, tuple[type[StoreError], str]] = {  # RFC 959, section 4.2; 550 may pass: it says too many things
    "530": (AccessDenied, "check user name and password in the store's options"),
    "532": (AccessDenied, "the server requires an account for storing files; ask its administrator"),
    "552": (OutOfSpace, "free space or raise the quota, then run it again"),
    "553": (UnsupportedStore, "the server does not accept such a name; choose a shorter path"),
    **dict.fromkeys(
        ("500", "501", "502", "503", "504"),
        (UnsupportedStore, "the server cannot do what a store needs; use another server, or the storage behind it"),
    ),
}


def failure_of(error: Exception) -> Failure:
    """The meaning of an error of the operating system or an fsspec file system; unknown ones count as transient."""
    if isinstance(error, ftplib.error_perm) and (known := _FTP.get(str(error)[:3])):
        return Failure(known[0], str(error)[:3], known[1])
    if isinstance(error, ImportError):
        lacking = f"the package {error.name}" if error.name else "a package that this file system needs"
        return Failure(UnsupportedStore, type(error).__name__, f"{lacking} is not installed; install it for the worker")
    if isinstance(error, NotImplementedError):
        return Failure(UnsupportedStore, "NotImplementedError", "this file system cannot do what a store needs")
    number = (isinstance(error, OSError) and error.errno) or 0
    kind, advice = _KINDS.get(number, _ELSE)
    return Failure(
        kind, errno.errorcode.get(number, "unknown" if isinstance(error, OSError) else type(error).__name__), advice
    )
