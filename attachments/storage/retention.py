"""Retention: what has been stored for long enough goes, and its manifest says so.

Files go first, then the manifest is rewritten. Whoever dies in between leaves an entry "stored" without an object. It
is still due: the next purge records it. The record stays, so that nobody fetches the content again.

What is due is judged by the manifest and by the store, and the later of the two counts: a manifest can be altered, and
an object restored. "Now" is the earlier of the store's clock and ours, so that a wrong clock removes nothing.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from attachments.foundation import cancellation
from attachments.storage.errors import (
    AccessDenied,
    InvalidManifest,
    NotFound,
    OutOfSpace,
    StoreError,
    StoreUnavailable,
    UnsupportedStore,
)
from attachments.storage.keys import candidate_keys, is_key
from attachments.storage.manifest import Manifest, ManifestAttachment
from attachments.storage.store import Inventory, Store

TRIES = 5
BACK_OFF = 1.0
"""Seconds before a call is tried again that may succeed later; doubled each time: 15 seconds in all."""
GIVE_UP = 20
"""Messages that fail one after the other for a reason that will meet the next one as well."""
REPORT = 30.0
"""Seconds between two reports of progress."""

_EVERYWHERE = (StoreUnavailable, AccessDenied, OutOfSpace, NotFound, UnsupportedStore)

T = TypeVar("T")


class Holds:
    """Messages that must stay, named by their ids or keys. Safe to share between threads."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._names: dict[str, set[int]] = {}
        self._met: set[int] = set()
        self._count = 0
        for text in filter(None, map(str.strip, texts)):
            for key in candidate_keys(text):  # each of them: who knows that no id looks like a key?
                self._names.setdefault(key, set()).add(self._count)
            self._count += 1

    def __contains__(self, message_key: str) -> bool:
        names = self._names.get(message_key, set())
        self._met |= names
        return bool(names)

    @property
    def unmet(self) -> int:
        """How many of them name no message that was asked about: typing errors, perhaps."""
        return self._count - len(self._met)


class Budget:
    """How many attachments may go in a run. Safe to share between threads."""

    def __init__(self, most: int | None = None) -> None:
        self._left = most
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more may go."""
        with self._lock:
            if self._left is None:
                return True
            may_go = self._left > 0
            self._left -= may_go
            return may_go

    def give_back(self) -> None:
        """It did not go."""
        with self._lock:
            if self._left is not None:
                self._left += 1

    @property
    def is_spent(self) -> bool:
        """Whether no more may go."""
        return self._left is not None and self._left <= 0


@dataclass(frozen=True)
class Policy:
    """What goes, and what is done about it."""

    stored_before: datetime
    """In UTC; what was stored earlier is due."""
    dry_run: bool = True
    forget: bool = False
    """Whether a manifest goes as well once nothing of its message is left."""
    holds: Holds = field(default_factory=Holds)


@dataclass(frozen=True)
class Gone:
    """An attachment that was removed. In a dry run: that would be."""

    place: str
    """Its message's key and its own."""
    bytes: int
    stored_at: datetime | None


@dataclass(frozen=True)
class Looked:
    """What became of one message. In a dry run: what would have."""

    message_key: str
    due: int = 0
    """Attachments that their manifest says to be old enough."""
    purged: int = 0
    bytes: int = 0
    gone: tuple[Gone, ...] = ()
    is_held: bool = False
    """Whether something of it would have gone but for a hold."""
    younger: int = 0
    """Of the due ones those that came to the store later than their manifest says, and stay."""
    refused: tuple[str, ...] = ()
    """Of the due ones, by key, those whose manifest names a place that is not theirs."""
    unrecorded: int = 0
    """Objects that stand there although no manifest says so. They are left alone."""
    forgotten: bool = False
    failure: StoreError | None = None


def purge_message(store: Store, message_key: str, policy: Policy, budget: Budget) -> Looked:
    """Removes what is due of one message: one small read when nothing is. Raises StoreError where nothing was done."""
    is_listed = message_key in policy.holds
    manifest = _patiently(lambda: store.read_manifest(message_key))
    if manifest is None:
        standing = _patiently(lambda: store.inventory(message_key))
        return Looked(message_key, unrecorded=len(standing.objects))
    due = [entry for entry in manifest.attachments if _is_due(entry, policy)]
    if not due and not (policy.forget and _is_over(manifest, policy)):
        return Looked(message_key)

    standing = _patiently(lambda: store.inventory(message_key))
    recorded = {entry.key for entry in manifest.attachments if entry.outcome == "stored"}
    looked = Looked(message_key, due=len(due), unrecorded=len(standing.objects.keys() - recorded))
    if is_listed or standing.is_held:
        return replace(looked, is_held=True)
    ours = [entry for entry in due if entry.is_at_home(message_key)]
    old = [entry for entry in ours if _is_old(entry, standing, policy)]
    looked = replace(
        looked,
        refused=tuple(_place(entry, message_key) for entry in due if not entry.is_at_home(message_key)),
        younger=len(ours) - len(old),
    )
    return _removed(store, manifest, old, standing, policy, budget, looked)


