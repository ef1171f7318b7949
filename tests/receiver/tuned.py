"""`attachments receive` with other limits and faults at exact points; otherwise the very program.

``python -m tests.receiver.tuned '{"create_timeout": 2}' receive …`` sets fields of `ReceiverLimits`. ``kill`` with
``before-sync`` or ``after-sync`` has the process kill itself around the commit of the first delivery.
"""

import json
import os
import signal
import sqlite3
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from attachments.cli.main import main
from attachments.receiver import server
from attachments.receiver.limits import ReceiverLimits


class KilledConnection(sqlite3.Connection):
    """Ends its process, as `kill -9` does, before or after the commit that puts a delivery on the disk."""

    moment = ""
    has_delivery = False

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self.has_delivery |= statement.startswith("INSERT INTO entry")
        at_commit = statement == "COMMIT" and self.has_delivery
        if at_commit and self.moment == "before-sync":
            os.kill(os.getpid(), signal.SIGKILL)
        cursor = super().execute(statement, *values)
        if at_commit and self.moment == "after-sync":
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor


def tune(figures: dict[str, Any]) -> None:
    """Serve with other limits, and set the moment of death."""
    if moment := figures.pop("kill", None):
        KilledConnection.moment = moment
        sqlite3.connect = partial(sqlite3.connect, factory=KilledConnection)
    serve, limits = server.serve, ReceiverLimits(**figures)
    server.serve = lambda settings: serve(replace(settings, limits=limits))


if __name__ == "__main__":
    tune(json.loads(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
