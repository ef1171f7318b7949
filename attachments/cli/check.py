"""`attachments check`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attachments.cli.command_boundary import FAILED
from attachments.foundation.terminal_text import say


def check(
    file: Path = Path("prefect.yaml"),
    /,
    *,
    filter: Annotated[str | None, Parameter(metavar="JSON")] = None,  # noqa: A002  the option's name
) -> int:
    """Check the filters of a prefect.yaml, or one filter.

    For example:
      attachments check ~/my-project/prefect.yaml
      attachments check --filter '{"include": [{"names": ["*.pdf"]}]}'

    Args:
        file: The prefect.yaml.
        filter: Check this filter, not a file.
    """
    from attachments.cli.actions.filter_check import check_file, check_filter_text

    mistakes = list(check_filter_text(filter) if filter is not None else check_file(file))
    if mistakes:
        say(*mistakes, is_error=True)
        return FAILED
    say("No mistake found.")
    return 0
