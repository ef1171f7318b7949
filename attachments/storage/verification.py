"""Verifies that a store's objects match its manifests: reads and hashes each one, and compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from attachments.foundation.ordered_map import ordered_map
from attachments.storage.content import Content, Transform, pour
from attachments.storage.errors import (
    CannotDecrypt,
    InvalidManifest,
    MalformedKey,
    NotFound,
    NothingStored,
    StoreError,
)
from attachments.storage.manifest import Manifest, ManifestAttachment
from attachments.storage.store import Store

Progress = Callable[[int], object]
"""Receives the number of bytes read since the last call, from any thread."""


class Discrepancy(StrEnum):
    """The kinds of difference, as shown to people."""

    MISSING = "recorded as stored, but the object does not exist; run its download again with force"
    SIZE = "its size differs from the manifest; move it away, then run its download again with force"
    CONTENT = "its content differs from the manifest; move it away, then run its download again with force"
    SEALED = (
        "cannot be decrypted with this identity, although it is intact; use another identity. "
        "If there is none, move it away, then run its download again with force"
    )
    UNSEALED = "its decrypted content differs from the manifest; move it away, then run its download again with force"
    PURGED = "recorded as purged, but an object exists; move it away, and run its download again if you need it"
    UNRECORDED = "exists, but no manifest records it; run its download again"
    FOREIGN = "the manifest has another attachment's path, so it was altered; run its download again with force"
    MANIFEST = "the manifest is damaged; run its download again to rebuild it"
    UNREADABLE = (
        "cannot be read, so its content is unknown; check what is there (a link instead "
        "of a folder, missing permissions, an archived object), then verify it again"
    )


@dataclass(frozen=True)
class Difference:
    """A difference between store and manifest. It has a key, because a file name must not be shown."""

    key: str
    problem: Discrepancy
    deployment: str | None = None
    """The deployment that recorded it, by the manifest, which others may have altered."""


@dataclass(frozen=True)
class VerificationResult:
    """The result for one message."""

    message_key: str
    objects: int
    bytes: int
    differences: tuple[Difference, ...]

    @property
    def deployments_to_run(self) -> tuple[str | None, ...]:
        """The deployments whose run may repair it, each once; None for a deployment that is not recorded.

        Leaves out differences that a wrong identity or missing permissions explain: a run does not change existing
        objects.
        """
        return tuple(
            dict.fromkeys(
                found.deployment
                for found in self.differences
                if found.problem not in {Discrepancy.SEALED, Discrepancy.UNREADABLE}
            )
        )


def verify(
    store: Store,
    message_keys: Iterable[str],
    *,
    unseal: Transform | None = None,
    at_once: int = 4,
    progress: Progress = lambda _: None,
) -> Iterator[VerificationResult]:
    """Verify messages, a few at a time, and yield their results in the order of the keys.

    Memory does not grow with their number. With `unseal`, encrypted objects are decrypted and compared with the
    attachment's own hash; without it, the ciphertext's hash is compared. An unreadable object is a difference of its
    message. Raises StoreError if the store is missing or does not respond.
    """
    verify_one = partial(verify_message, store, unseal=unseal, progress=progress)
    return ordered_map(verify_one, message_keys, concurrency=at_once, thread_name="verify")


def verify_message(
    store: Store, message_key: str, *, unseal: Transform | None = None, progress: Progress = lambda _: None
) -> VerificationResult:
    """Verify one message: one listing, one manifest, and every stored byte."""
    try:
        manifest = store.read_manifest(message_key)
        objects = store.objects(message_key)
    except InvalidManifest:
        return VerificationResult(message_key, 0, 0, (Difference(message_key, Discrepancy.MANIFEST),))
    except StoreError as error:
        return VerificationResult(message_key, 0, 0, (Difference(message_key, _unreadable(error)),))
    recorded = dict(_stored_entries(manifest))
    found: list[Difference] = []
    read = 0
    for key, entry in recorded.items():
        is_at_home = entry.is_at_home(message_key)
        problem = (
            _check_object(store, key, entry, objects.get(key), unseal, progress) if is_at_home else Discrepancy.FOREIGN
        )
        if problem is not None:
            found.append(Difference(f"{message_key}/{entry.attachment_key}", problem, _recorder(manifest, entry)))
        read += objects.get(key, 0) if is_at_home else 0
    purged = {entry.key: entry for entry in manifest.attachments if entry.outcome == "purged"} if manifest else {}
    for key in objects.keys() - recorded.keys():
        problem = Discrepancy.PURGED if key in purged else Discrepancy.UNRECORDED
        found.append(Difference(key.rpartition("/")[0], problem, _recorder(manifest, purged.get(key))))
    return VerificationResult(message_key, len(recorded), read, tuple(found))


def decrypt_attachment(
    store: Store, message_key: str, entry: ManifestAttachment, unseal: Transform, write: Callable[[bytes], object]
) -> Content:
    """Decrypt an attachment of this message, write it, and return its sizes and hashes.

    Raises CannotDecrypt if they differ from the manifest; the caller must then discard what was written. Raises
    MalformedKey if the manifest has another attachment's path, whose file is not opened.
    """
    content = _decrypt(store, message_key, entry, unseal, write)
    if not _is_recorded(entry, content):
        raise CannotDecrypt(f"attachment {message_key}/{entry.attachment_key} does not decrypt to the recorded content")
    return content


def _decrypt(
    store: Store, message_key: str, entry: ManifestAttachment, unseal: Transform, write: Callable[[bytes], object]
) -> Content:
    """As `decrypt_attachment`, without the comparison."""
    place = f"{message_key}/{entry.attachment_key}"
    if entry.key is None:
        raise NothingStored(f"attachment {place} is not stored", key=place)
    if not entry.is_at_home(message_key):
        raise MalformedKey(
            f"the manifest has another attachment's path for {place}, so it was altered. It is not decrypted; "
            "`attachments verify` lists all differences",
            key=place,
        )
    came = pour(store.read(entry.key), write, unseal)
    return Content(came.stored_bytes, came.stored_sha256, came.bytes, came.sha256)


def _is_recorded(entry: ManifestAttachment, content: Content) -> bool:
    return (content.bytes, content.sha256) == (entry.bytes, entry.sha256)


def _recorder(manifest: Manifest | None, entry: ManifestAttachment | None) -> str | None:
    return (entry.deployment if entry else None) or (manifest.deployment if manifest else None)


def _stored_entries(manifest: Manifest | None) -> Iterator[tuple[str, ManifestAttachment]]:
    for entry in manifest.attachments if manifest else ():
        if entry.outcome == "stored" and entry.key is not None:
            yield entry.key, entry


def _check_object(
    store: Store, key: str, entry: ManifestAttachment, size: int | None, unseal: Transform | None, progress: Progress
) -> Discrepancy | None:
    problem = _compare(store, key, entry, size, unseal, progress)
    if problem in {Discrepancy.SIZE, Discrepancy.CONTENT} and entry.stored_sha256 is not None:
        other = _as_stored_by_another_machine(store, key, entry)
        return problem if other is None else _compare(store, key, other, size, unseal, progress)
    return problem


def _as_stored_by_another_machine(store: Store, key: str, entry: ManifestAttachment) -> ManifestAttachment | None:
    """The entry of the same attachment as another machine encrypted and stored it at the same time.

    Without conditional writes the later object wins, while the manifest may describe the earlier one.
    """
    found = store.stored(key.partition("/")[0]).get(entry.attachment_key)
    if found is None or (found.key, found.bytes, found.sha256) != (key, entry.bytes, entry.sha256):
        return None
    return entry.model_copy(update={"stored_bytes": found.stored_bytes, "stored_sha256": found.stored_sha256})


def _compare(
    store: Store, key: str, entry: ManifestAttachment, size: int | None, unseal: Transform | None, progress: Progress
) -> Discrepancy | None:
    if size is None:
        return Discrepancy.MISSING
    if size != (entry.bytes if entry.stored_bytes is None else entry.stored_bytes):
        return Discrepancy.SIZE

    def count(block: bytes) -> object:
        return progress(len(block))

    try:
        if entry.stored_sha256 is None or unseal is None:
            return _read_and_compare(store, key, entry, count)
        return _decrypt_and_compare(store, key, entry, unseal, count)
    except NothingStored:
        return Discrepancy.MISSING
    except StoreError as error:
        return _unreadable(error)


def _unreadable(error: StoreError) -> Discrepancy:
    """The difference for one message; raises errors that concern the whole store or are transient."""
    if error.retryable or isinstance(error, NotFound):
        raise error
    return Discrepancy.UNREADABLE


def _decrypt_and_compare(
    store: Store, key: str, entry: ManifestAttachment, unseal: Transform, write: Callable[[bytes], object]
) -> Discrepancy | None:
    try:
        content = _decrypt(store, key.partition("/")[0], entry, unseal, write)
    except CannotDecrypt:  # because of the identity, or of the object
        return _read_and_compare(store, key, entry, write) or Discrepancy.SEALED
    if content.stored_sha256 != entry.stored_sha256:
        return Discrepancy.CONTENT
    return None if _is_recorded(entry, content) else Discrepancy.UNSEALED


def _read_and_compare(
    store: Store, key: str, entry: ManifestAttachment, write: Callable[[bytes], object]
) -> Discrepancy | None:
    content = pour(store.read(key), write)
    return None if content.stored_sha256 == (entry.stored_sha256 or entry.sha256) else Discrepancy.CONTENT
