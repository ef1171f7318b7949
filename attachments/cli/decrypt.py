"""`attachments decrypt`."""

import os

from attachments.cli.command_boundary import CommandFailed
from attachments.cli.options import FilePath, MessageId
from attachments.cli.secret_files import read_secret_files


def decrypt(message_id: MessageId, /, *, identity: FilePath, to: FilePath) -> None:
    """Decrypt a message's attachments into a folder.

    For example:
      attachments decrypt "$MESSAGE_ID" --identity key.txt --to ~/decrypted

    Args:
        identity: The age identity's file.
        to: The folder for the decrypted files.
    """
    read_secret_files(os.environ)
    from attachments.cli.actions.decryption import decrypt_message
    from attachments.cli.actions.store_access import configured_store, read_identity

    with configured_store() as store:
        count = decrypt_message(store, message_id, read_identity(identity), to)
    if not count:
        raise CommandFailed(
            "No attachment of this message was encrypted with age; `attachments locate` shows where its files are."
        )
