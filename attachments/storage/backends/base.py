"""The interface of each kind of object store: a few calls over paths, with the backend's own errors.

`object_store.ObjectStore` makes a store of a backend. A backend knows paths, bytes and metadata; it knows nothing of
attachments or manifests. Paths are relative to the store's root. Paths whose first part begins with a dot are the
store's own and no reader's.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from attachments.storage.errors import StoreError, UnsupportedStore

Version = str
"""An opaque identifier of an object's state: an ETag or a generation."""


_SYMBOL = re.compile(r"(?=.{1,60}\Z)[A-Za-z0-9_.-]+(?: [A-Za-z0-9_.-]+)*", re.ASCII)


class Conflict(Exception):
    """An object already exists under the path, or does not have the given version."""


@dataclass(frozen=True)
class ObjectHeaders:
    """The HTTP headers with which an object is served."""

    content_type: str
    content_disposition: str | None = None


@dataclass(frozen=True)
class Listed:
    """One line of a listing."""

    path: str
    bytes: int
    modified: datetime | None = None
    """In UTC, if the listing has it."""


@dataclass(frozen=True)
class ObjectStat:
    """The properties of an existing object."""

    bytes: int
    modified: datetime
    """In UTC, to the second or finer."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The metadata from `Upload.commit`; empty for a foreign object, or if the store could not keep them."""


@dataclass(frozen=True)
class Orphan:
    """A leftover of a crashed writer: no reader sees it, but it may cost money."""

    what: str
    """For people: "open multipart upload", "temporary file" …; no file name."""
    key: str
    """Its place as `<message_key>/<attachment_key>`, as far as known; no file name."""
    path: str
    begun: datetime | None
    """When it was begun, in UTC; None if unknown."""
    handle: str | None = None
    """What else the backend needs to remove it."""

    def __repr__(self) -> str:
        return f"Orphan(what={self.what!r}, key={self.key!r})"


@dataclass(frozen=True)
class Failure:
    """The meaning of one of the backend's errors."""

    kind: type[StoreError]
    symbol: str
    """The backend's own short code for it: `NoSuchBucket`, `ENOSPC`, `503`. Never a path or a text."""
    advice: str
    """What to do about it."""

    def as_error(self, doing: str, key: str | None) -> StoreError:
        """The error to raise: what failed, for which key, and what to do next."""
        whole = f"{doing} {key}" if key else doing
        # A service sends it, so anything but a plain code could be a name or contain control characters.
        symbol = self.symbol if _SYMBOL.fullmatch(self.symbol) else "unknown"
        return self.kind(f"could not {whole} ({symbol})", key=key, remedy=self.advice)


class Upload(ABC):
    """An upload in progress. Nothing is visible under its path until `commit` has returned or was interrupted."""

    path: str
    """The object's path; `commit` shortens the file name if the store does not allow its length."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write the next bytes, any number of them."""

    @abstractmethod
    def commit(self, metadata: Mapping[str, str]) -> None:
        """Publish everything written under the path, with these metadata (ASCII names and values), atomically.

        Raises Conflict when something stands there and the backend can tell; what stands there stays.
        """

    @abstractmethod
    def discard(self) -> None:
        """Discard what was written, as far as possible. Never raises; no-op after a `commit`."""


class Backend(ABC):
    """An object store, or a file system used as one. Threads may share it.

    The first call opens the file system (credentials, connections). Every method may raise the errors in `errors`;
    `failure` translates them.
    """

    errors: ClassVar[tuple[type[Exception], ...]]
    """The errors of the backend's library."""
    metadata_is_proof: ClassVar[bool] = False
    """Whether the metadata are part of the object, so that its bytes cannot change without them."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The root as an fsspec URL, without credentials and trailing slash."""

    @abstractmethod
    def failure(self, error: Exception) -> Failure:
        """The meaning of an error: the kind of StoreError, its code and the remedy."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[Listed]:
        """All objects with this prefix, in any order; it is empty or ends with a slash.

        Nothing when there are none. Raises one of `errors` when the store itself (the bucket) is gone.
        """

    def exists(self) -> bool:
        """Whether the root exists. True if a missing root cannot be distinguished from an empty one."""
        return True

    @abstractmethod
    def message_keys(self) -> Iterator[str]:
        """The first parts of all paths, each once, without dotted ones: a listing of one level."""

    @abstractmethod
    def stat(self, path: str) -> ObjectStat | None:
        """The object's properties; None if it does not exist."""

    def is_file(self, path: str) -> bool:
        """Whether a regular file of any origin exists there, and not a link."""
        return self.stat(path) is not None

    @abstractmethod
    def read(self, path: str) -> Iterator[bytes]:
        """The object's bytes, in blocks of at most some MiB. Closing the iterator ends the transfer."""

    @abstractmethod
    def get(self, path: str) -> tuple[bytes, Version] | None:
        """A whole small object, with its version for `put`; None if it does not exist.

        Of an object that is larger than a manifest may be, the first `MAX_READ` bytes: no reader takes these. Others
        may write to the store, and no more than that may be held of what they put there.
        """

    @abstractmethod
    def put(self, path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:
        """Replace that version by a small object atomically; None: only if no object exists.

        Raises Conflict when that is not so, where the backend can tell.
        """

    @abstractmethod
    def upload(self, path: str, labels: ObjectHeaders) -> Upload:
        """Begin an upload. It may send nothing before the first bytes."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove an object and what the backend keeps beside it. No-op if missing."""

    @abstractmethod
    def orphans(self) -> Iterator[Orphan]:
        """Unfinished uploads of dead and live writers, outside the paths that readers see."""

    @abstractmethod
    def clear(self, residue: Orphan) -> None:
        """Remove one of these. No-op if missing."""


@contextmanager
def options_in_use(library: str, *known: type[Exception]) -> Iterator[None]:
    """Turn the errors that a library raises late for an invalid option into UnsupportedStore.

    The `known` errors of its calls pass unchanged.
    """
    try:
        yield
    except known:
        raise
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        # Leave out its text, which may quote the option's value.
        raise UnsupportedStore(
            f"{library} cannot use the store's options ({type(error).__name__}): one of them has a value of a wrong "
            "kind; compare them with docs/stores.md"
        ) from None


def check_options(kind: Any, options: Mapping[str, object], library: str, more: Set[str] = frozenset()) -> None:
    """Reject options that the library's file system does not have, by name, because a value may be a secret."""
    known = set(inspect.signature(kind.__init__).parameters) | more
    if unknown := sorted(set(options) - known):
        raise UnsupportedStore(f"{library} has no option {', '.join(unknown)}; docs/stores.md has the usual ones")
