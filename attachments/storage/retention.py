"""Retention: removes attachments that have been stored for long enough, and records it in their manifests.

Files are removed first, then the manifest is rewritten. A crash in between leaves an entry marked "stored" without an
object; it is still due, so the next purge records it. The manifest entry stays, so that the content is not fetched
again.

An attachment's age is taken from the manifest and from the store, and the later time counts, because a manifest can be
altered and an object restored. "Now" is the earlier of the store's clock and the local one, so that a wrong clock
removes nothing.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TypeVar

from attachments.foundation import cancellation
from attachments.foundation.ordered_map import ordered_map
from attachments.foundation.retry import back_off, retry
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

MAX_ATTEMPTS = 5
BACK_OFF = 1.0
"""Seconds before the first retry of a transient error, doubled each time: 15 seconds in all."""
MAX_FAILURES_IN_A_ROW = 20
"""Consecutive failures with a store-wide cause after which the purge stops."""
PROGRESS_LOG_INTERVAL = 30.0
"""Seconds between progress reports."""

_STORE_WIDE_ERRORS = (StoreUnavailable, AccessDenied, OutOfSpace, NotFound, UnsupportedStore)

T = TypeVar("T")


class Holds:
    """Messages on hold, given by their ids or keys. Threads may share it."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._names: dict[str, set[int]] = {}
        self._matched: set[int] = set()
        self._count = 0
        for text in filter(None, map(str.strip, texts)):
            for key in candidate_keys(text):  # all candidates, because an id may look like a key
                self._names.setdefault(key, set()).add(self._count)
            self._count += 1

    def __contains__(self, message_key: str) -> bool:
        names = self._names.get(message_key, set())
        self._matched |= names
        return bool(names)

    @property
    def unmatched_count(self) -> int:
        """How many of them match no message so far, for example because of typing errors."""
        return self._count - len(self._matched)


class Budget:
    """How many attachments a run may remove. Threads may share it."""

    def __init__(self, most: int | None = None) -> None:
        self._left = most
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Reserve the removal of one attachment. False if the budget is spent."""
        with self._lock:
            if self._left is None:
                return True
            may_go = self._left > 0
            self._left -= may_go
            return may_go

    def release(self) -> None:
        """Return a reservation that was not used."""
        with self._lock:
            if self._left is not None:
                self._left += 1

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may be removed."""
        return self._left is not None and self._left <= 0


@dataclass(frozen=True)
class PurgePolicy:
    """What a purge removes."""

    stored_before: datetime
    """In UTC; attachments stored earlier are due."""
    dry_run: bool = True
    forget: bool = False
    """Whether to remove the manifest too once no attachment of its message is left."""
    holds: Holds = field(default_factory=Holds)


@dataclass(frozen=True)
class RemovedAttachment:
    """An attachment that was removed, or would be in a dry run."""

    place: str
    """The message's key and the attachment's key."""
    bytes: int
    stored_at: datetime | None


@dataclass(frozen=True)
class PurgeResult:
    """The result for one message. In a dry run, what would have been done."""

    message_key: str
    due: int = 0
    """Attachments that are old enough by their manifest."""
    purged: int = 0
    bytes: int = 0
    gone: tuple[RemovedAttachment, ...] = ()
    is_held: bool = False
    """Whether a hold prevented a removal."""
    newer_in_store: int = 0
    """Due attachments that were stored later than their manifest says, and stay."""
    misplaced: tuple[str, ...] = ()
    """Due attachments, by key, whose manifest entry has another attachment's path."""
    unrecorded: int = 0
    """Objects that no manifest records. They are left alone."""
    manifest_removed: bool = False
    failure: StoreError | None = None


def purge_message(store: Store, message_key: str, policy: PurgePolicy, budget: Budget) -> PurgeResult:
    """Remove the due attachments of a message; one small read if there are none. Raises StoreError if nothing was
    done."""
    is_listed = message_key in policy.holds
    manifest = _retry_transient(lambda: store.read_manifest(message_key))
    if manifest is None:
        inventory = _retry_transient(lambda: store.inventory(message_key))
        return PurgeResult(message_key, unrecorded=len(inventory.objects))
    due = [entry for entry in manifest.attachments if _is_due_by_manifest(entry, policy)]
    if not due and not (policy.forget and _has_expired(manifest, policy)):
        return PurgeResult(message_key)

    inventory = _retry_transient(lambda: store.inventory(message_key))
    recorded = {entry.key for entry in manifest.attachments if entry.outcome == "stored"}
    result = PurgeResult(message_key, due=len(due), unrecorded=len(inventory.objects.keys() - recorded))
    if is_listed or inventory.is_held:
        return replace(result, is_held=True)
    ours = [entry for entry in due if entry.is_at_home(message_key)]
    old = [entry for entry in ours if _is_old_in_store(entry, inventory, policy)]
    result = replace(
        result,
        misplaced=tuple(_place(entry, message_key) for entry in due if not entry.is_at_home(message_key)),
        newer_in_store=len(ours) - len(old),
    )
    return _remove_due(store, manifest, old, inventory, policy, budget, result)


