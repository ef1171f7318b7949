"""A store in any backend: each attachment is stored exactly once, either complete or not at all.

```
<root>/<message_key>/<attachment_key>/<safe file name>
<root>/<message_key>/manifest.json
<root>/.…                   a backend's own files: staged uploads, checksums, locks
```

With conditional creation (S3, Azure, GCS, SFTP), two machines that write the same attachment leave one object. Without
it, both write the same bytes under the same key, which leaves one object too.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from attachments.storage.backends.base import Backend, Conflict, Listed, ObjectHeaders, ObjectStat, Orphan, Upload
from attachments.storage.conflicts import retry_conflicts
from attachments.storage.content import Content, Transform, pour
from attachments.storage.encryption import RECHECK_INTERVAL
from attachments.storage.encryption_marker import EncryptionMarker
from attachments.storage.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidManifest,
    NothingStored,
    StoreError,
    StoreUnavailable,
)
from attachments.storage.healthcheck import probe
from attachments.storage.keys import (
    attachment_path,
    checked_key,
    checked_object_path,
    is_attachment_path,
    is_hold,
    is_key,
    is_object_path,
    key_prefix,
    manifest_path,
)
from attachments.storage.listings import Listings, Names
from attachments.storage.manifest import Manifest
from attachments.storage.names import safe_name as made_safe
from attachments.storage.object_headers import headers_for
from attachments.storage.store import Inventory, ManifestChange, ObjectInfo, ProbeResult, Store, StoredObject

_MANIFEST = ObjectHeaders("application/json")
_CLOCK = ".clock"
"""Folder in the root for the temporary objects that show the store's time."""
_SWEEP_MARGIN = timedelta(hours=1)
"""Age from which such an object is the leftover of a crashed process."""
_PARTS = 3
"""Parts of an attachment's path."""
_KEY_LOCKS = 256
_CHANGES = 40
"""Attempts to change a manifest despite conflicts, within about half a minute."""


