"""An object store as a store: exactly once, whole or not at all, whatever the backend.

```
<root>/<message_key>/<attachment_key>/<safe file name>
<root>/<message_key>/manifest.json
<root>/.…                   what a backend keeps for itself: files on their way in, proofs, locks
```

Where a backend creates only what is not there yet (S3, Azure, GCS, SFTP), two machines that write one attachment
leave one object. Where it cannot, both write the same bytes under the same key, which leaves one object as well.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from attachments.storage.backends.base import Backend, Conflict, Listed, ObjectHeaders, ObjectStat, Orphan, Upload
from attachments.storage.content import Content, Transform, pour
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
    known_place,
    manifest_path,
)
from attachments.storage.listings import Listings, Names
from attachments.storage.manifest import Manifest
from attachments.storage.names import safe_name as made_safe
from attachments.storage.object_headers import headers_for
from attachments.storage.store import Inventory, ManifestChange, Probe, Seen, Store, StoredObject

_MANIFEST = ObjectHeaders("application/json")
_CLOCK = ".clock"
"""Folder in the root for what is written to see what time it is there."""
_CLOCK_LEFT = timedelta(hours=1)
"""Age at which that was left by somebody who died."""
_PARTS = 3
"""Parts of an attachment's path."""
_TURNS = 256
_CHANGES = 40
"""Times that a manifest's change is tried against other writers, within about half a minute."""


