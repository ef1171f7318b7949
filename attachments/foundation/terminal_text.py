"""Escapes untrusted text for display: on a terminal, in a log, in a Prefect artifact.

Text from a store, Prefect, Emailgistics or a receiver could move the cursor, reverse a line, forge another line or
become a link. So commands print only through `say`, the receiver logs through `LogFormatter`, and Markdown artifacts
are built with `escaped_markdown`. Their output has an escape for every character that is invisible or not text; `say`,
`quoted`, `escaped_markdown` and `LogFormatter` also truncate long text.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

MAX_TEXT_LENGTH = 200
"""Characters that `quoted` shows."""
MAX_LINE_LENGTH = 10_000
"""Characters of a line that `say` prints, and of a record that `LogFormatter` writes: more than any path has."""
PRINTABLE_BUT_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0")
"""Letters and marks that do not print: fillers, the grapheme joiner, Khmer's inherent vowels, blank braille."""

_MARKUP = re.compile(r"[\\`*_\[\]<>|~&#@]|:(?=//)|(?<=[Ww]{3})\.")
"""Characters with a meaning in Markdown or HTML, and those that make an address a link."""
_CODE = re.compile(r"(?<!`)(`[^`]+`)(?!`)")


def say(*lines: str, is_error: bool = False) -> None:
    """Print lines, on standard error if `is_error`. A line break within a line is printed as an escape."""
    file = sys.stderr if is_error else sys.stdout
    for line in lines:
        print(escaped_line(line), file=file, flush=True)


def say_json(document: Any, *, in_one_line: bool = False) -> None:
    """Print a whole JSON document in ASCII."""
    # DEL is the only ASCII control character that JSON does not escape; it occurs only in strings.
    text = json.dumps(document, indent=None if in_one_line else 1).replace("\x7f", "\\u007f")
    print(text, flush=True)  # noqa: T201  printed as it is, because it is ASCII


def escaped_line(text: str) -> str:
    """The text as one escaped line, truncated to `MAX_LINE_LENGTH` characters."""
    if len(text) <= MAX_LINE_LENGTH:
        return escaped(text)
    return f"{escaped(text[:MAX_LINE_LENGTH])}… ({len(text)} characters)"


def quoted(text: str) -> str:
    """The text in quotes, escaped, and truncated to `MAX_TEXT_LENGTH` characters."""
    shown = "".join(_escape_quoted(character) for character in text[:MAX_TEXT_LENGTH])
    return f'"{shown}"' if len(text) <= MAX_TEXT_LENGTH else f'"{shown}"… ({len(text)} characters)'


def shown_name(name: str) -> str:
    """A name for use in a sentence: escaped, and truncated to `MAX_TEXT_LENGTH` characters, more than Prefect's names
    have."""
    return (
        escaped(name)
        if len(name) <= MAX_TEXT_LENGTH
        else f"{escaped(name[:MAX_TEXT_LENGTH])}… ({len(name)} characters)"
    )


def escaped(text: str) -> str:
    """The whole text, with an escape for each character that could move the cursor, reverse the line or be
    invisible."""
    return "".join(map(_escape_invisible, text))


def escaped_markdown(text: str) -> str:
    """One line of text for Markdown, escaped so that it cannot form a link, image, HTML, code or a table cell."""
    return _MARKUP.sub(r"\\\g<0>", escaped_line(text))


def markdown_with_code(text: str) -> str:
    """As `escaped_markdown`, for this project's own sentences: text between backticks stays code."""
    return "".join(
        part if number % 2 else escaped_markdown(part) for number, part in enumerate(_CODE.split(escaped_line(text)))
    )


class LogFormatter(logging.Formatter):
    """Formats a record so that it cannot forge another: lines after the first are indented, and all text is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one or more lines."""
        text = super().format(record)
        cut = "" if len(text) <= MAX_LINE_LENGTH else f"… ({len(text)} characters)"
        return "\n    ".join(map(escaped, text[:MAX_LINE_LENGTH].split("\n"))) + cut


def _escape_quoted(character: str) -> str:
    return f"\\{character}" if character in '"\\' else _escape_invisible(character)


def _escape_invisible(character: str) -> str:
    # Not printable are control and format characters (such as bidirectional marks), surrogates and unusual spaces.
    if character.isprintable() and character not in PRINTABLE_BUT_BLANK:
        return character
    return character.encode("unicode-escape", "surrogatepass").decode("ascii")