class ObjectStore(Store):
    """Attachments and manifests in a backend."""

    def __init__(
        self,
        backend: Backend,
        *,
        seal: Transform | None = None,
        suffix: str = "",
        allow_plaintext: bool = False,
        recheck_interval: float = RECHECK_INTERVAL,
    ) -> None:
        """`seal` encrypts what is written, and `suffix` is then added to its name.

        Without it, `allow_plaintext` decides whether a store that has encrypted before is written to.
        """
        self._backend = backend
        self._seal = seal
        self._suffix = suffix
        self._allow_plaintext = allow_plaintext
        self._marker = EncryptionMarker(backend, recheck_interval)
        self._listings = Listings(self._list)
        self._key_locks = [threading.Lock() for _ in range(_KEY_LOCKS)]

    @property
    def url(self) -> str:
        return self._backend.url

    def manifest_url(self, message_key: str) -> str:
        return f"{self._backend.url}/{manifest_path(message_key)}"

    @property
    def encrypts(self) -> bool:
        return self._seal is not None

    def has_encrypted(self) -> bool:
        with self._translated("look for the marker of encryption in the store", None):
            return self._marker.exists()

    def read_manifest(self, message_key: str) -> Manifest | None:
        path = manifest_path(message_key)
        with self._translated("read the manifest of message", message_key):
            found = self._backend.get(path)
        return None if found is None else Manifest.from_bytes(found[0], message_key=message_key)

    def update_manifest(self, message_key: str, change: ManifestChange) -> Manifest:
        path = manifest_path(message_key)

        def attempt() -> Manifest:
            with self._translated("read the manifest of message", message_key):
                found = self._backend.get(path)
            new = change(_parsed(found and found[0], message_key))
            with self._translated("write the manifest of message", message_key):
                self._backend.put(path, new.to_bytes(), _MANIFEST, replaces=found and found[1])
            return new

        try:
            with self._locked(message_key):
                return retry_conflicts(attempt, _CHANGES)
        except Conflict:
            raise StoreUnavailable(
                f"could not write the manifest of message {message_key}: others changed it {_CHANGES} times in the "
                "meantime; this will be retried",
                key=message_key,
            ) from None

    def stored(self, message_key: str) -> Mapping[str, StoredObject]:
        checked_key(message_key)
        found: dict[str, StoredObject] = {}
        with self._translated("list message", message_key):
            for key, paths in self._listings.refresh(message_key).items():
                for path in filter(is_object_path, paths):  # this project did not create any other name
                    existing = self._backend.stat(path)
                    content = existing and _recorded_content(existing)
                    if (
                        existing
                        and content
                        and (self._backend.metadata_is_proof or self._content_matches(path, content))
                    ):
                        found.setdefault(key, _stored(path, existing, content))
        return found

    def write(
        self,
        message_key: str,
        attachment_key: str,
        safe_name: str,
        chunks: Iterable[bytes],
        *,
        content_type: str | None = None,
    ) -> StoredObject:
        name = made_safe(made_safe(safe_name) + self._suffix)
        path = attachment_path(message_key, attachment_key, name)
        place = f"{message_key}/{attachment_key}"
        action = "store attachment"
        self._check_encryption(place)
        with self._translated(action, place):
            # List now: this fails before the download if the store is unavailable, and the commit needs no listing.
            self._listings.of(message_key)
            upload = self._backend.upload(path, headers_for(name, None if self._suffix else content_type))

        def write(data: bytes) -> None:
            # Errors of the source are not the store's: only those of writing a chunk are translated.
            with self._translated(action, place):
                upload.write(data)

        try:
            content = pour(chunks, write, self._seal)
            with self._locked(place), self._translated(action, place):
                return self._commit(upload, content)
        finally:
            upload.discard()

    def exists(self) -> bool:
        with self._translated("look for the store", None):
            return self._backend.exists()

    def message_keys(self) -> Iterator[str]:
        with self._translated("list the store", None):
            yield from filter(is_key, self._backend.message_keys())

    def objects(self, message_key: str) -> Mapping[str, int]:
        checked_key(message_key)
        with self._translated("list message", message_key):
            return {found.path: found.bytes for found in self._backend.objects(f"{message_key}/") if _is_object(found)}

    def inventory(self, message_key: str) -> Inventory:
        checked_key(message_key)
        objects: dict[str, ObjectInfo] = {}
        is_held = False
        with self._translated("list message", message_key):
            for found in self._backend.objects(f"{message_key}/"):
                if is_hold(found.path.removeprefix(f"{message_key}/").partition("/")[0]):
                    is_held = True
                elif _is_object(found) and (modified := self._modified(found)) is not None:
                    objects[found.path] = ObjectInfo(found.bytes, modified)
        return Inventory(objects, is_held)

    def remove(self, key: str, *, stored_before: datetime | None = None) -> bool:
        place = _place(checked_object_path(key))
        with self._locked(place), self._translated("remove attachment", place):
            existing = self._backend.stat(key) if stored_before is not None else None
            if existing is not None and stored_before is not None and existing.modified >= stored_before:
                return False
            self._backend.remove(key)
        self._listings.forget(place.partition("/")[0])
        return True

    def remove_manifest(self, message_key: str, when: Callable[[Manifest], bool]) -> bool:
        path = manifest_path(message_key)
        with self._locked(message_key), self._translated("remove the manifest of message", message_key):
            found = self._backend.get(path)
            if found is None or not when(Manifest.from_bytes(found[0], message_key=message_key)):
                return False
            self._backend.remove(path)
        return True

    def clock(self) -> datetime:
        # Each caller has its own object, which no other removes before its time has been read.
        path = f"{_CLOCK}/{secrets.token_hex(8)}"
        with self._translated("read the store's clock", None):
            with suppress(Conflict):  # the response to a first attempt was lost, and the object exists
                self._backend.put(path, b"now", _MANIFEST, replaces=None)
            written = self._backend.stat(path)
            with suppress(*self._backend.errors):  # a leftover is small, and a later call removes it
                self._backend.remove(path)
                if written is not None:
                    self._sweep_clock(written.modified - _SWEEP_MARGIN)
        if written is None:
            # The local clock may be ahead; using it could remove young attachments.
            raise StoreUnavailable(
                "could not read the store's clock: the object that was written does not exist; this will be retried"
            )
        return written.modified

    def read(self, key: str) -> Iterator[bytes]:
        place = _place(checked_object_path(key))
        with self._translated("read attachment", place):
            if self._backend.stat(key) is None:
                raise NothingStored(f"no object exists under attachment {place}", key=place)
            yield from self._backend.read(key)

    def file(self, path: str, what: str) -> Iterator[bytes]:
        """The bytes of another program's file below the root, in blocks; `what` names it in errors.

        Raises NothingStored if there is no file: a folder, a link and its target do not count.
        """
        with self._translated(f"read {what}", None):
            if not self._backend.is_file(path):
                raise NothingStored(f"could not read {what}: it does not exist")
            yield from self._backend.read(path)

    def orphans(self, *, older_than: timedelta) -> Iterator[Orphan]:
        latest = datetime.now(UTC) - older_than
        with self._translated("look for what writers left in the store", None):
            for left in self._backend.orphans():
                # Ignore uploads of other programs below the root.
                if not left.path.startswith(".") and not is_attachment_path(left.path):
                    continue
                if left.begun is None or left.begun <= latest:
                    # Others may write there, so show only those parts that are keys.
                    yield replace(left, key=key_prefix(left.key.split("/")))

    def probe(self) -> ProbeResult:
        with self._translated("probe the store", None):
            return probe(self._backend, lambda error: self._backend.failure(error).kind is AccessDenied)

    def clear(self, orphan: Orphan) -> None:
        with self._translated("clear", orphan.key):
            self._backend.clear(orphan)

    def _check_encryption(self, place: str) -> None:
        if self._seal is not None:
            with self._translated("mark the store as encrypted", None):
                self._marker.ensure_exists()
        elif not self._allow_plaintext:
            with self._translated("look for the marker of encryption in the store", None):
                self._marker.refuse_plaintext(place)

    def _sweep_clock(self, latest: datetime) -> None:
        """Remove the leftovers of crashed callers of `clock`."""
        for left in list(self._backend.objects(f"{_CLOCK}/")):
            modified = self._modified(left)
            if modified is not None and modified < latest:
                self._backend.remove(left.path)

    def _modified(self, found: Listed) -> datetime | None:
        """When the object was written; None if it was removed in the meantime."""
        if found.modified is not None:
            return found.modified
        existing = self._backend.stat(found.path)
        return existing.modified if existing else None

    def _commit(self, upload: Upload, content: Content) -> StoredObject:
        message_key, attachment_key, _ = upload.path.split("/")
        if existing := self._listings.of(message_key).get(attachment_key):
            return self._existing_or_raise(existing, content, upload.path)
        writer = secrets.token_hex(8)
        try:
            upload.commit(_metadata(content, writer))
        except Conflict:
            path = upload.path
            return self._existing_or_raise(
                (path, *self._listings.refresh(message_key).get(attachment_key, ())), content, path
            )
        path = upload.path
        committed = self._backend.stat(path)
        claimed = _recorded_content(committed) if committed else None
        if claimed is not None and claimed.stored_sha256 != content.stored_sha256:
            # Without conditional creation, another writer has already replaced the object.
            return self._existing_or_raise((path,), content, path)
        if committed is None or committed.bytes != content.stored_bytes:
            raise self._roll_back(path, committed, writer)
        self._listings.add(message_key, attachment_key, path)
        return _stored(path, committed, content)

    def _roll_back(self, path: str, committed: ObjectStat | None, writer: str) -> StoreUnavailable:
        """The error for an object that the store did not keep as written. Removes it if this writer wrote it."""
        if committed is not None and committed.metadata.get("writer") == writer:
            self._backend.remove(path)
        place = _place(path)
        raise StoreUnavailable(
            f"the store did not keep attachment {place} as it was written; it was removed; this will be retried",
            key=place,
        )

    def _existing_or_raise(self, paths: Iterable[str], content: Content, path: str) -> StoredObject:
        """The existing object, after a lost response or a race. Raises `AlreadyExists` if its content differs, and
        leaves it alone."""
        place = _place(path)
        message_key, attachment_key = place.split("/")
        gone = True
        for other in dict.fromkeys(paths):
            existing = self._backend.stat(other)
            if existing is None:
                continue
            gone = False
            if not is_object_path(other):  # a manifest cannot record such a name
                continue
            claimed = _recorded_content(existing)
            # Without metadata it can be recognised only if it is unencrypted.
            expected = claimed or Content.plain(content.bytes, content.sha256)
            if not expected.is_same_attachment(content) or existing.bytes != expected.stored_bytes:
                continue
            if (claimed and self._backend.metadata_is_proof) or self._content_matches(other, expected):
                self._listings.add(message_key, attachment_key, other)
                return _stored(other, existing, expected)
        self._listings.forget(message_key)
        if gone:
            raise StoreUnavailable(
                f"attachment {place} was removed from the store while it was being written; this will be retried",
                key=place,
            )
        raise AlreadyExists(
            f"another object already exists under attachment {place} and was left alone; move it away, then run the "
            "download again",
            key=place,
        )

    def _content_matches(self, path: str, content: Content) -> bool:
        """Whether the object has exactly this content. Reads all of it."""
        digest = hashlib.sha256()
        size = 0
        for block in self._backend.read(path):
            digest.update(block)
            size += len(block)
        return (size, digest.hexdigest()) == (content.stored_bytes, content.stored_sha256)

    def _list(self, message_key: str) -> Names:
        names: dict[str, tuple[str, ...]] = {}
        for found in self._backend.objects(f"{message_key}/"):
            if _is_object(found):
                key = found.path.split("/")[1]
                names[key] = (*names.get(key, ()), found.path)
        return {key: tuple(sorted(paths)) for key, paths in names.items()}

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """A lock per key within this process; several keys may share one."""
        with self._key_locks[hash(key) % _KEY_LOCKS]:
            yield

    @contextmanager
    def _translated(self, action: str, key: str | None) -> Iterator[None]:
        """Translate the backend's errors into StoreError. Keeps only their error code, because their texts contain
        paths."""
        try:
            yield
        except (StoreError, Conflict):
            raise
        except self._backend.errors as error:
            failure = self._backend.failure(error)
        else:
            return
        raise failure.as_error(action, key) from None


