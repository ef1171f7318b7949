"""Texts that others have written, as they may be shown: on a terminal, in a log, in an artifact of Prefect.

What comes from a store, Prefect, Emailgistics or a receiver can move a cursor, turn a line round, forge another line or
become a link. So commands print through `say` and nothing else, the receiver's log is written through `LogFormatter`,
and artifacts in Markdown are put together with `markdown`. In what has been through one of these, everything that is
invisible or not text is an escape; `say`, `printable`, `markdown` and `LogFormatter` also cut what is too long.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

LONGEST = 200
"""Characters of a text that `printable` shows."""
LONGEST_LINE = 10_000
"""Characters of a line that `say` prints and of a record that `LogFormatter` writes: more than any path has."""
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0")
"""Letters and marks that do not print: fillers, the grapheme joiner, Khmer's inherent vowels, blank braille."""

_MARKUP = re.compile(r"[\\`*_\[\]<>|~&#@]|:(?=//)|(?<=[Ww]{3})\.")
"""What Markdown or HTML gives a meaning to, and what makes an address a link."""
_CODE = re.compile(r"(?<!`)(`[^`]+`)(?!`)")


def say(*lines: str, is_error: bool = False) -> None:
    """Print lines, on standard error if so wished. A line break within one is shown as an escape."""
    file = sys.stderr if is_error else sys.stdout
    for line in lines:
        print(bounded(line), file=file, flush=True)


def say_json(document: Any, *, in_one_line: bool = False) -> None:
    """Print a JSON document, whole, in ASCII."""
    # Of ASCII's control characters JSON leaves DEL as it is; it can only stand in a text.
    text = json.dumps(document, indent=None if in_one_line else 1).replace("\x7f", "\\u007f")
    print(text, flush=True)  # noqa: T201  as above, of what is ASCII already


def bounded(text: str) -> str:
    """One line: the text with escapes, cut where it is longer than anything of ours."""
    if len(text) <= LONGEST_LINE:
        return escaped(text)
    return f"{escaped(text[:LONGEST_LINE])}… ({len(text)} characters)"


def printable(text: str) -> str:
    """The text in quotes, with an escape for all that could move the cursor, turn the line round or be invisible."""
    shown = "".join(_shown(character) for character in text[:LONGEST])
    return f'"{shown}"' if len(text) <= LONGEST else f'"{shown}"… ({len(text)} characters)'


def shown_name(name: str) -> str:
    """A name as it may stand in a sentence: with escapes, and cut where it is longer than any that Prefect takes."""
    return escaped(name) if len(name) <= LONGEST else f"{escaped(name[:LONGEST])}… ({len(name)} characters)"


def escaped(text: str) -> str:
    """The whole text, with an escape for all that could move the cursor, turn the line round or be invisible."""
    return "".join(map(_visible, text))


def markdown(text: str) -> str:
    """One line of text without any meaning to Markdown: no link, image, HTML, code or table cell comes of it."""
    return _MARKUP.sub(r"\\\g<0>", bounded(text))


def markdown_with_code(text: str) -> str:
    """As `markdown`, for sentences of ours: what stands between backticks stays code, which has no other meaning."""
    return "".join(part if number % 2 else markdown(part) for number, part in enumerate(_CODE.split(bounded(text))))


class LogFormatter(logging.Formatter):
    """Writes records that cannot be mistaken for others: lines after the first are indented, and all is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, in one line or more."""
        text = super().format(record)
        cut = "" if len(text) <= LONGEST_LINE else f"… ({len(text)} characters)"
        return "\n    ".join(map(escaped, text[:LONGEST_LINE].split("\n"))) + cut


def _shown(character: str) -> str:
    return f"\\{character}" if character in '"\\' else _visible(character)


def _visible(character: str) -> str:
    # Not printable are controls, formats (the bidirectional ones among them), surrogates and blanks of other widths.
    if character.isprintable() and character not in INVISIBLE:
        return character
    return character.encode("unicode-escape", "surrogatepass").decode("ascii")
