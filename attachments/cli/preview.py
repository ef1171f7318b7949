"""`attachments preview`."""

import os

from attachments.cli.command_boundary import import_prefect
from attachments.cli.options import Json, MessageId, Name
from attachments.cli.secret_files import read_secret_files
from attachments.foundation.terminal_text import say, say_json


def preview(message_id: MessageId, /, *, deployment: Name = "default", json: Json = False) -> None:
    """Show what a deployment would download of a message, without downloading.

    For example:
      attachments preview "$MESSAGE_ID"
      attachments preview "$MESSAGE_ID" --deployment invoices --json

    Args:
        deployment: The deployment whose filter applies.
    """
    read_secret_files(os.environ)
    import_prefect()
    from attachments.cli.actions.message_preview import preview_message, to_lines

    found = preview_message(message_id, deployment)
    if json:
        say_json(found.model_dump(mode="json"))
    else:
        say(*to_lines(found))
