"""`attachments verify`."""

import os
from datetime import timedelta

from attachments.cli.command_boundary import FAILED
from attachments.cli.options import Count, FilePath, Hours, MessageId
from attachments.cli.secret_files import read_secret_files


def verify(
    message_id: MessageId | None = None,
    /,
    *,
    identity: FilePath | None = None,
    clean: bool = False,
    older_than: Hours = timedelta(hours=24),
    at_once: Count = 4,
) -> int:
    """Read the stored objects again, and compare them with their manifests.

    Without a message's id, it reads all messages. For example:
      attachments verify
      attachments verify --clean
      attachments verify "$MESSAGE_ID" --identity key.txt

    Args:
        identity: An age identity's file, to decrypt as well and compare the decrypted content.
        clean: Remove the leftovers of crashed writers.
        older_than: The age from which a file counts as a leftover; it must exceed the longest download.
        at_once: How many messages to read at a time.
    """
    read_secret_files(os.environ)
    from attachments.cli.actions.store_access import configured_store, read_identity
    from attachments.cli.actions.store_verification import verify_store

    with configured_store() as store:
        verdict = verify_store(
            store,
            message_id,
            unseal=read_identity(identity) if identity else None,
            at_once=at_once,
            clean=clean,
            older_than=older_than,
        )
    return FAILED if verdict.differences or not verdict.messages else 0
