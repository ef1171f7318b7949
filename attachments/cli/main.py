"""The command line: `attachments COMMAND`. Each command is a function in the module of its name."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from attachments.cli.check import check
from attachments.cli.command_boundary import INTERRUPTED, CommandFailed, run_command
from attachments.cli.decrypt import decrypt
from attachments.cli.demo import demo
from attachments.cli.doctor import doctor
from attachments.cli.locate import locate
from attachments.cli.preview import preview
from attachments.cli.receive import receive
from attachments.cli.sandbox import sandbox
from attachments.cli.setup import setup
from attachments.cli.status import status
from attachments.cli.trigger import trigger
from attachments.cli.up import up
from attachments.cli.verify import verify
from attachments.foundation.loopback import bypass_proxies
from attachments.foundation.terminal_text import say

WRONG_CALL = 2
COMMANDS: dict[str, tuple[Callable[..., int | None], ...]] = {
    "Install and run": (up, setup, receive, demo, sandbox),
    "Look after it": (status, doctor, check, trigger),
    "Work with stored messages": (locate, preview, verify, decrypt),
}
FINISHING = {"up", "setup", "receive", "sandbox", "decrypt"}
"""Commands that continue if the reader of their output closes it, because they change something or serve others."""


def _version() -> str:
    from importlib.metadata import version

    return version("emailgistics-attachments")


def _shown_default(value: Any) -> str | None:
    return None if value is None or value is False else str(value)


app = App(
    name="attachments",
    help="Mail attachments, from Emailgistics into your storage.\n\n"
    "`attachments COMMAND --help` shows a command's options and examples.",
    version=_version,
    help_format="plaintext",
    group_commands=Group("Options", sort_key=len(COMMANDS)),
    # An option has one name, and its last value counts.
    default_parameter=Parameter(negative=(), allow_repeating=True, show_default=_shown_default),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
for place, (title, commands) in enumerate(COMMANDS.items()):
    group = Group(title, sort_key=place)
    for order, command in enumerate(commands):
        app.command(command, group=group, sort_key=order)


@app.command(name="--install-completion")
def install_completion(
    *, shell: Literal["bash", "zsh", "fish", "powershell"] | None = None, output: Path | None = None
) -> None:
    """Install completion of commands and options for your shell, from its next start.

    For example:
      attachments --install-completion
      attachments --install-completion --shell fish

    Args:
        shell: The shell (default: the one that runs this).
        output: The file for the completion script (default: where the shell looks for it).
    """
    from cyclopts.completion.detect import ShellDetectionError

    try:
        script = app.install_completion(shell=shell, output=output)
    except ShellDetectionError:
        raise CommandFailed("The shell cannot be detected. Give it with --shell.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        raise CommandFailed(
            f"The completion script cannot be written ({type(error).__name__}). Choose a file with --output."
        ) from None
    say(f"Installed {script}. Start a new shell to use it.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 for success, 1 for failure, 2 for wrong arguments.

    130 after Ctrl-C, 141 if the reader of its output has closed it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    finishes = not FINISHING.isdisjoint(arguments[:1]) or "--clean" in arguments
    is_process = argv is None
    status = run_command(lambda: _run(arguments, is_process=is_process), finishes=finishes)
    if is_process and status == INTERRUPTED:
        os._exit(status)  # a thread that waits for a store or a server would delay the exit
    return status


def _run(arguments: list[str], *, is_process: bool) -> int:
    if is_process and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `attachments.cli.console`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    bypass_proxies()
    if not arguments:
        app.help_print([], console=app.error_console)
        return WRONG_CALL
    try:
        return app(arguments) or 0
    except CycloptsError as error:  # it quotes its input, which `say` escapes and truncates
        command = " ".join(["attachments", *(error.command_chain or ())])
        say(str(error), f"`{command} --help` shows its options.", is_error=True)
        return WRONG_CALL
