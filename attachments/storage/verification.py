"""Is what stands in the store what the manifests say? Read again, hash again, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

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
"""Is told how many more bytes have been read; from any thread."""


class Problem(StrEnum):
    """What can be wrong, in the words that are shown."""

    MISSING = "recorded as stored, but nothing stands there; run its download again with force"
    SIZE = "has another size than recorded; move it away, then run its download again with force"
    CONTENT = "has other bytes than recorded; move it away, then run its download again with force"
    SEALED = (
        "cannot be decrypted with this identity, and is as it was stored; give another identity. If there is none, "
        "move it away, then run its download again with force"
    )
    UNSEALED = "decrypts to other bytes than recorded; move it away, then run its download again with force"
    PURGED = "recorded as purged, but something stands there; move it away, and run its download again if it is wanted"
    UNRECORDED = "stands there, but no manifest names it; run its download again"
    FOREIGN = "the manifest names a place that is not its own: it was altered; run its download again with force"
    MANIFEST = "the manifest is damaged; run its download again to rebuild it"
    UNREADABLE = (
        "cannot be read, so nothing is known of it; look at what stands there (a link in place of a folder, missing "
        "rights, an archived object), then verify it again"
    )


@dataclass(frozen=True)
class Difference:
    """Something that is not as it is recorded, by key, for a file name must not be shown."""

    key: str
    problem: Problem
    deployment: str | None = None
    """Who recorded it, as the manifest says, which others may have altered."""


@dataclass(frozen=True)
class Checked:
    """What was found about one message."""

    message_key: str
    objects: int
    bytes: int
    differences: tuple[Difference, ...]

    @property
    def to_run(self) -> tuple[str | None, ...]:
        """The deployments whose run may help, each once; None where it is not recorded.

        None of them for what a wrong identity or missing rights explain: a run leaves alone what stands.
        """
        return tuple(
            dict.fromkeys(
                found.deployment
                for found in self.differences
                if found.problem not in {Problem.SEALED, Problem.UNREADABLE}
            )
        )


def verify(
    store: Store,
    message_keys: Iterable[str],
    *,
    unseal: Transform | None = None,
    at_once: int = 4,
    progress: Progress = lambda _: None,
) -> Iterator[Checked]:
    """Checks messages, a few at a time, as their keys come; in the order of the keys.

    Memory does not grow with their number. With `unseal`, what was encrypted is decrypted as well and compared with
    the attachment's own hash; without it, the ciphertext's hash is compared. What one message's place in the store does
    not let us read is a difference of that message; raises StoreError when the store is gone or does not answer.
    """
    keys = iter(message_keys)
    waiting: list[Future[Checked]] = []
    pool = ThreadPoolExecutor(at_once)
    is_left = False
    try:
        while True:
            for key in islice(keys, 2 * at_once - len(waiting)):
                waiting.append(pool.submit(verify_message, store, key, unseal=unseal, progress=progress))  # noqa: PERF401  # counted by islice as it grows
            if not waiting:
                return
            yield waiting.pop(0).result()
    except (KeyboardInterrupt, GeneratorExit):
        is_left = True  # nobody wants to wait for what is being read
        raise
    finally:
        pool.shutdown(wait=not is_left, cancel_futures=True)


def verify_message(
    store: Store, message_key: str, *, unseal: Transform | None = None, progress: Progress = lambda _: None
) -> Checked:
    """Checks one message: one listing, one manifest, and every byte that is stored of it."""
    try:
        manifest = store.read_manifest(message_key)
        standing = store.objects(message_key)
    except InvalidManifest:
        return Checked(message_key, 0, 0, (Difference(message_key, Problem.MANIFEST),))
    except StoreError as error:
        return Checked(message_key, 0, 0, (Difference(message_key, _unreadable(error)),))
    recorded = dict(_stored_entries(manifest))
    found: list[Difference] = []
    read = 0
    for key, entry in recorded.items():
        is_at_home = entry.is_at_home(message_key)
        problem = _checked(store, key, entry, standing.get(key), unseal, progress) if is_at_home else Problem.FOREIGN
        if problem is not None:
            found.append(Difference(f"{message_key}/{entry.attachment_key}", problem, _recorder(manifest, entry)))
        read += standing.get(key, 0) if is_at_home else 0
    purged = {entry.key: entry for entry in manifest.attachments if entry.outcome == "purged"} if manifest else {}
    for key in standing.keys() - recorded.keys():
        problem = Problem.PURGED if key in purged else Problem.UNRECORDED
        found.append(Difference(key.rpartition("/")[0], problem, _recorder(manifest, purged.get(key))))
    return Checked(message_key, len(recorded), read, tuple(found))


def unsealed(
    store: Store, message_key: str, entry: ManifestAttachment, unseal: Transform, write: Callable[[bytes], object]
) -> Content:
    """Decrypts an attachment of this message, writes it, and says what was read and written, as the manifest has it.

    Raises CannotDecrypt when that is not what is recorded; what was written until then must be thrown away. Raises
    MalformedKey when the manifest names a place that is not the attachment's: another message's files stay closed.
    """
    content = _opened(store, message_key, entry, unseal, write)
    if not _is_recorded(entry, content):
        raise CannotDecrypt(f"attachment {message_key}/{entry.attachment_key} decrypts to something else than recorded")
    return content


def _opened(
    store: Store, message_key: str, entry: ManifestAttachment, unseal: Transform, write: Callable[[bytes], object]
) -> Content:
    """The same without the comparison."""
    place = f"{message_key}/{entry.attachment_key}"
    if entry.key is None:
        raise NothingStored(f"attachment {place} is not stored", key=place)
    if not entry.is_at_home(message_key):
        raise MalformedKey(
            f"the manifest names a place for attachment {place} that is not its own: it was altered. It is not "
            "decrypted; `attachments verify` says what else differs",
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


def _checked(
    store: Store, key: str, entry: ManifestAttachment, size: int | None, unseal: Transform | None, progress: Progress
) -> Problem | None:
    problem = _compared(store, key, entry, size, unseal, progress)
    if problem in {Problem.SIZE, Problem.CONTENT} and entry.stored_sha256 is not None:
        other = _as_another_wrote(store, key, entry)
        return problem if other is None else _compared(store, key, other, size, unseal, progress)
    return problem


def _as_another_wrote(store: Store, key: str, entry: ManifestAttachment) -> ManifestAttachment | None:
    """The same attachment, as another machine encrypted it that stored it at the same moment.

    Where nothing is conditional the later object stands, and the manifest may be the earlier one's.
    """
    found = store.stored(key.partition("/")[0]).get(entry.attachment_key)
    if found is None or (found.key, found.bytes, found.sha256) != (key, entry.bytes, entry.sha256):
        return None
    return entry.model_copy(update={"stored_bytes": found.stored_bytes, "stored_sha256": found.stored_sha256})


def _compared(
    store: Store, key: str, entry: ManifestAttachment, size: int | None, unseal: Transform | None, progress: Progress
) -> Problem | None:
    if size is None:
        return Problem.MISSING
    if size != (entry.bytes if entry.stored_bytes is None else entry.stored_bytes):
        return Problem.SIZE

    def count(block: bytes) -> object:
        return progress(len(block))

    try:
        if entry.stored_sha256 is None or unseal is None:
            return _read_again(store, key, entry, count)
        return _unsealed_again(store, key, entry, unseal, count)
    except NothingStored:
        return Problem.MISSING
    except StoreError as error:
        return _unreadable(error)


def _unreadable(error: StoreError) -> Problem:
    """The problem of one message; raises what concerns the store as a whole, or may pass."""
    if error.retryable or isinstance(error, NotFound):
        raise error
    return Problem.UNREADABLE


def _unsealed_again(
    store: Store, key: str, entry: ManifestAttachment, unseal: Transform, write: Callable[[bytes], object]
) -> Problem | None:
    try:
        content = _opened(store, key.partition("/")[0], entry, unseal, write)
    except CannotDecrypt:  # because of the identity, or of what stands there
        return _read_again(store, key, entry, write) or Problem.SEALED
    if content.stored_sha256 != entry.stored_sha256:
        return Problem.CONTENT
    return None if _is_recorded(entry, content) else Problem.UNSEALED


def _read_again(store: Store, key: str, entry: ManifestAttachment, write: Callable[[bytes], object]) -> Problem | None:
    content = pour(store.read(key), write)
    return None if content.stored_sha256 == (entry.stored_sha256 or entry.sha256) else Problem.CONTENT
