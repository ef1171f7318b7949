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
from attachments.storage.names import safe_name, shorter_names
from attachments.storage.verification import decrypt_attachment


def decrypt_message(store: Store, message_id: str, unseal: Transform, folder: Path) -> int:
    """Decrypt a message's attachments into `<folder>/<message_key>/<attachment_key>/`, and print where they are.

    A file gets its name only once it is complete and has the recorded hash. Returns the number of files.
    Raises StoreError, CommandFailed.
    """
    key, manifest = find_manifest(store, message_id)
    sealed = [entry for entry in manifest.attachments if entry.outcome == "stored" and entry.stored_sha256]
    for entry in sealed:
        try:
            say(str(_decrypt_file(store, key, entry, unseal, folder)))
        except CannotDecrypt:
            raise CommandFailed(
                f"Attachment {key}/{entry.attachment_key} cannot be decrypted: it was encrypted to other keys, or it "
                f"was truncated or altered. `attachments verify {key} --identity FILE` shows which."
            ) from None
        except OSError as error:
            raise CommandFailed(
                f"Cannot write into {folder} ({error.strerror}). Choose another folder with --to. Choose another "
                "folder with --to."
            ) from None
    return len(sealed)


def _decrypt_file(store: Store, message_key: str, entry: ManifestAttachment, unseal: Transform, folder: Path) -> Path:
    # Others may write to the store, so the manifest's path is not trusted: `decrypt_attachment` refuses it unless it is
    # this attachment's. Only its last part, made safe, becomes the file's name.
    name = (entry.key or "").rpartition("/")[2].removesuffix(SUFFIX)
    target = folder / message_key / entry.attachment_key / safe_name(name)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.parent / f".{secrets.token_hex(8)}"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123  # a descriptor
        try:
            decrypt_attachment(store, message_key, entry, unseal, file.write)
            file.flush()
            os.fsync(file.fileno())
            target = _rename(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _rename(partial: Path, target: Path) -> Path:
    """Give a file its name, or a shorter one if the file system does not allow its length."""
    for name in shorter_names(target.name):
        try:
            return partial.rename(target.with_name(name))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
