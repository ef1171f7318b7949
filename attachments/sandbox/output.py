"""The sandbox's output. It shares no code with the product, not even for this."""

import sys
from typing import TextIO

_LONGEST_LINE = 2_000  # characters


def say(line: str, *, file: TextIO | None = None) -> None:
    """Print a line, escaped so that text from a receiver or file name cannot move the cursor or begin a new line."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[:_LONGEST_LINE])
    print(shown, file=file or sys.stdout, flush=True)
