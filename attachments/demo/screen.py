"""The demo's output: a line for each step, and a table. Plain lines without a terminal."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attachments.demo.comparison import Row

LOG_WIDTH = 160  # columns without a terminal
DIGITS = 8  # digits of a key that are shown; the shell completes the rest


class Screen:
    """Prints to the terminal, or to a build's log."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # for terminals without Japanese
        plain = Console()
        self._console = plain if plain.is_terminal else Console(width=LOG_WIDTH)
        self._began = time.monotonic()

    def say(self, text: str = "") -> None:
        """Print a line."""
        self._console.print(Text(text), soft_wrap=True)

    def done(self, text: str) -> None:
        """Print a completed step, with the seconds since the start."""
        self._console.print(Text(f"{time.monotonic() - self._began:5.1f} s  {text}"), soft_wrap=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show a step in progress, only on a terminal."""
        with self._console.status(Text(text)):
            yield

    def table(self, rows: Sequence[Row], where: str) -> None:
        """Print the rows as a table, with a section for each message."""
        table = Table(box=box.SIMPLE, title="What is where", title_justify="left", title_style="bold")
        for heading in ("Message", "Attachment", "Outcome"):
            table.add_column(heading, overflow="fold")
        table.add_column("Bytes", justify="right", no_wrap=True)
        table.add_column("SHA-256", no_wrap=True)
        table.add_column("Where", no_wrap=True)
        subject = None
        for row in rows:
            if subject not in (None, row.subject):
                table.add_section()
            size = "" if row.bytes is None else f"{row.bytes:,}"
            first = row.subject if row.subject != subject else ""
            cells = (first, row.name, row.outcome, size, row.verdict.value, _shell_pattern(row.where))
            table.add_row(*map(Text, cells), style=None if row.verdict.is_fine else "red")
            subject = row.subject
        self._console.print(table)
        found = next((row.where for row in rows if row.where), None)
        if found:
            self.say(f"Paths are below {where}; the shell completes the stars: ls {where}/{_shell_pattern(found)}")


def _shell_pattern(where: str) -> str:
    """The path as a short shell pattern for one folder: `f07dd6db*/21992a19*/`."""
    return "".join(f"{key[:DIGITS]}*/" for key in where.split("/")[:-1])
