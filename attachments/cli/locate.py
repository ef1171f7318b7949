"""`attachments locate`."""

import os
import shlex
from json import loads

from attachments.cli.options import Json, MessageId
from attachments.cli.secret_files import read_secret_files
from attachments.foundation.terminal_text import say, say_json


def locate(message_id: MessageId, /, *, json: Json = False) -> None:
    """Say where a message's files are.

    The store is the one of ATTACHMENTS_URL. For example:
      attachments locate "$MESSAGE_ID"
      attachments locate --json "$MESSAGE_ID"

    Args:
        json: Print the manifest as JSON.
    """
    read_secret_files(os.environ)
    from attachments.cli.actions.store_access import configured_store, find_manifest
    from attachments.storage.keys import manifest_path

    with configured_store() as store:
        key, manifest = find_manifest(store, message_id)
        if json:
            say_json(loads(manifest.to_bytes()))
            return
        say(shlex.quote(store.location(manifest_path(key))))
        for entry in manifest.attachments:
            # Quoted for a shell where necessary.
            is_at_home = entry.is_at_home(key)
            where = shlex.quote(store.location(entry.key or "")) if is_at_home else entry.attachment_key
            note = entry.rule or entry.code or (f"{entry.purged_at:%Y-%m-%d}" if entry.purged_at else "")
            if entry.key is not None and not is_at_home:
                note = "the manifest has another attachment's path, so it was altered; see `attachments verify`"
            say(f"{entry.outcome:<12}{entry.bytes or 0:>14,}  {where}  {note}".rstrip())
