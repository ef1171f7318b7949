"""Reads a JSON object of the control API field by field.

What nobody asked for is refused: a fault with a mistyped field would otherwise do nothing, and the test that
relies on it would be green for no reason.
"""

from collections.abc import Sequence

ABSENT = object()


class BadFieldError(ValueError):
    """The JSON sent to the control API does not say what it should; the text says where and what to send."""


class Fields:
    """The fields of one JSON object; every reader takes its field out, `close` refuses the rest."""

    def __init__(self, document: object, what: str) -> None:
        if not isinstance(document, dict):
            raise BadFieldError(f"{what}: send a JSON object")
        self._left = dict(document)
        self._what = what

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, default: object = None) -> object:
        """The field as it is."""
        return self._left.pop(name, default)

    def text(self, name: str) -> str:
        """A text that must be there."""
        value = self.text_or_none(name)
        if value is None:
            raise self._wrong(name, "a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A text, or None when it is absent or null."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "a text or null")
        return value

    def header_or_none(self, name: str) -> str | None:
        """A text that can stand in a header line: no line breaks, no NUL."""
        value = self.text_or_none(name)
        if value is not None and not fits_header(value):
            raise self._wrong(name, "a text without line breaks and NUL, for it goes into a header")
        return value

    def whole_or_none(self, name: str) -> int | None:
        """A whole number that is not negative, or None when it is absent or null."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(name, "a whole number from 0, or null")
        return value

    def number_or_none(self, name: str) -> float | None:
        """A number that is not negative, or None when it is absent or null."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise self._wrong(name, "a number from 0, or null")
        return float(value)

    def whole(self, name: str, default: int) -> int:
        """A whole number that is not negative."""
        value = self.whole_or_none(name)
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        """A number that is not negative."""
        value = self.number_or_none(name)
        return default if value is None else value

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of the choices."""
        value = self.take(name, default)
        if value not in choices or not isinstance(value, str):
            raise self._wrong(name, f"one of {', '.join(choices)}")
        return value

    def texts_or_none(self, name: str) -> tuple[str, ...] | None:
        """A list of texts, or None when it is absent or null."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of texts, or null")
        return tuple(value)

    def headers(self, name: str) -> dict[str, str | None]:
        """Header names with their values, null for a header to be taken away."""
        value = self.take(name, {})
        if not isinstance(value, dict) or not all(
            fits_header(key) and (item is None or (isinstance(item, str) and fits_header(item)))
            for key, item in value.items()
        ):
            raise self._wrong(name, "an object of header names and values (texts without line breaks, or null)")
        return value

    def close(self) -> None:
        """Refuses what was not asked for."""
        if self._left:
            raise BadFieldError(f"{self._what}: unknown fields {', '.join(sorted(self._left))}; leave them out")

    def _wrong(self, name: str, wanted: str) -> BadFieldError:
        return BadFieldError(f"{self._what}: {name} must be {wanted}")


def fits_header(text: str) -> bool:
    """Whether the text can be a header value (RFC 9110, 5.5) without breaking out of its line."""
    return not any(sign in text for sign in "\r\n\0")