def _removed(
    store: Store,
    manifest: Manifest,
    old: list[ManifestAttachment],
    standing: Inventory,
    policy: Policy,
    budget: Budget,
    looked: Looked,
) -> Looked:
    key = looked.message_key
    gone: list[ManifestAttachment] = []
    failure: StoreError | None = None
    for entry in old:
        if cancellation.is_cancelled() or not budget.take():
            break
        try:
            goes = policy.dry_run or _remove(store, entry, policy)
        except StoreError as error:
            budget.give_back()
            failure = failure or error
            # One object may be under a legal hold and its neighbour not.
            if isinstance(error, _EVERYWHERE) and not isinstance(error, AccessDenied):
                break
        except cancellation.RunCancelled:
            break  # while it waited to try again; what has gone is recorded all the same
        else:
            if goes:
                gone.append(entry)
            else:
                budget.give_back()
                looked = replace(looked, younger=looked.younger + 1)
    at = datetime.now(UTC)
    try:
        if gone and policy.dry_run:
            manifest = _with_purged(manifest, gone, at, key)
        elif gone:
            manifest = _patiently(lambda: store.update_manifest(key, lambda now: _with_purged(now, gone, at, key)))
        listed = tuple(_gone(entry, standing, key) for entry in gone)
        looked = replace(looked, purged=len(listed), bytes=sum(one.bytes for one in listed), gone=listed)
        if policy.forget and failure is None and not looked.unrecorded and _is_over(manifest, policy):
            forgotten = policy.dry_run or store.remove_manifest(key, lambda current: _is_over(current, policy))
            looked = replace(looked, forgotten=forgotten)
    except StoreError as error:
        failure = failure or error
    cancellation.raise_if_cancelled()
    return replace(looked, failure=failure)


def _remove(store: Store, entry: ManifestAttachment, policy: Policy) -> bool:
    """One that is gone already as well: a purge that died may have left what is kept beside it.

    False when another run has stored it anew since the store was asked what stands there.
    """
    key = entry.key or ""
    return _patiently(lambda: store.remove(key, stored_before=policy.stored_before))


def _with_purged(current: Manifest | None, gone: list[ManifestAttachment], at: datetime, key: str) -> Manifest:
    """The manifest with what has gone. What was stored anew meanwhile is another storing, and stays as it is."""
    if current is None:
        raise InvalidManifest(
            f"the manifest of message {key} was removed or damaged while its message was purged; what is gone is gone, "
            "and whoever downloads the message again fetches it again",
            key=key,
        )
    storings = {(entry.attachment_key, entry.key, entry.stored_at) for entry in gone}
    entries = tuple(
        entry.as_purged(at)
        if entry.outcome == "stored" and (entry.attachment_key, entry.key, entry.stored_at) in storings
        else entry
        for entry in current.attachments
    )
    return current.model_copy(update={"attachments": entries, "updated": at})


def _is_due(entry: ManifestAttachment, policy: Policy) -> bool:
    """By its manifest. One that does not say when it was stored is never due."""
    return entry.outcome == "stored" and entry.stored_at is not None and entry.stored_at < policy.stored_before


def _is_old(entry: ManifestAttachment, standing: Inventory, policy: Policy) -> bool:
    """By the store. What is gone already has no age: its manifest's word counts."""
    seen = standing.objects.get(entry.key or "")
    return seen is None or seen.modified < policy.stored_before


def _is_over(manifest: Manifest, policy: Policy) -> bool:
    """Whether nothing of the message is in the store or still to come, and its time has passed as well."""
    if any(entry.outcome in ("stored", "failed") for entry in manifest.attachments):
        return False
    storings = [entry.stored_at for entry in manifest.attachments if entry.stored_at is not None]
    return max(storings, default=manifest.updated) < policy.stored_before


def _gone(entry: ManifestAttachment, standing: Inventory, message_key: str) -> Gone:
    seen = standing.objects.get(entry.key or "")
    return Gone(_place(entry, message_key), seen.bytes if seen else 0, entry.stored_at)


def _place(entry: ManifestAttachment, message_key: str) -> str:
    """Where it should be. What else the manifest says may hold anything, a file name as well."""
    return f"{message_key}/{entry.attachment_key}" if is_key(entry.attachment_key) else message_key


def _patiently(ask: Callable[[], T]) -> T:
    """What the store answers; asked again for a while when that may help. Raises StoreError, RunCancelled."""
    for attempt in range(TRIES - 1):
        try:
            return ask()
        except StoreError as error:
            if not error.retryable:
                raise
        cancellation.sleep(BACK_OFF * 2**attempt * random.uniform(0.8, 1.2))  # noqa: S311  # no secret
    return ask()