def _remove_due(
    store: Store,
    manifest: Manifest,
    old: list[ManifestAttachment],
    in_store: Inventory,
    policy: PurgePolicy,
    budget: Budget,
    result: PurgeResult,
) -> PurgeResult:
    key = result.message_key
    gone: list[ManifestAttachment] = []
    failure: StoreError | None = None
    for entry in old:
        if cancellation.is_cancelled() or not budget.take():
            break
        try:
            goes = policy.dry_run or _remove(store, entry, policy)
        except StoreError as error:
            budget.release()
            failure = failure or error
            # One object may be under a legal hold, and the next one not.
            if isinstance(error, _STORE_WIDE_ERRORS) and not isinstance(error, AccessDenied):
                break
        except cancellation.RunCancelled:
            break  # cancelled while waiting for a retry; removals so far are still recorded
        else:
            if goes:
                gone.append(entry)
            else:
                budget.release()
                result = replace(result, newer_in_store=result.newer_in_store + 1)
    at = datetime.now(UTC)
    try:
        if gone and policy.dry_run:
            manifest = _mark_purged(manifest, gone, at, key)
        elif gone:
            manifest = _retry_transient(
                lambda: store.update_manifest(key, lambda now: _mark_purged(now, gone, at, key))
            )
        listed = tuple(_removed_attachment(entry, in_store, key) for entry in gone)
        result = replace(result, purged=len(listed), bytes=sum(one.bytes for one in listed), gone=listed)
        if policy.forget and failure is None and not result.unrecorded and _has_expired(manifest, policy):
            manifest_removed = policy.dry_run or store.remove_manifest(
                key, lambda current: _has_expired(current, policy)
            )
            result = replace(result, manifest_removed=manifest_removed)
    except StoreError as error:
        failure = failure or error
    cancellation.raise_if_cancelled()
    return replace(result, failure=failure)


def _remove(store: Store, entry: ManifestAttachment, policy: PurgePolicy) -> bool:
    """Also called if the object is already gone, because a crashed purge may have left what the store keeps beside it.

    False if another run has stored the attachment again since the listing.
    """
    key = entry.key or ""
    return _retry_transient(lambda: store.remove(key, stored_before=policy.stored_before))


