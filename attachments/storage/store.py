"""The seam before whatever holds the files. Everything above it knows keys and bytes, nothing else."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fsspec.core import split_protocol

from attachments.storage.errors import UnsupportedStore
from attachments.storage.manifest import Manifest

ManifestChange = Callable[[Manifest | None], Manifest]
"""Makes the new manifest of the one that stands: None when there is none that can be read. Must be pure."""


@dataclass(frozen=True)
class StoredObject:
    """An attachment that stands in the store, whole."""

    key: str
    """From the store's root: ``<message_key>/<attachment_key>/<safe file name>``."""
    bytes: int
    sha256: str
    """64 hex digits."""
    stored_at: datetime
    """When its last byte was written, in UTC."""

    def __repr__(self) -> str:
        """Without the key's last part, which is a customer's file name."""
        return f"StoredObject(key={self.key.rpartition('/')[0]!r}, bytes={self.bytes}, sha256={self.sha256!r})"


class Store(ABC):
    """Holds attachments and their manifests, for several threads, processes and machines at once.

    Every method may raise any StoreError. Nothing else comes out but what `chunks` and `change` raise.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The root, as an fsspec URL, without credentials."""

    @abstractmethod
    def read_manifest(self, message_key: str) -> Manifest | None:
        """The message's manifest, None when there is none. Raises InvalidManifest for an unreadable one."""

    @abstractmethod
    def update_manifest(self, message_key: str, change: ManifestChange) -> Manifest:
        """Replaces the manifest by what `change` makes of it, and hands back the new one.

        No other writer gets in between. `change` may be called more than once, and must not call the store.
        Raises NewerManifest rather than overwrite what a newer version wrote.
        """

    @abstractmethod
    def manifest_url(self, message_key: str) -> str:
        """Where the manifest is, or will be, as an fsspec URL."""

    @abstractmethod
    def stored(self, message_key: str) -> Mapping[str, StoredObject]:
        """What stands there with proof that it is ours and whole, by attachment key: one listing a message.

        An object without proof is left out; downloading it again and `write` settle it by comparing.
        """

    @abstractmethod
    def write(
        self,
        message_key: str,
        attachment_key: str,
        safe_name: str,
        chunks: Iterable[bytes],
        *,
        content_type: str | None = None,
    ) -> StoredObject:
        """Stores what the chunks hold, all of it or nothing, and hands back what then stands there.

        Chunks of any size; memory does not grow with their sum. What `chunks` raises comes out as it is, with
        nothing left behind. When the attachment stands there already, whatever its file name, with the same
        size and SHA-256, that is success; anything else there raises AlreadyExists and stays untouched.
        """


def open_store(url: str, options: Mapping[str, Any] | None = None) -> Store:
    """The store at an fsspec URL: today ``file://…`` or a plain path, relative to the working directory.

    Nothing is created before the first write. Raises UnsupportedStore for any other protocol.
    """
    protocol = _protocol(url)
    if protocol not in {"file", "local"}:
        # The protocol alone: a URL may hold credentials.
        raise UnsupportedStore(
            f"no store for {protocol}: URLs; supported now are file:///path and plain paths. "
            "Set the store's URL to one of these"
        )
    if options:
        raise UnsupportedStore(
            f"the local store takes no options; remove {', '.join(sorted(options))} from the store's options"
        )
    if sys.platform == "win32":
        raise UnsupportedStore(
            "the local store needs POSIX file locks, which Windows lacks; run this on Linux, macOS or in WSL"
        )
    # Not at the top: this module is imported on Windows too, where the local store's imports fail.
    from attachments.storage.local import LocalStore  # noqa: PLC0415

    return LocalStore.at(url)


def _protocol(url: str) -> str:
    if not url.strip():
        raise UnsupportedStore("the store's URL is empty; set it to a path such as file:///srv/attachments")
    if "::" in url:
        raise UnsupportedStore(
            "the store's URL chains file systems with '::', which can't be written to atomically; "
            "set it to a plain path or file:///path"
        )
    protocol, _ = split_protocol(url)
    return protocol or "file"
