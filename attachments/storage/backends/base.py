"""The seam before each kind of object store: a handful of calls over paths, with the backend's own errors.

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
"""What tells one state of an object from the next: an ETag, a generation. Opaque."""


_SYMBOL = re.compile(r"(?=.{1,60}\Z)[A-Za-z0-9_.-]+(?: [A-Za-z0-9_.-]+)*", re.ASCII)


class Conflict(Exception):
    """Something stands under the path already, or it is not in the version that was named."""


@dataclass(frozen=True)
class ObjectHeaders:
    """What an object tells of itself to whoever fetches it."""

    content_type: str
    content_disposition: str | None = None


@dataclass(frozen=True)
class Listed:
    """One line of a listing."""

    path: str
    bytes: int
    modified: datetime | None = None
    """In UTC, where the listing tells."""


@dataclass(frozen=True)
class ObjectStat:
    """What is known of an object that stands under a path."""

    bytes: int
    modified: datetime
    """In UTC, to the second or finer."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What `Upload.commit` was given; empty for an object of somebody else's, or where it could not be kept."""


@dataclass(frozen=True)
class Orphan:
    """What a writer left behind that died: no reader sees it, but it may cost money."""

    what: str
    """For people: "open multipart upload", "temporary file" …; no file name."""
    key: str
    """Where, as `<message_key>/<attachment_key>` as far as that is known; no file name."""
    path: str
    begun: datetime | None
    """When it was begun, in UTC; None when nobody knows."""
    handle: str | None = None
    """What the backend needs besides to remove it."""

    def __repr__(self) -> str:
        return f"Orphan(what={self.what!r}, key={self.key!r})"


@dataclass(frozen=True)
class Failure:
    """What one of the backend's errors means to us."""

    kind: type[StoreError]
    symbol: str
    """The backend's own short word for it: `NoSuchBucket`, `ENOSPC`, `503`. Never a path or a text."""
    advice: str
    """What to do about it."""

    def as_error(self, doing: str, key: str | None) -> StoreError:
        """As it is raised: what could not be done, to which key, and what to do next."""
        whole = f"{doing} {key}" if key else doing
        # A service sends it: whatever is no word of that kind could be a name, or hold what moves a cursor.
        symbol = self.symbol if _SYMBOL.fullmatch(self.symbol) else "unknown"
        return self.kind(f"could not {whole} ({symbol})", key=key, remedy=self.advice)


class Upload(ABC):
    """One object on its way. Nothing is visible under its path before `commit` has returned or been cut off."""

    path: str
    """Where it is put; `commit` may have had to shorten the file name, where the store allows no longer ones."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Takes the next bytes, any number of them."""

    @abstractmethod
    def commit(self, metadata: Mapping[str, str]) -> None:
        """Puts all that was written under the path, with these metadata (ASCII names and values), as one step.

        Raises Conflict when something stands there and the backend can tell; what stands there stays.
        """

    @abstractmethod
    def discard(self) -> None:
        """Gives up what was written, as far as that is possible. Never raises; does nothing after a `commit`."""


class Backend(ABC):
    """An object store, or what can be made to look like one. Safe to share between threads.

    Opening the file system (credentials, connections) is left to the first call. Every method may raise the errors
    named in `errors`; `failure` says what each of them means.
    """

    errors: ClassVar[tuple[type[Exception], ...]]
    """What the backend's library raises."""
    metadata_is_proof: ClassVar[bool] = False
    """Whether the metadata are part of the object, so that nobody can change the bytes and leave them as they are."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The root as an fsspec URL, without credentials and without a slash at its end."""

    @abstractmethod
    def failure(self, error: Exception) -> Failure:
        """What an error means: which StoreError, its symbol and what to do."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[Listed]:
        """All objects whose paths begin so, in any order; `prefix` is empty or ends with a slash.

        Nothing when there are none. Raises one of `errors` when the store itself (the bucket) is gone.
        """

    def exists(self) -> bool:
        """Whether the root is there. True where none cannot be told from an empty one."""
        return True

    @abstractmethod
    def message_keys(self) -> Iterator[str]:
        """The first part of all paths, each once, dotted ones left out: a listing of one level."""

    @abstractmethod
    def stat(self, path: str) -> ObjectStat | None:
        """What stands there; None when nothing does."""

    def is_file(self, path: str) -> bool:
        """Whether a file stands there, of whatever making, that no link leads to."""
        return self.stat(path) is not None

    @abstractmethod
    def read(self, path: str) -> Iterator[bytes]:
        """The bytes that stand there, in blocks of at most some MiB. Closing the iterator ends the transfer."""

    @abstractmethod
    def get(self, path: str) -> tuple[bytes, Version] | None:
        """A small object as a whole, with the version that `put` can name; None when there is none.

        Of an object that is larger than a manifest may be, the first `MAX_READ` bytes: no reader takes these. Others
        may write to the store, and no more than that may be held of what they put there.
        """

    @abstractmethod
    def put(self, path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:
        """Writes a small object as one step in the place of that version; None: nothing stands there.

        Raises Conflict when that is not so, where the backend can tell.
        """

    @abstractmethod
    def upload(self, path: str, labels: ObjectHeaders) -> Upload:
        """Begins an object. Nothing need be sent before its first bytes are."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Removes an object, with whatever the backend keeps beside it. Nothing there is fine."""

    @abstractmethod
    def orphans(self) -> Iterator[Orphan]:
        """What dead and living writers have under way, outside of all paths that a reader sees."""

    @abstractmethod
    def clear(self, residue: Orphan) -> None:
        """Removes one of these. Gone already is fine."""


@contextmanager
def options_in_use(library: str, *known: type[Exception]) -> Iterator[None]:
    """A library that meets an option of a wrong kind raises whatever it likes, and late: that is UnsupportedStore.

    The `known` errors of its calls are left as they are.
    """
    try:
        yield
    except known:
        raise
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        # Not its text, which may quote the option's value.
        raise UnsupportedStore(
            f"{library} cannot use the store's options ({type(error).__name__}): one of them has a value of a wrong "
            "kind; compare them with docs/stores.md"
        ) from None


def check_options(kind: Any, options: Mapping[str, object], library: str, more: Set[str] = frozenset()) -> None:
    """Refuses options that the library's file system does not take, by name: a value may be a secret."""
    known = set(inspect.signature(kind.__init__).parameters) | more
    if unknown := sorted(set(options) - known):
        raise UnsupportedStore(f"{library} knows no option {', '.join(unknown)}; docs/stores.md has the usual ones")