@dataclass
class Tally:
    """What a purge has done so far. In a dry run: what it would have."""

    messages: int = 0
    due: int = 0
    purged: int = 0
    purged_messages: int = 0
    bytes: int = 0
    held: int = 0
    younger: int = 0
    refused: int = 0
    unrecorded: int = 0
    forgotten: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Messages, by the code of what went wrong."""
    first: StoreError | None = None
    """The first thing that went wrong."""
    lasting: int = 0
    """Failures that do not pass by themselves."""
    in_a_row: int = 0
    gave_up: bool = False
    """Whether the store seemed to be away, and the rest was left for another run."""
    is_spent: bool = False
    """Whether as many went as may go in a run."""

    def add(self, looked: Looked) -> None:
        """Counts one message."""
        self.messages += 1
        self.due += looked.due
        self.purged += looked.purged
        self.purged_messages += looked.purged > 0
        self.bytes += looked.bytes
        self.held += looked.is_held
        self.younger += looked.younger
        self.refused += len(looked.refused)
        self.unrecorded += looked.unrecorded
        self.forgotten += looked.forgotten
        if looked.failure is None:
            self.in_a_row = 0
        else:
            self.fail(looked.failure)

    def fail(self, error: StoreError) -> None:
        """Counts a failure."""
        self.failed[error.outcome_code] += 1
        self.first = self.first or error
        self.lasting += not error.retryable
        self.in_a_row += isinstance(error, _EVERYWHERE)
        self.gave_up = self.gave_up or self.in_a_row >= GIVE_UP or isinstance(error, NotFound)


@dataclass(frozen=True)
class Pace:
    """How hard the store is pressed."""

    at_once: int = 8
    """Messages at a time."""
    per_second: int = 100
    """Messages begun in a second, at most."""


def purge(
    store: Store,
    policy: Policy,
    budget: Budget,
    pace: Pace,
    *,
    on_message: Callable[[Looked], object] = lambda _: None,
    on_progress: Callable[[Tally], object] = lambda _: None,
) -> Tally:
    """Goes through all messages of a store, a few at a time.

    Memory does not grow with their number where the store names them in parts; over SFTP and other file systems it
    holds their keys.

    One message's failure, whatever it is, does not stop the others, unless the store itself seems to be away. Killed
    at any moment and run again, it ends as if it had not been killed. Raises RunCancelled.
    """
    tally = Tally()
    keys = _listed(store, tally)
    told = time.monotonic()
    for looked in _looked(store, keys, policy, budget, pace, lambda: not tally.gave_up and not budget.is_spent):
        tally.add(looked)
        on_message(looked)
        if time.monotonic() - told > REPORT:
            told = time.monotonic()
            on_progress(tally)
    tally.is_spent = budget.is_spent
    return tally


def _listed(store: Store, tally: Tally) -> Iterator[str]:
    """The keys of all messages. A listing that breaks off is a failure, and the end of this run."""
    try:
        yield from store.message_keys()
    except StoreError as error:
        tally.fail(error)
        tally.gave_up = True


def _looked(
    store: Store,
    keys: Iterator[str],
    policy: Policy,
    budget: Budget,
    pace: Pace,
    goes_on: Callable[[], bool],
) -> Iterator[Looked]:
    """What became of each message; those that were begun when it no longer goes on as well."""

    def look(key: str) -> Looked:
        cancellation.raise_if_cancelled()
        try:
            return purge_message(store, key, policy, budget)
        except StoreError as error:
            return Looked(key, failure=error)
        except cancellation.RunCancelled:
            raise
        except Exception as error:  # noqa: BLE001  one message that nobody thought of must not keep all others for ever
            cancellation.raise_if_cancelled()
            return Looked(key, failure=_unexpected(error, key))

    waiting: list[Future[Looked]] = []
    due = time.monotonic()
    with ThreadPoolExecutor(pace.at_once, thread_name_prefix="purge") as pool:
        try:
            while True:
                while len(waiting) < 2 * pace.at_once and goes_on() and (key := next(keys, None)) is not None:
                    due = max(due + 1 / pace.per_second, time.monotonic() - 1)
                    cancellation.sleep(max(0.0, due - time.monotonic()))
                    # Threads do not inherit whether their run is cancelled.
                    waiting.append(pool.submit(copy_context().run, look, key))
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _unexpected(error: Exception, key: str) -> StoreError:
    """Its type and place alone: its own text could hold a file name."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return StoreError(
        f"could not purge message {key} ({type(error).__name__} in {place.name}, line {place.lineno}): "
        "please report this with the version you run",
        key=key,
    )


def stored_before(older_than: timedelta, store: Store) -> datetime:
    """The moment before which an object of that age was stored, by the earlier of two clocks.

    Raises StoreError; NotFound for a store that has yet to be made, which is not made for the asking.
    """
    if not _patiently(store.exists):
        raise NotFound(
            "the store's root folder is not there: is its URL right, and its disk mounted? "
            "A new store is made when its first attachment comes"
        )
    return min(_patiently(store.clock), datetime.now(UTC)) - older_than