class ObjectStore(Store):
    """Attachments and manifests in a backend."""

    def __init__(
        self, backend: Backend, *, seal: Transform | None = None, suffix: str = "", allow_plaintext: bool = False
    ) -> None:
        """`seal` encrypts what is written, and `suffix` is then added to its name.

        Without it, `allow_plaintext` decides whether a store that has encrypted before is written to.
        """
        self._backend = backend
        self._seal = seal
        self._suffix = suffix
        self._allow_plaintext = allow_plaintext
        self._marker = EncryptionMarker(backend)
        self._listings = Listings(self._list)
        self._turns = [threading.Lock() for _ in range(_TURNS)]

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
        with self._turn(message_key):
            for attempt in range(_CHANGES):
                with self._translated("read the manifest of message", message_key):
                    found = self._backend.get(path)
                new = change(_parsed(found and found[0], message_key))
                try:
                    with self._translated("write the manifest of message", message_key):
                        self._backend.put(path, new.to_bytes(), _MANIFEST, replaces=found and found[1])
                except Conflict:
                    # Another was faster. Odd pauses, so that those who wait do not stay in step.
                    time.sleep(random.uniform(0.01, 0.05) * min(attempt + 1, 20))  # noqa: S311  # no secret
                else:
                    return new
        raise StoreUnavailable(
            f"could not write the manifest of message {message_key}: others changed it {_CHANGES} times meanwhile; "
            "it is tried again",
            key=message_key,
        )

    def stored(self, message_key: str) -> Mapping[str, StoredObject]:
        checked_key(message_key)
        found: dict[str, StoredObject] = {}
        with self._translated("list message", message_key):
            for key, paths in self._listings.anew(message_key).items():
                for path in filter(is_object_path, paths):  # another name was not given by us
                    standing = self._backend.stat(path)
                    content = standing and _claimed(standing)
                    if standing and content and (self._backend.metadata_is_proof or self._holds(path, content)):
                        found.setdefault(key, _stored(path, standing, content))
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
        doing = "store attachment"
        self._check_encryption(place)
        with self._translated(doing, place):
            # Before a download is spent: a store that is away says so here, and the commit has one thing less to ask.
            self._listings.of(message_key)
            upload = self._backend.upload(path, headers_for(name, None if self._suffix else content_type))

        def write(data: bytes) -> None:
            # The source's errors are not ours: only what we do with a chunk is translated.
            with self._translated(doing, place):
                upload.write(data)

        try:
            content = pour(chunks, write, self._seal)
            with self._turn(place), self._translated(doing, place):
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
        objects: dict[str, Seen] = {}
        is_held = False
        with self._translated("list message", message_key):
            for found in self._backend.objects(f"{message_key}/"):
                if is_hold(found.path.removeprefix(f"{message_key}/").partition("/")[0]):
                    is_held = True
                elif _is_object(found) and (modified := self._modified(found)) is not None:
                    objects[found.path] = Seen(found.bytes, modified)
        return Inventory(objects, is_held)

    def remove(self, key: str, *, stored_before: datetime | None = None) -> bool:
        place = _place(checked_object_path(key))
        with self._turn(place), self._translated("remove attachment", place):
            standing = self._backend.stat(key) if stored_before is not None else None
            if standing is not None and stored_before is not None and standing.modified >= stored_before:
                return False
            self._backend.remove(key)
        self._listings.forget(place.partition("/")[0])
        return True

    def remove_manifest(self, message_key: str, when: Callable[[Manifest], bool]) -> bool:
        path = manifest_path(message_key)
        with self._turn(message_key), self._translated("remove the manifest of message", message_key):
            found = self._backend.get(path)
            if found is None or not when(Manifest.from_bytes(found[0], message_key=message_key)):
                return False
            self._backend.remove(path)
        return True

    def clock(self) -> datetime:
        # Each asker has its own, which no other removes before its time has been read.
        path = f"{_CLOCK}/{secrets.token_hex(8)}"
        with self._translated("read the store's clock", None):
            with suppress(Conflict):  # the answer to a first try was lost, and it has been written
                self._backend.put(path, b"now", _MANIFEST, replaces=None)
            written = self._backend.stat(path)
            with suppress(*self._backend.errors):  # what stays is small, and goes when somebody asks later
                self._backend.remove(path)
                if written is not None:
                    self._sweep_clock(written.modified - _CLOCK_LEFT)
        if written is None:
            # Our own clock may be ahead, and then what is young would be removed.
            raise StoreUnavailable("could not read the store's clock: what was written is not there; it is tried again")
        return written.modified

    def read(self, key: str) -> Iterator[bytes]:
        place = _place(checked_object_path(key))
        with self._translated("read attachment", place):
            if self._backend.stat(key) is None:
                raise NothingStored(f"nothing stands under attachment {place}", key=place)
            yield from self._backend.read(key)

    def file(self, path: str, what: str) -> Iterator[bytes]:
        """What somebody else has put below the root, in blocks; `what` names it in errors.

        Raises NothingStored where no file stands: a folder is none, nor is a link or what one leads to.
        """
        with self._translated(f"read {what}", None):
            if not self._backend.is_file(path):
                raise NothingStored(f"could not read {what}: nothing stands there")
            yield from self._backend.read(path)

    def orphans(self, *, older_than: timedelta) -> Iterator[Orphan]:
        latest = datetime.now(UTC) - older_than
        with self._translated("look for what writers left in the store", None):
            for left in self._backend.orphans():
                # Below the root there may be another program's uploads, which are none of our business.
                if not left.path.startswith(".") and not is_attachment_path(left.path):
                    continue
                if left.begun is None or left.begun <= latest:
                    # Others may write there: of its key only what is one is shown.
                    yield replace(left, key=known_place(left.key.split("/")))

    def probe(self) -> Probe:
        with self._translated("probe the store", None):
            return probe(self._backend, lambda error: self._backend.failure(error).kind is AccessDenied)

    def clear(self, residue: Orphan) -> None:
        with self._translated("clear", residue.key):
            self._backend.clear(residue)

    def _check_encryption(self, place: str) -> None:
        if self._seal is not None:
            with self._translated("mark the store as encrypted", None):
                self._marker.create()
        elif not self._allow_plaintext:
            with self._translated("look for the marker of encryption in the store", None):
                self._marker.refuse_plaintext(place)

    def _sweep_clock(self, latest: datetime) -> None:
        """Removes what askers left that died."""
        for left in list(self._backend.objects(f"{_CLOCK}/")):
            modified = self._modified(left)
            if modified is not None and modified < latest:
                self._backend.remove(left.path)

    def _modified(self, found: Listed) -> datetime | None:
        """When it came there; None when it is gone meanwhile."""
        if found.modified is not None:
            return found.modified
        standing = self._backend.stat(found.path)
        return standing.modified if standing else None

    def _commit(self, upload: Upload, content: Content) -> StoredObject:
        message_key, attachment_key, _ = upload.path.split("/")
        if standing := self._listings.of(message_key).get(attachment_key):
            return self._same(standing, content, upload.path)
        writer = secrets.token_hex(8)
        try:
            upload.commit(_metadata(content, writer))
        except Conflict:
            path = upload.path
            return self._same((path, *self._listings.anew(message_key).get(attachment_key, ())), content, path)
        path = upload.path
        committed = self._backend.stat(path)
        claimed = _claimed(committed) if committed else None
        if claimed is not None and claimed.stored_sha256 != content.stored_sha256:
            # Where nothing is conditional, another's object has taken our place already.
            return self._same((path,), content, path)
        if committed is None or committed.bytes != content.stored_bytes:
            raise self._undone(path, committed, writer)
        self._listings.add(message_key, attachment_key, path)
        return _stored(path, committed, content)

    def _undone(self, path: str, committed: ObjectStat | None, writer: str) -> StoreUnavailable:
        """The store says that it holds something else than it was given. What is ours of it may not stay."""
        if committed is not None and committed.metadata.get("writer") == writer:
            self._backend.remove(path)
        place = _place(path)
        raise StoreUnavailable(
            f"the store did not keep attachment {place} as it was written; it was removed, and is tried again",
            key=place,
        )

    def _same(self, paths: Iterable[str], content: Content, path: str) -> StoredObject:
        """What stands there, when it is the same attachment: a lost reply, or a race. Otherwise it is left alone."""
        place = _place(path)
        message_key, attachment_key = place.split("/")
        gone = True
        for other in dict.fromkeys(paths):
            standing = self._backend.stat(other)
            if standing is None:
                continue
            gone = False
            if not is_object_path(other):  # no manifest could record it
                continue
            claimed = _claimed(standing)
            # Without a claim it can only be recognised when it stands there unencrypted.
            expected = claimed or Content.plain(content.bytes, content.sha256)
            if not expected.is_same_attachment(content) or standing.bytes != expected.stored_bytes:
                continue
            if (claimed and self._backend.metadata_is_proof) or self._holds(other, expected):
                self._listings.add(message_key, attachment_key, other)
                return _stored(other, standing, expected)
        self._listings.forget(message_key)
        if gone:
            raise StoreUnavailable(
                f"attachment {place} was removed from the store while it was being written; it is tried again",
                key=place,
            )
        raise AlreadyExists(
            f"something else already stands under attachment {place} and was left alone; "
            "move it away, then run it again",
            key=place,
        )

    def _holds(self, path: str, content: Content) -> bool:
        """Whether the object holds just this. Reads all of it."""
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
    def _turn(self, key: str) -> Iterator[None]:
        """No other thread of this process is in here for this key; a few keys share a turn."""
        with self._turns[hash(key) % _TURNS]:
            yield

    @contextmanager
    def _translated(self, doing: str, key: str | None) -> Iterator[None]:
        """Turns the backend's errors into a StoreError. Nothing is kept of them but their symbol: they hold paths."""
        try:
            yield
        except (StoreError, Conflict):
            raise
        except self._backend.errors as error:
            failure = self._backend.failure(error)
        else:
            return
        raise failure.as_error(doing, key) from None


