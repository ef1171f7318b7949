"""`attachments status`."""

import os

from attachments.cli.command_boundary import FAILED, import_prefect
from attachments.cli.options import InboxPath, Json, inbox_path
from attachments.cli.secret_files import read_secret_files
from attachments.foundation.terminal_text import say, say_json


def status(*, inbox: InboxPath | None = None, json: Json = False) -> int:
    """Count the waiting, running and ended work.

    For example:
      attachments status
      attachments status --json
    """
    read_secret_files(os.environ)
    import_prefect()
    from attachments.cli.actions.status_report import read_status, to_lines

    found = read_status(inbox_path(inbox))
    if json:
        say_json(found.model_dump(mode="json"))
    else:
        say(*to_lines(found))
    return FAILED if found.problems else 0
