"""`attachments setup`."""

import os
import sys

from attachments.cli.command_boundary import CommandFailed, import_prefect
from attachments.cli.secret_files import read_secret_files
from attachments.foundation.terminal_text import say


def setup(*, schedules_off: bool = False) -> None:
    """Create the blocks, limits, work pool and deployments in Prefect; safe to repeat.

    It reads EMAILGISTICS_API_KEY and ATTACHMENTS_URL from the environment. For example:
      attachments setup
      attachments setup --schedules-off

    Args:
        schedules_off: Switch on no schedule, not even the hourly reconciliation if the key has the scope reporting.
    """
    read_secret_files(os.environ)
    import_prefect()
    import asyncio

    from attachments.cli.actions.provisioning import set_up
    from attachments.doctor.probe import PREFECT_ERRORS, describe_error

    try:
        untried = asyncio.run(
            set_up(os.environ, lambda result, subject: say(f"{result:<10}{subject}"), switch_on=not schedules_off)
        )
    except PREFECT_ERRORS as error:
        what, remedy = describe_error(error)
        raise CommandFailed(f"{what} {remedy} Then run this again; what is listed above is already set up.") from None
    if untried:
        say(f"Everything is set up in Prefect, but the API key could not be checked: {untried}")
    else:
        by_hand = "`prefect worker start --pool attachments --type warm` and `attachments receive`"
        say(f"All set. Next: {by_hand}." if sys.stdout.isatty() else "All set.")
