"""What the sandbox prints. No code of the product's, not even for this."""

import sys
from typing import TextIO

_LONGEST_LINE = 2_000  # characters


def say(line: str, *, file: TextIO | None = None) -> None:
    """Prints a line. What a receiver or a file name says in it can neither move the cursor nor begin another line."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[:_LONGEST_LINE])
    print(shown, file=file or sys.stdout, flush=True)