def _mark_purged(current: Manifest | None, gone: list[ManifestAttachment], at: datetime, key: str) -> Manifest:
    """The manifest with the removals. An attachment that was stored again in the meantime is left unchanged."""
    if current is None:
        raise InvalidManifest(
            f"the manifest of message {key} was removed or damaged while its message was purged, so the removals are "
            "not recorded; the next download of the message fetches the attachments again",
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


def _is_due_by_manifest(entry: ManifestAttachment, policy: PurgePolicy) -> bool:
    """Whether the attachment is due by its manifest. Without `stored_at` it never is."""
    return entry.outcome == "stored" and entry.stored_at is not None and entry.stored_at < policy.stored_before


def _is_old_in_store(entry: ManifestAttachment, in_store: Inventory, policy: PurgePolicy) -> bool:
    """Whether the object is due by the store. For a missing object only the manifest counts."""
    seen = in_store.objects.get(entry.key or "")
    return seen is None or seen.modified < policy.stored_before


def _has_expired(manifest: Manifest, policy: PurgePolicy) -> bool:
    """Whether no attachment of the message is stored or still to come, and the manifest itself is due."""
    if any(entry.outcome in ("stored", "failed") for entry in manifest.attachments):
        return False
    storings = [entry.stored_at for entry in manifest.attachments if entry.stored_at is not None]
    return max(storings, default=manifest.updated) < policy.stored_before


def _removed_attachment(entry: ManifestAttachment, in_store: Inventory, message_key: str) -> RemovedAttachment:
    seen = in_store.objects.get(entry.key or "")
    return RemovedAttachment(_place(entry, message_key), seen.bytes if seen else 0, entry.stored_at)


def _place(entry: ManifestAttachment, message_key: str) -> str:
    """Where the attachment belongs. The manifest's own path is not shown, because it may contain a file name."""
    return f"{message_key}/{entry.attachment_key}" if is_key(entry.attachment_key) else message_key


def _retry_transient(call: Callable[[], T]) -> T:
    """Call the store, retrying transient errors for about 15 seconds. Raises StoreError, RunCancelled."""
    pauses = islice(back_off(BACK_OFF), MAX_ATTEMPTS - 1)
    return retry(call, StoreError, pauses, is_retryable=lambda error: isinstance(error, StoreError) and error.retryable)


@dataclass
class PurgeTally:
    """What a purge has done so far. In a dry run, what it would have done."""

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
    """Failed messages by error code."""
    first: StoreError | None = None
    """The first error."""
    permanent_failures: int = 0
    """Failures that a retry does not resolve."""
    failures_in_a_row: int = 0
    gave_up: bool = False
    """Whether the store seemed to be unavailable, so that the rest was left for another run."""
    is_spent: bool = False
    """Whether the run's budget of removals is spent."""

    def add(self, result: PurgeResult) -> None:
        """Add the result for one message."""
        self.messages += 1
        self.due += result.due
        self.purged += result.purged
        self.purged_messages += result.purged > 0
        self.bytes += result.bytes
        self.held += result.is_held
        self.younger += result.newer_in_store
        self.refused += len(result.misplaced)
        self.unrecorded += result.unrecorded
        self.forgotten += result.manifest_removed
        if result.failure is None:
            self.failures_in_a_row = 0
        else:
            self.add_failure(result.failure)

    def add_failure(self, error: StoreError) -> None:
        """Add a failure."""
        self.failed[error.outcome_code] += 1
        self.first = self.first or error
        self.permanent_failures += not error.retryable
        self.failures_in_a_row += isinstance(error, _STORE_WIDE_ERRORS)
        self.gave_up = self.gave_up or self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW or isinstance(error, NotFound)


@dataclass(frozen=True)
class PurgeRate:
    """Limits on the load that a purge puts on the store."""

    concurrency: int = 8
    """Messages processed at the same time."""
    per_second: int = 100
    """Messages started per second, at most."""


def purge(
    store: Store,
    policy: PurgePolicy,
    budget: Budget,
    pace: PurgeRate,
    *,
    on_message: Callable[[PurgeResult], object] = lambda _: None,
    on_progress: Callable[[PurgeTally], object] = lambda _: None,
) -> PurgeTally:
    """Purge all messages of a store, a few at a time.

    Memory does not grow with the number of messages if the store lists them in pages; over SFTP and other file systems
    it holds their keys.

    A failure with one message does not stop the others, unless the store itself seems to be unavailable. A purge that
    was killed at any moment and runs again ends with the same result. Raises RunCancelled.
    """
    tally = PurgeTally()
    keys = _paced(_message_keys(store, tally), pace, lambda: not tally.gave_up and not budget.is_spent)
    reported_at = time.monotonic()
    purge_one = partial(_purge_safely, store, policy, budget)
    for result in ordered_map(purge_one, keys, concurrency=pace.concurrency, thread_name="purge"):
        tally.add(result)
        on_message(result)
        if time.monotonic() - reported_at > PROGRESS_LOG_INTERVAL:
            reported_at = time.monotonic()
            on_progress(tally)
    tally.is_spent = budget.is_spent
    return tally


def _message_keys(store: Store, tally: PurgeTally) -> Iterator[str]:
    """The keys of all messages. A listing that breaks off counts as a failure and ends the run."""
    try:
        yield from store.message_keys()
    except StoreError as error:
        tally.add_failure(error)
        tally.gave_up = True


def _paced(keys: Iterator[str], pace: PurgeRate, goes_on: Callable[[], bool]) -> Iterator[str]:
    """The keys, no more in a second than `pace` says, until `goes_on` becomes false."""
    due = time.monotonic()
    while goes_on() and (key := next(keys, None)) is not None:
        due = max(due + 1 / pace.per_second, time.monotonic() - 1)
        cancellation.sleep(max(0.0, due - time.monotonic()))
        yield key


def _purge_safely(store: Store, policy: PurgePolicy, budget: Budget, key: str) -> PurgeResult:
    """The result for one message, whose failure does not end the purge. Raises RunCancelled."""
    cancellation.raise_if_cancelled()
    try:
        return purge_message(store, key, policy, budget)
    except StoreError as error:
        return PurgeResult(key, failure=error)
    except cancellation.RunCancelled:
        raise
    except Exception as error:  # noqa: BLE001  one unexpected message must not block all others for ever
        cancellation.raise_if_cancelled()
        return PurgeResult(key, failure=_unexpected(error, key))


def _unexpected(error: Exception, key: str) -> StoreError:
    """Only the error's type and place, because its text could contain a file name."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return StoreError(
        f"could not purge message {key} ({type(error).__name__} in {place.name}, line {place.lineno}): "
        "please report this with the version you run",
        key=key,
    )


def retention_cutoff(older_than: timedelta, store: Store) -> datetime:
    """The time before which an object of that age was stored, by the earlier of the two clocks.

    Raises StoreError; NotFound for a store that does not exist yet, which is not created.
    """
    if not _retry_transient(store.exists):
        raise NotFound(
            "the store's root folder does not exist; check its URL, and that its disk is mounted. A new store is "
            "created with its first attachment"
        )
    return min(_retry_transient(store.clock), datetime.now(UTC)) - older_than
