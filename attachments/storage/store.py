"""The seam before whatever holds the files. Everything above it knows keys and bytes, nothing else."""

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

Probe = Literal["works", "kept", "not made yet"]
"""What came of trying a store: "kept" means that what was written and read could not be removed."""

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
    stored_bytes: int | None = None
    """Of the ciphertext, when that is what stands there; so is `stored_sha256`."""
    stored_sha256: str | None = None

    @classmethod
    def of(cls, key: str, content: Content, stored_at: datetime) -> Self:
        """This content under this key."""
        sealed = (content.stored_bytes, content.stored_sha256) if content.is_sealed else (None, None)
        return cls(key, content.bytes, content.sha256, stored_at, *sealed)

    def __repr__(self) -> str:
        """Without the key's last part, which is a customer's file name."""
        return f"StoredObject(key={self.key.rpartition('/')[0]!r}, bytes={self.bytes}, sha256={self.sha256!r})"


@dataclass(frozen=True)
class Seen:
    """What a listing tells of an object."""

    bytes: int
    modified: datetime
    """By the store's own clock, in UTC."""


@dataclass(frozen=True)
class Inventory:
    """What stands of a message: one listing, nothing is proven."""

    objects: Mapping[str, Seen]
    """By key."""
    is_held: bool
    """Whether a hold stands beside the manifest."""

    def __repr__(self) -> str:
        """Without the keys, which hold customers' file names."""
        return f"Inventory(objects={len(self.objects)}, is_held={self.is_held})"


def short_key(named: str) -> str | None:
    """What to say of the beginning of a key; None for anything else."""
    if not is_short_key(named):
        return None
    return (
        f"{normalized(named).lower()} is the beginning of a message key, as a run's name has it; give the whole key of "
        f"{KEY_LENGTH} hex digits, or the message's id: in the Prefect UI the run's parameters have the id, and its "
        "artifact and event the key"
    )


class Store(ABC):
    """Holds attachments and their manifests, for several threads, processes and machines at once.

    Every method may raise any StoreError. Nothing else comes out but what `chunks` and `change` raise.
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
        """Whether anything was ever encrypted in it, by this process or another. Asks the store."""

    @abstractmethod
    def read_manifest(self, message_key: str) -> Manifest | None:
        """The message's manifest, None when there is none. Raises InvalidManifest for an unreadable one.

        Reads no more bytes than a manifest may have, whatever stands there.
        """

    def find(self, named: str) -> tuple[str, Manifest | None]:
        """The key of the message that a person names by its id or its key, and its manifest.

        None when neither has one. Raises InvalidManifest for an unreadable one.
        """
        keys = candidate_keys(named)
        found = ((key, self.read_manifest(key)) for key in keys)
        return next((pair for pair in found if pair[1] is not None), (keys[0], None))

    def message_id(self, named: str) -> str:
        """The id of the message that a person names by its id or its key; of a key, its manifest knows it.

        Raises NothingStored when there is none, for then only the id helps.
        """
        if not may_name_key(named):
            return normalized(named)
        key, manifest = self.find(named)
        # Others may write to the store: an id that is not this message's is nothing that we could fetch for it.
        if manifest is None or message_key(manifest.message_id) != key:
            raise NothingStored(
                short_key(named)
                or f"{key} has the form of a message key, and the store has no manifest that tells the message's id; "
                "give the id itself",
                key=key,
            )
        return manifest.message_id

    @abstractmethod
    def update_manifest(self, message_key: str, change: ManifestChange) -> Manifest:
        """Replaces the manifest by what `change` makes of it, and hands back the new one.

        No other writer gets in between. `change` may be called more than once, and must not call the store.
        Raises NewerManifest rather than overwrite what a newer version wrote, and ManifestTooLarge rather than write
        what nobody would read.
        """

    @abstractmethod
    def manifest_url(self, message_key: str) -> str:
        """Where the manifest is, or will be, as an fsspec URL."""

    def location(self, key: str) -> str:
        """Where the object with this key is, as `open` takes it: a path, or an fsspec URL."""
        return f"{self.url}/{key}"

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
        size and SHA-256, that is success; anything else there raises AlreadyExists and stays untouched. A store that
        has encrypted before, has no recipients now and does not allow plaintext raises PlaintextRefused before it reads
        a chunk; what another process has begun to encrypt within the last minute may go unnoticed.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Whether its root is there. True where none cannot be told from an empty one, as with services."""

    @abstractmethod
    def message_keys(self) -> Iterator[str]:
        """The keys of all messages of which anything stands there, each once, in any order."""

    @abstractmethod
    def objects(self, message_key: str) -> Mapping[str, int]:
        """Sizes in bytes of all that stands under a message's attachments, by key: one listing, nothing is proven."""

    @abstractmethod
    def inventory(self, message_key: str) -> Inventory:
        """What stands of a message, when each object came there, and whether the message is held."""

    @abstractmethod
    def remove(self, key: str, *, stored_before: datetime | None = None) -> bool:
        """Removes an attachment's object, with whatever the store keeps beside it. Nothing there is fine.

        False when what stands there came to the store at that moment or later, by the store's clock, and stays; with
        services, what is stored within the one request of the removal is not seen. Whoever listed the store afterwards
        does not see it, whatever dies. Raises MalformedKey for a key that no object of ours can have: a manifest, a
        hidden file, a way out of the root.
        """

    @abstractmethod
    def remove_manifest(self, message_key: str, when: Callable[[Manifest], bool]) -> bool:
        """Removes the manifest that stands there if `when` says so of it, and says whether it did.

        Raises InvalidManifest and NewerManifest for one that cannot be judged. Services know no removing on
        condition: what another writes within that one request is lost, and rebuilt from the objects' proofs.
        """

    @abstractmethod
    def clock(self) -> datetime:
        """What the store's own clock says, in UTC. Writes something that no reader sees, and removes it."""

    @abstractmethod
    def read(self, key: str) -> Iterator[bytes]:
        """What stands under the key of an object, in blocks, as it is: ciphertext where it was encrypted.

        Raises NothingStored when nothing does, and MalformedKey for a key that no object of ours can have.
        """

    @abstractmethod
    def orphans(self, *, older_than: timedelta) -> Iterator[Orphan]:
        """What writers have left behind that is older than this: open uploads, temporary files.

        A writer that lives looks the same to most stores, so choose an age that no download reaches.
        """

    @abstractmethod
    def probe(self) -> Probe:
        """Writes something small where no reader looks, reads it back and removes it.

        Safe at any time, beside any number of writers and other probes. A store that has yet to be made is not made.
        """

    @abstractmethod
    def clear(self, residue: Orphan) -> None:
        """Removes one of these."""