def _metadata(content: Content, writer: str) -> dict[str, str]:
    return {
        "sha256": content.sha256,
        "bytes": str(content.bytes),
        "stored-sha256": content.stored_sha256,
        "stored-bytes": str(content.stored_bytes),
        "writer": writer,
    }


def _claimed(standing: ObjectStat) -> Content | None:
    """What an object's metadata say that it holds, if they can be right."""
    told = standing.metadata
    try:
        content = Content(int(told["bytes"]), told["sha256"], int(told["stored-bytes"]), told["stored-sha256"])
    except (KeyError, ValueError):
        return None
    return content if content.stored_bytes == standing.bytes else None


def _stored(path: str, standing: ObjectStat, content: Content) -> StoredObject:
    return StoredObject.of(path, content, standing.modified)


def _parsed(data: bytes | None, message_key: str) -> Manifest | None:
    try:
        return None if data is None else Manifest.from_bytes(data, message_key=message_key)
    except InvalidManifest:
        return None


def _is_object(found: Listed) -> bool:
    """Whether a path is an attachment's: what desktops and consoles leave behind (folders, hidden files) is not."""
    parts = found.path.split("/")
    return len(parts) == _PARTS and is_key(parts[1]) and bool(parts[2]) and not parts[2].startswith(".")


def _place(path: str) -> str:
    """The path without the file name, which must not be shown."""
    return path.rpartition("/")[0]
