"""`python -m attachments.sandbox`: the stand-in Emailgistics as a separate process."""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from attachments.sandbox.command import sandbox
from attachments.sandbox.output import say

_app = App(
    name="attachments sandbox",
    default_command=sandbox,
    version_flags=[],
    help_format="plaintext",
    default_parameter=Parameter(
        negative=(), allow_repeating=True, show_default=lambda value: None if value is None else str(value)
    ),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sandbox; returns 2 for wrong arguments, otherwise the result of `attachments.sandbox.run`."""
    try:
        return _app(sys.argv[1:] if argv is None else argv) or 0
    except CycloptsError as error:
        say(f"sandbox: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
