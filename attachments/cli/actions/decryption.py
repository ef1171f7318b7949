"""Decrypts a message's attachments into a folder."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from attachments.cli.actions.store_access import find_manifest
from attachments.cli.command_boundary import CommandFailed
from attachments.foundation.terminal_text import say
from attachments.storage import Store
from attachments.storage.age import SUFFIX
from attachments.storage.content import Transform
from attachments.storage.errors import CannotDecrypt
from attachments.storage.manifest import ManifestAttachment
from attachments.storage.names import safe_name, shortened
from attachments.storage.verification import unsealed


def decrypt_message(store: Store, message_id: str, unseal: Transform, folder: Path) -> int:
    """Decrypt a message's attachments into `<folder>/<message_key>/<attachment_key>/`, and print where they are.

    A file has its name only when all of it is there and has the hash that is recorded. Returns how many there are.
    Raises StoreError, CommandFailed.
    """
    key, manifest = find_manifest(store, message_id)
    sealed = [entry for entry in manifest.attachments if entry.outcome == "stored" and entry.stored_sha256]
    for entry in sealed:
        try:
            say(str(_decrypted(store, key, entry, unseal, folder)))
        except CannotDecrypt:
            raise CommandFailed(
                f"Attachment {key}/{entry.attachment_key} cannot be decrypted: it was encrypted to other keys, or it "
                f"was cut or altered. `attachments verify {key} --identity FILE` tells which."
            ) from None
        except OSError as error:
            raise CommandFailed(f"Cannot write into {folder} ({error.strerror}).") from None
    return len(sealed)


def _decrypted(store: Store, message_key: str, entry: ManifestAttachment, unseal: Transform, folder: Path) -> Path:
    # The manifest is read from the store, where others may write: its key is not believed, and `unsealed` refuses it
    # unless it is this attachment's. What the file is called comes from its own name all the same.
    name = (entry.key or "").rpartition("/")[2].removesuffix(SUFFIX)
    target = folder / message_key / entry.attachment_key / safe_name(name)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.parent / f".{secrets.token_hex(8)}"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123  # a descriptor
        try:
            unsealed(store, message_key, entry, unseal, file.write)
            file.flush()
            os.fsync(file.fileno())
            target = _renamed(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _renamed(partial: Path, target: Path) -> Path:
    """Gives a file its name, or a shorter one where its folder's file system allows no longer ones."""
    for name in shortened(target.name):
        try:
            return partial.rename(target.with_name(name))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
