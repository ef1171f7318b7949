"""The interface of every store. Code above it knows only keys and bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Self

from attachments.foundation.message_id import normalized
from attachments.storage.backends.base import Orphan
from attachments.storage.content import Content
from attachments.storage.errors import NothingStored
from attachments.storage.keys import KEY_LENGTH, candidate_keys, is_short_key, may_name_key, message_key
from attachments.storage.manifest import Manifest

ProbeResult = Literal["works", "kept", "not made yet"]
"""The result of a test write: "kept" means that the test object was written and read but could not be removed."""

ManifestChange = Callable[[Manifest | None], Manifest]
"""Computes the new manifest from the existing one, or from None if there is no readable one. Must be pure."""


@dataclass(frozen=True)
class StoredObject:
    """An attachment that is completely stored."""

    key: str
    """From the store's root: ``<message_key>/<attachment_key>/<safe file name>``."""
    bytes: int
    sha256: str
    """64 hex digits."""
    stored_at: datetime
    """When its last byte was written, in UTC."""
    stored_bytes: int | None = None
    """Of the ciphertext, if the object is encrypted; likewise `stored_sha256`."""
    stored_sha256: str | None = None

    @classmethod
    def of(cls, key: str, content: Content, stored_at: datetime) -> Self:
        """A stored object with this content and key."""
        sealed = (content.stored_bytes, content.stored_sha256) if content.is_sealed else (None, None)
        return cls(key, content.bytes, content.sha256, stored_at, *sealed)

    def __repr__(self) -> str:
        """Without the key's last part, which is a customer's file name."""
        return f"StoredObject(key={self.key.rpartition('/')[0]!r}, bytes={self.bytes}, sha256={self.sha256!r})"


@dataclass(frozen=True)
class ObjectInfo:
    """An object in a listing."""

    bytes: int
    modified: datetime
    """By the store's own clock, in UTC."""


@dataclass(frozen=True)
class Inventory:
    """A message's objects, from one listing; their content is not checked."""

    objects: Mapping[str, ObjectInfo]
    """By key."""
    is_held: bool
    """Whether there is a hold beside the manifest."""

    def __repr__(self) -> str:
        """Without the keys, which hold customers' file names."""
        return f"Inventory(objects={len(self.objects)}, is_held={self.is_held})"


def short_key_hint(named: str) -> str | None:
    """A hint for the beginning of a key; None for any other text."""
    if not is_short_key(named):
        return None
    return (
        f"{normalized(named).lower()} is the beginning of a message key, as a run's name has it; give the whole key of "
        f"{KEY_LENGTH} hex digits, or the message's id: in the Prefect UI the run's parameters have the id, and its "
        "artifact and event the key"
    )


