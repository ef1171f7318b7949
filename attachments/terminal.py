"""Texts from outside, as they may be shown on a terminal."""

LONGEST = 200
"""Characters of a text that are shown."""


def printable(text: str) -> str:
    """The text in quotes, with an escape for all that could move the cursor, turn the line round or be invisible."""
    shown = "".join(_shown(character) for character in text[:LONGEST])
    return f'"{shown}"' if len(text) <= LONGEST else f'"{shown}"… ({len(text)} characters)'


def escaped(text: str) -> str:
    """The whole text, with an escape for all that could move the cursor, turn the line round or be invisible."""
    return "".join(map(_visible, text))


def _shown(character: str) -> str:
    return f"\\{character}" if character in '"\\' else _visible(character)


def _visible(character: str) -> str:
    # Not printable are controls, formats (the bidirectional ones among them), surrogates and blanks of other widths.
    return character if character.isprintable() else character.encode("unicode-escape", "surrogatepass").decode("ascii")
