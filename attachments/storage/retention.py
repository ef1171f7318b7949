"""Retention: what has been stored for long enough is removed, and its manifest says so.

The files go first, then the manifest is rewritten: whoever dies in between leaves a record of something that is gone,
which the next purge sets right, and never a file that no record tells of. The record stays: by it neither a redelivery
nor a reconciliation fetches the attachment again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

from attachments import cancelling
from attachments.storage.errors import InvalidManifest, NewerManifest, StoreError
from attachments.storage.keys import is_attachment_path, is_key, message_key
from attachments.storage.manifest import Manifest, ManifestAttachment
from attachments.storage.store import Store

PAUSES = (1.0, 4.0, 15.0)
"""Seconds before what a store refused is tried again, where that can help."""
FAILURES_IN_A_ROW = 20
"""Messages that fail one after another before the store itself is held to be away."""


@dataclass(frozen=True)
class Policy:
    """What is to go. Times are in UTC."""

    before: datetime
    """What was stored earlier than this is due."""
    is_real: bool = False
    """Otherwise it is only counted."""
    forgets: bool = False
    """Whether the record goes too, once nothing of the message is stored any more."""
    holds: frozenset[str] = frozenset()
    """Keys of messages that are left alone."""
    per_second: float = 50.0
    """Objects that are removed in a second, at the most."""


@dataclass(frozen=True)
class Looked:
    """What was found about one message, or done with it. Due is what was stored before the policy's moment."""

    message_key: str
    due: int = 0
    bytes: int = 0
    """Of what is purged."""
    purged: int = 0
    held: int = 0
    """Due, but the message is on hold."""
    younger: int = 0
    """Due by the manifest, but the store says that it was written later."""
    strange: int = 0
    """Due by the manifest, but what stands there is not what is recorded, or the record names another's place."""
    forgotten: bool = False
    code: str | None = None
    """What went wrong, as in a manifest."""


@dataclass
class Counts:
    """What was found in all, and done."""

    messages: int = 0
    due_messages: int = 0
    due: int = 0
    bytes: int = 0
    purged: int = 0
    held: int = 0
    younger: int = 0
    strange: int = 0
    forgotten: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, looked: Looked) -> None:
        """Counts one message."""
        self.messages += 1
        self.due_messages += looked.due > 0
        for name in ("due", "bytes", "purged", "held", "younger", "strange", "forgotten"):
            setattr(self, name, getattr(self, name) + int(getattr(looked, name)))
        if looked.code is not None:
            self.failures[looked.code] += 1


def purge(
    store: Store,
    message_keys: Iterable[str],
    policy: Policy,
    *,
    at_once: int = 8,
    tell: Callable[[Counts], None] = lambda _: None,
) -> Counts:
    """Looks at messages, a few at a time, as their keys come, and removes what is due. `tell` hears after each one.

    Memory does not grow with their number. One message's failure is counted, and is not the others'. Raises StoreError
    when so many fail in a row that it is the store, and RunCancelled.
    """
    pace = _Pace(policy.per_second)
    counts = Counts()
    failed = 0
    keys = iter(message_keys)
    waiting: list[Future[tuple[Looked, StoreError | None]]] = []
    with ThreadPoolExecutor(at_once, thread_name_prefix="purge") as pool:
        try:
            while True:
                for key in islice(keys, 2 * at_once - len(waiting)):
                    job = copy_context().run  # so that it hears of cancelling
                    waiting.append(pool.submit(job, _looked_at, store, key, policy, pace))
                if not waiting:
                    return counts
                looked, error = waiting.pop(0).result()
                counts.add(looked)
                tell(counts)
                failed = failed + 1 if error is not None else 0
                if error is not None and failed >= FAILURES_IN_A_ROW:
                    raise error
        finally:
            for future in waiting:
                future.cancel()


def _looked_at(store: Store, key: str, policy: Policy, pace: _Pace) -> tuple[Looked, StoreError | None]:
    for pause in (*PAUSES, None):
        cancelling.go_on()
        try:
            return purge_message(store, key, policy, pace), None
        except (InvalidManifest, NewerManifest) as error:
            return Looked(key, code=error.outcome_code), None  # this message's alone
        except StoreError as error:
            if pause is None or not error.retryable:
                return Looked(key, code=error.outcome_code), error
            cancelling.sleep(pause)
    raise AssertionError("the last try returns")