class Store(ABC):
    """Holds attachments and their manifests, for several threads, processes and machines at once.

    Every method may raise any StoreError, and otherwise only what `chunks` and `change` raise.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The root, as an fsspec URL, without credentials."""

    @property
    @abstractmethod
    def encrypts(self) -> bool:
        """Whether it encrypts attachments to age recipients before they leave this machine."""

    @abstractmethod
    def has_encrypted(self) -> bool:
        """Whether anything was ever encrypted in it, by any process. Not cached."""

    @abstractmethod
    def read_manifest(self, message_key: str) -> Manifest | None:
        """The message's manifest; None if there is none. Raises InvalidManifest for an unreadable one.

        Reads no more bytes than a manifest may have, however large the object is.
        """

    def find(self, named: str) -> tuple[str, Manifest | None]:
        """The key of the message that a person names by its id or its key, and its manifest.

        The manifest is None if there is none. Raises InvalidManifest for an unreadable one.
        """
        keys = candidate_keys(named)
        found = ((key, self.read_manifest(key)) for key in keys)
        return next((pair for pair in found if pair[1] is not None), (keys[0], None))

    def message_id(self, named: str) -> str:
        """The id of the message that a person names by its id or its key; for a key, it comes from the manifest.

        Raises NothingStored if there is no manifest, because then only the id helps.
        """
        if not may_name_key(named):
            return normalized(named)
        key, manifest = self.find(named)
        # Others may write to the store, so do not use an id that does not match the key.
        if manifest is None or message_key(manifest.message_id) != key:
            raise NothingStored(
                short_key_hint(named)
                or f"{key} has the form of a message key, and the store has no manifest with the message's id; "
                "give the id itself",
                key=key,
            )
        return manifest.message_id

    @abstractmethod
    def update_manifest(self, message_key: str, change: ManifestChange) -> Manifest:
        """Replace the manifest with the result of `change`, and return it.

        Atomic: no other writer's change is lost. `change` may be called more than once, and must not call the store.
        Raises NewerManifest instead of overwriting a newer version's manifest, and ManifestTooLarge instead of writing
        one that could not be read back.
        """

    @abstractmethod
    def manifest_url(self, message_key: str) -> str:
        """Where the manifest is, or will be, as an fsspec URL."""

    def location(self, key: str) -> str:
        """Where the object with this key is, as `open` takes it: a path, or an fsspec URL."""
        return f"{self.url}/{key}"

    @abstractmethod
    def stored(self, message_key: str) -> Mapping[str, StoredObject]:
        """The message's attachments with a proof of completeness, by attachment key: one listing per message.

        An object without proof is left out; a new download compares it in `write`.
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
        """Store the chunks as one object, all of it or nothing, and return the stored object.

        Chunks of any size; memory does not grow with their sum. Errors of `chunks` are raised unchanged, and nothing is
        left behind. If the attachment is already stored, under any file name, with the same size and SHA-256, that is
        success; any other object there raises AlreadyExists and stays untouched. A store that has encrypted before, has
        no recipients now and does not allow plaintext raises PlaintextRefused before it reads a chunk; encryption that
        another process began within the last minute may go unnoticed.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Whether its root exists. True if a missing root cannot be distinguished from an empty one, as with
        services."""

    @abstractmethod
    def message_keys(self) -> Iterator[str]:
        """The keys of all messages with any object, each once, in any order."""

    @abstractmethod
    def objects(self, message_key: str) -> Mapping[str, int]:
        """Sizes in bytes of a message's objects, by key, from one listing; their content is not checked."""

    @abstractmethod
    def inventory(self, message_key: str) -> Inventory:
        """A message's objects with their times, and whether the message is on hold."""

    @abstractmethod
    def remove(self, key: str, *, stored_before: datetime | None = None) -> bool:
        """Remove an attachment's object, and what the store keeps beside it. No-op if missing.

        False if the object was stored at `stored_before` or later by the store's clock, and therefore stays; services
        cannot detect an object that is stored during the removal request. Later listings do not show a removed object,
        whatever crashes. Raises MalformedKey for a key that no attachment can have: a manifest, a hidden file, a path
        out of the root.
        """

    @abstractmethod
    def remove_manifest(self, message_key: str, when: Callable[[Manifest], bool]) -> bool:
        """Remove the manifest if `when` returns true for it; returns whether it was removed.

        Raises InvalidManifest and NewerManifest if it cannot be read. Services have no conditional removal: a change
        during that request is lost, and rebuilt from the objects' proofs.
        """

    @abstractmethod
    def clock(self) -> datetime:
        """The store's own time, in UTC. Writes and removes a temporary object that no reader sees."""

    @abstractmethod
    def read(self, key: str) -> Iterator[bytes]:
        """The stored bytes of an object, in blocks: ciphertext if it is encrypted.

        Raises NothingStored if it does not exist, and MalformedKey for a key that no attachment can have.
        """

    @abstractmethod
    def orphans(self, *, older_than: timedelta) -> Iterator[Orphan]:
        """Leftovers of crashed writers that are older than this: open uploads, temporary files.

        Most stores cannot distinguish a live writer, so choose an age that no download reaches.
        """

    @abstractmethod
    def probe(self) -> ProbeResult:
        """Write a small object where no reader looks, read it back and remove it.

        Safe at any time, beside any number of writers and other probes. Does not create a store that does not exist
        yet.
        """

    @abstractmethod
    def clear(self, orphan: Orphan) -> None:
        """Remove one of these."""
