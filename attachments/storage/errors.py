"""Everything that can go wrong in a store.

StoreError
├── StoreUnavailable     the store does not answer or is out of some resource: trying again may help
├── AccessDenied         the store refuses access
├── OutOfSpace           no room left, or a quota is used up
├── NotFound             the store itself is missing (an unmounted disk, a deleted bucket)
├── NothingStored        no object exists under the requested key
├── AlreadyExists        a foreign object exists under the key; it was left alone
├── UnsupportedStore     no store supports the URL, or the file system lacks a required feature
├── InvalidManifest      an unreadable manifest.json: treat it as lost and rebuild it
├── NewerManifest        a manifest.json from a newer version of this project: never overwritten
├── ManifestTooLarge     a manifest.json that would be too large: it is not written
├── MalformedKey         (also a ValueError) a text that cannot be the key of a message, attachment or object
├── PlaintextRefused     the store has encrypted before, and its block has no recipients now; nothing is stored
└── CannotDecrypt        not an age file for these identities, or truncated or altered

Their texts contain keys, never a file name or a path, because Prefect shows them to every user.
"""

from __future__ import annotations

from typing import ClassVar


class StoreError(Exception):
    """A store failed.

    `happened` says what, and `remedy` what to do where that is not part of it; the text of the error is both.
    `key` says where: ``<message_key>`` or ``<message_key>/<attachment_key>``, None when it concerns the
    whole store. `retryable` says whether the same call may succeed when it is made again in a moment;
    `outcome_code` is the short stable word for a manifest's ``code``.
    """

    retryable: ClassVar[bool] = False
    outcome_code: ClassVar[str] = "store-error"

    def __init__(self, happened: str, *, key: str | None = None, remedy: str = "") -> None:
        super().__init__(f"{happened}: {remedy}" if remedy else happened)
        self.happened = happened
        self.remedy = remedy
        self.key = key


class StoreUnavailable(StoreError):
    """The store does not respond, or temporarily ran out of a resource (file descriptors, memory)."""

    retryable = True
    outcome_code = "store-unavailable"


class AccessDenied(StoreError):
    """The store refuses access: permissions, ownership, or a read-only file system."""

    outcome_code = "access-denied"


class OutOfSpace(StoreError):
    """No room, or over quota. A retry succeeds only after a person has made room."""

    outcome_code = "out-of-space"


class NotFound(StoreError):
    """The store's root has disappeared. It is not created again, because the files might land on the wrong disk."""

    outcome_code = "store-not-found"


class NothingStored(StoreError):
    """No object exists under the key: it was never stored, or it was removed."""

    outcome_code = "nothing-stored"


class AlreadyExists(StoreError):
    """A foreign object exists under the key. It was not touched."""

    outcome_code = "already-exists"


class UnsupportedStore(StoreError):
    """No store supports the URL, or the store lacks a required feature."""

    outcome_code = "unsupported-store"


class InvalidManifest(StoreError):
    """A manifest that is damaged or has another format. It counts as lost, and the next run rebuilds it."""

    outcome_code = "invalid-manifest"


class NewerManifest(StoreError):
    """A manifest that a newer version wrote. Overwriting it would lose what that version recorded."""

    outcome_code = "newer-manifest"


class ManifestTooLarge(StoreError):
    """A manifest of more bytes than are ever read. The message has more attachments than a manifest can record."""

    outcome_code = "manifest-too-large"


class MalformedKey(StoreError, ValueError):
    """A malformed key. The error's text does not repeat it, because it may be an id or a file name."""

    outcome_code = "malformed-key"


class PlaintextRefused(StoreError):
    """The store has encrypted before, and would now store plaintext. Recipients may have been lost."""

    outcome_code = "plaintext-refused"


class CannotDecrypt(StoreError):
    """It is not an age file, it was altered or truncated, or none of the identities can decrypt it."""

    outcome_code = "cannot-decrypt"
