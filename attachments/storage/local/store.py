"""The local file system as a store.

```
<root>/<message_key>/<attachment_key>/<safe file name>     0600 in folders 0700
<root>/<message_key>/manifest.json
<root>/.incoming/      files on their way in (staging.py)
<root>/.locks/         lock files (locks.py)
<root>/.encryption/    the marker of a store that has encrypted (encryption_marker.py)
```
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attachments.storage.backends.base import Orphan
from attachments.storage.content import Transform, pour
from attachments.storage.encryption_marker import create_local_marker, has_local_marker, plaintext_refused_error
from attachments.storage.errors import InvalidManifest, NothingStored
from attachments.storage.keys import (
    attachment_path,
    checked_key,
    checked_object_path,
    is_hold,
    is_key,
    key_prefix,
    manifest_path,
)
from attachments.storage.local.checksums import BLOCK, attach_proof, written_at
from attachments.storage.local.commit import commit, proven, read_manifest, replace_manifest
from attachments.storage.local.errors import translated
from attachments.storage.local.folders import Folder
from attachments.storage.local.locks import claim, locked
from attachments.storage.local.removal import remove_manifest, remove_object
from attachments.storage.local.root import Root
from attachments.storage.local.staging import INCOMING, abandoned, incoming, sweep
from attachments.storage.manifest import Manifest
from attachments.storage.names import safe_name as made_safe
from attachments.storage.store import Inventory, ManifestChange, ObjectInfo, ProbeResult, Store, StoredObject


class LocalStore(Store):
    """Attachments in folders of this machine, or of a mount with POSIX semantics."""

    def __init__(
        self, path: Path, *, seal: Transform | None = None, suffix: str = "", allow_plaintext: bool = False
    ) -> None:
        """`seal` encrypts what is written, and `suffix` is then added to its name.

        Without it, `allow_plaintext` decides whether a store that has encrypted before is written to.
        """
        self._path = path
        self._seal = seal
        self._suffix = suffix
        self._allow_plaintext = allow_plaintext
        self._root = Root(path)
        self._has_swept = False

    @property
    def url(self) -> str:
        return f"file://{self._path}"

    @property
    def encrypts(self) -> bool:
        return self._seal is not None

    def has_encrypted(self) -> bool:
        with translated("look for the marker of encryption in the store"), ExitStack() as opened:
            root = self._root.opened(opened)
            return root is not None and has_local_marker(root)

    def location(self, key: str) -> str:
        return str(self._path / key)

    def manifest_url(self, message_key: str) -> str:
        return f"file://{self._path / manifest_path(message_key)}"

    def read_manifest(self, message_key: str) -> Manifest | None:
        checked_key(message_key)
        with translated("read the manifest of message", key=message_key), ExitStack() as opened:
            root = self._root.opened(opened)
            data = read_manifest(root, message_key) if root else None
        return None if data is None else Manifest.from_bytes(data, message_key=message_key)

    def update_manifest(self, message_key: str, change: ManifestChange) -> Manifest:
        checked_key(message_key)
        doing = "write the manifest of message"
        with ExitStack() as opened:
            with translated(doing, key=message_key):
                root = self._root.made(opened)
                opened.enter_context(locked(root, message_key))
                data = read_manifest(root, message_key)
            try:
                current = None if data is None else Manifest.from_bytes(data, message_key=message_key)
            except InvalidManifest:
                current = None
            new = change(current)
            with translated(doing, key=message_key):
                replace_manifest(root, message_key, new.to_bytes())
        return new

    def stored(self, message_key: str) -> Mapping[str, StoredObject]:
        checked_key(message_key)
        found: dict[str, StoredObject] = {}
        with translated("list message", key=message_key), ExitStack() as opened:
            root = self._root.opened(opened)
            if root is None or not root.has(message_key):
                return found
            message = opened.enter_context(root.folder(message_key))
            for key in filter(is_key, message.names()):
                # Skip what is not a folder, and what a purge has just removed.
                with suppress(FileNotFoundError, NotADirectoryError), message.folder(key) as folder:
                    if existing := proven(folder, f"{message_key}/{key}"):
                        found[key] = existing
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
        place = f"{checked_key(message_key)}/{checked_key(attachment_key)}"
        stem = place.replace("/", ".")
        doing = "store attachment"
        with ExitStack() as opened:
            with translated(doing, key=place):
                root = self._root.made(opened)
                self._check_encryption(root, place)
                self._sweep(root, stem)
                name = made_safe(made_safe(safe_name) + self._suffix, most=root.longest_name())
                file = opened.enter_context(incoming(root, stem))

            def write(chunk: bytes) -> None:
                # Errors of the source are not the store's: only those of writing a chunk are translated.
                with translated(doing, key=place):
                    file.write(chunk)

            content = pour(chunks, write, self._seal)
            with translated(doing, key=place):
                attach_proof(file.fd, content, content_type=None if self._suffix else content_type)
                file.sync()
                with locked(root, message_key):
                    return commit(root, attachment_path(message_key, attachment_key, name), file, content)

    def exists(self) -> bool:
        with translated("look for the store"), ExitStack() as opened:
            return self._root.opened(opened) is not None

    def message_keys(self) -> Iterator[str]:
        with translated("list the store"), ExitStack() as opened:
            root = self._root.opened(opened)
            yield from filter(is_key, root.each_name() if root else ())

    def objects(self, message_key: str) -> Mapping[str, int]:
        return {key: seen.bytes for key, seen in self.inventory(message_key).objects.items()}

    def inventory(self, message_key: str) -> Inventory:
        checked_key(message_key)
        found: dict[str, ObjectInfo] = {}
        with translated("list message", key=message_key), ExitStack() as opened:
            root = self._root.opened(opened)
            if root is None or not root.has(message_key):
                return Inventory(found, is_held=False)
            message = opened.enter_context(root.folder(message_key))
            names = message.names()
            for key in filter(is_key, names):
                with suppress(FileNotFoundError, NotADirectoryError), message.folder(key) as folder:
                    for name in folder.names():
                        with suppress(FileNotFoundError, FileExistsError), folder.opened(name, os.O_RDONLY) as fd:
                            seen = ObjectInfo(os.fstat(fd).st_size, written_at(fd))
                            found[attachment_path(message_key, key, name)] = seen
        return Inventory(found, is_held=any(map(is_hold, names)))

    def remove(self, key: str, *, stored_before: datetime | None = None) -> bool:
        place = checked_object_path(key).rpartition("/")[0]
        with translated("remove attachment", key=place), ExitStack() as opened:
            root = self._root.opened(opened)
            if root is None:
                return True
            opened.enter_context(locked(root, place.partition("/")[0]))
            return remove_object(root, key, stored_before)

    def remove_manifest(self, message_key: str, when: Callable[[Manifest], bool]) -> bool:
        checked_key(message_key)
        doing = "remove the manifest of message"
        with ExitStack() as opened:
            with translated(doing, key=message_key):
                root = self._root.opened(opened)
                if root is None:
                    return False
                opened.enter_context(locked(root, message_key))
                data = read_manifest(root, message_key)
            if data is None or not when(Manifest.from_bytes(data, message_key=message_key)):
                return False
            with translated(doing, key=message_key):
                remove_manifest(root, message_key)
        return True

    def clock(self) -> datetime:
        with translated("write to the store"), ExitStack() as opened:
            root = self._root.opened(opened)
            if root is None or not root.has(INCOMING):
                return datetime.now(UTC)  # do not create the store for this
            file = opened.enter_context(incoming(root, "clock"))
            file.write(b"now")
            return written_at(file.fd)

    def read(self, key: str) -> Iterator[bytes]:
        message, attachment, name = checked_object_path(key).split("/")
        place = f"{message}/{attachment}"
        with translated("read attachment", key=place), ExitStack() as opened:
            root = self._root.opened(opened)
            try:
                if root is None:
                    raise FileNotFoundError
                folder = opened.enter_context(opened.enter_context(root.folder(message)).folder(attachment))
                fd = opened.enter_context(folder.opened(name, os.O_RDONLY))
            except (FileNotFoundError, NotADirectoryError, FileExistsError):
                raise NothingStored(f"no object exists under attachment {place}", key=place) from None
            while block := os.read(fd, BLOCK):
                yield block

    def orphans(self, *, older_than: timedelta) -> Iterator[Orphan]:
        with translated("look for what writers left in the store"), ExitStack() as opened:
            root = self._root.opened(opened)
            for name, begun in abandoned(root) if root else ():
                if begun <= datetime.now(UTC) - older_than:
                    yield Orphan("temporary file", key_prefix(name.split(".")), f"{INCOMING}/{name}", begun)

    def probe(self) -> ProbeResult:
        with translated("probe the store"), ExitStack() as opened:
            root = self._root.opened(opened)
            if root is None:
                _check_that_it_can_be_made(self._path)
                return "not made yet"
            _try_out(root)
            # The staging folder; the probe does not create it.
            if root.has(INCOMING):
                _try_out(opened.enter_context(root.folder(INCOMING)))
        return "works"

    def clear(self, residue: Orphan) -> None:
        with translated("clear", key=residue.key), ExitStack() as opened:
            root = self._root.opened(opened)
            if root is not None:
                sweep(root, residue.path.removeprefix(f"{INCOMING}/"))

    def _check_encryption(self, root: Folder, place: str) -> None:
        """Check the marker for each file, because a local check is cheap."""
        if self._seal is not None:
            create_local_marker(root)
        elif not self._allow_plaintext and has_local_marker(root):
            raise plaintext_refused_error(place)

    def _sweep(self, root: Folder, stem: str) -> None:
        """Remove dead writers' files: at first all of them, later those of this attachment."""
        sweep(root, f"{stem}." if self._has_swept else "")
        self._has_swept = True


def _try_out(folder: Folder) -> None:
    """Write a nameless file and read it back, so that a crash leaves nothing behind."""
    content = secrets.token_bytes(64)
    name = f".probe-{secrets.token_hex(8)}"
    with folder.opened(name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        os.unlink(name, dir_fd=folder.fd)
        claim(fd)  # the store needs locks
        os.write(fd, content)
        os.fsync(fd)
        if os.pread(fd, len(content), 0) != content:
            raise OSError(errno.EIO, "the content that was read differs from what was written")


def _check_that_it_can_be_made(path: Path) -> None:
    """Check that the first write could create the folder."""
    parent = next(folder for folder in path.parents if folder.is_dir())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "the parent folder is not writable")
