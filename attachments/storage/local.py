"""The local file system as a store.

```
<root>/<message_key>/<attachment_key>/<safe file name>     0600 in folders 0700
<root>/<message_key>/manifest.json
<root>/.incoming/      files on their way in (incoming.py)
<root>/.locks/         lock files (locks.py)
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from fsspec.core import url_to_fs

from attachments.storage.committing import commit, proven, read_manifest, replace_manifest
from attachments.storage.errors import InvalidManifest
from attachments.storage.folders import Folder
from attachments.storage.hashing import StreamHash
from attachments.storage.incoming import incoming, sweep
from attachments.storage.keys import attachment_path, checked_key, is_key, manifest_path
from attachments.storage.local_errors import translated
from attachments.storage.locks import locked
from attachments.storage.manifest import Manifest
from attachments.storage.names import safe_name as made_safe
from attachments.storage.proofs import Content, attach_proof
from attachments.storage.root import Root
from attachments.storage.store import ManifestChange, Store, StoredObject


class LocalStore(Store):
    """Attachments in folders of this machine, or of a mount with POSIX semantics."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._root = Root(path)
        self._has_swept = False

    @classmethod
    def at(cls, url: str) -> LocalStore:
        """The store at a ``file://`` URL or path, which fsspec makes absolute."""
        _, path = url_to_fs(url)
        return cls(Path(path))

    @property
    def url(self) -> str:
        return f"file://{self._path}"

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
                # What is no folder, or is purged under our eyes, is nothing that we could vouch for.
                with suppress(FileNotFoundError, NotADirectoryError), message.folder(key) as folder:
                    if standing := proven(folder, f"{message_key}/{key}"):
                        found[key] = standing
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
        key = attachment_path(message_key, attachment_key, made_safe(safe_name))
        place, _, _ = key.rpartition("/")
        stem = place.replace("/", ".")
        doing = "store attachment"
        with ExitStack() as opened:
            with translated(doing, key=place):
                root = self._root.made(opened)
                self._sweep(root, stem)
                file = opened.enter_context(incoming(root, stem))
            digest = opened.enter_context(StreamHash())
            # The source's errors are not ours: only what we do with a chunk is translated.
            for buffer in chunks:
                # The hash may lag behind, so a buffer that the source fills again is copied.
                chunk = buffer if isinstance(buffer, bytes) else bytes(memoryview(buffer))
                digest.update(chunk)
                with translated(doing, key=place):
                    file.write(chunk)
            content = Content(file.bytes, digest.hexdigest())
            with translated(doing, key=place):
                attach_proof(file.fd, content, content_type=content_type)
                file.sync()
                with locked(root, message_key):
                    return commit(root, key, file, content)

    def _sweep(self, root: Folder, stem: str) -> None:
        """Removes what dead writers have left: all of it once, later what they left of this attachment."""
        sweep(root, f"{stem}." if self._has_swept else "")
        self._has_swept = True