def _metadata(content: Content, writer: str) -> dict[str, str]:
    return {
        "sha256": content.sha256,
        "bytes": str(content.bytes),
        "stored-sha256": content.stored_sha256,
        "stored-bytes": str(content.stored_bytes),
        "writer": writer,
    }


def _recorded_content(existing: ObjectStat) -> Content | None:
    """The content that an object's metadata claim, if it matches the object's size."""
    metadata = existing.metadata
    try:
        content = Content(
            int(metadata["bytes"]), metadata["sha256"], int(metadata["stored-bytes"]), metadata["stored-sha256"]
        )
    except (KeyError, ValueError):
        return None
    return content if content.stored_bytes == existing.bytes else None


def _stored(path: str, existing: ObjectStat, content: Content) -> StoredObject:
    return StoredObject.of(path, content, existing.modified)


def _parsed(data: bytes | None, message_key: str) -> Manifest | None:
    try:
        return None if data is None else Manifest.from_bytes(data, message_key=message_key)
    except InvalidManifest:
        return None


def _is_object(found: Listed) -> bool:
    """Whether a path is an attachment's, and not a folder or hidden file that a desktop or console created."""
    parts = found.path.split("/")
    return len(parts) == _PARTS and is_key(parts[1]) and bool(parts[2]) and not parts[2].startswith(".")


def _place(path: str) -> str:
    """The path without the file name, which must not be shown."""
    return path.rpartition("/")[0]