def purge_message(store: Store, key: str, policy: Policy, pace: _Pace | None = None) -> Looked:
    """Looks at one message, and removes what is due of it. Raises StoreError."""
    manifest = store.read_manifest(key)
    if manifest is None:
        return Looked(key)
    due = [entry for entry in manifest.attachments if _is_due(entry, policy)]
    forgets = policy.forgets and _is_over(manifest, policy)
    if not due and not forgets:
        return Looked(key)
    if key in policy.holds or store.is_held(key):
        return Looked(key, due=len(due), held=len(due))
    removed: list[ManifestAttachment] = []
    younger = strange = 0
    for entry in due:
        match _verdict(store, key, entry, policy):
            case "younger":
                younger += 1
            case "strange":
                strange += 1
            case _:
                removed.append(entry)
    size = sum(entry.bytes or 0 for entry in removed)
    forgets = forgets and not younger and not strange
    if policy.is_real:
        _remove(store, manifest, removed, policy, pace)
        if forgets:
            store.forget(key)
    return Looked(
        key,
        due=len(due),
        bytes=size,
        purged=len(removed),
        younger=younger,
        strange=strange,
        forgotten=forgets,
    )


def _remove(
    store: Store, manifest: Manifest, entries: Iterable[ManifestAttachment], policy: Policy, pace: _Pace | None
) -> None:
    """The objects, and then their records; of those that are gone also when the next one cannot be removed."""
    gone: list[ManifestAttachment] = []
    try:
        for entry in entries:
            cancelling.go_on()
            if pace is not None:
                pace.wait()
            store.remove(str(entry.key))
            gone.append(entry)
    finally:
        if gone:
            _record(store, manifest, gone, policy)


def _is_due(entry: ManifestAttachment, policy: Policy) -> bool:
    return entry.outcome == "stored" and entry.stored_at is not None and entry.stored_at < policy.before


def _is_over(manifest: Manifest, policy: Policy) -> bool:
    """Whether the record's own time has come: nothing of the message is left that is not due."""
    moments = [entry.stored_at for entry in manifest.attachments if entry.stored_at is not None]
    return max(moments, default=manifest.updated) < policy.before and manifest.complete


def _verdict(store: Store, message_key: str, entry: ManifestAttachment, policy: Policy) -> str:
    """`due`, or why it is left alone. The manifest may have been altered, and this machine's clock may be wrong."""
    place = f"{message_key}/{entry.attachment_key}/"
    if entry.key is None or not is_attachment_path(entry.key) or not entry.key.startswith(place):
        return "strange"
    standing = store.standing(entry.key)
    if standing is None:
        return "due"  # a purge that died has removed it, or somebody else: there is nothing to keep
    if standing.bytes != (entry.bytes if entry.stored_bytes is None else entry.stored_bytes):
        return "strange"
    return "younger" if standing.modified >= policy.before else "due"


def _record(store: Store, read: Manifest, removed: Iterable[ManifestAttachment], policy: Policy) -> None:
    """Says in the manifest what was removed, and leaves alone what another run has stored again meanwhile."""
    keys = {entry.attachment_key: entry.stored_at for entry in removed}
    now = datetime.now(UTC)

    def purged(known: Manifest | None) -> Manifest:
        manifest = read if known is None else known
        entries = tuple(
            entry.model_copy(update={"outcome": "purged", "purged_at": now})
            if _is_due(entry, policy) and keys.get(entry.attachment_key) == entry.stored_at
            else entry
            for entry in manifest.attachments
        )
        return manifest.model_copy(update={"attachments": entries, "updated": now})

    store.update_manifest(read.message_key, purged)


class _Pace:
    """Lets so many through in a second, evenly, whoever asks."""

    def __init__(self, per_second: float) -> None:
        self._step = 1 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._step
        if mine > now:
            cancelling.sleep(mine - now)


def held_keys(holds: Iterable[str]) -> frozenset[str]:
    """The message keys that a hold list means. It may name messages by key or by id; blanks around them do not count.

    What looks like a key could be an id as well, so both are held.
    """
    named = [line.strip() for line in holds if line.strip()]
    return frozenset(message_key(name) for name in named) | {name.lower() for name in named if is_key(name.lower())}
