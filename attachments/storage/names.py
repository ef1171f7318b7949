"""File names that every store and operating system can take.

An attachment's name comes from the mail's sender. It is shown to people, becomes part of an object's key and is copied
by unknown programs, so only what is harmless everywhere is kept; the manifest records the original name. The rules:

- **Paths.** What looks like a path (``/etc/passwd``, ``C:\\x\\y.pdf``, ``\\\\host\\y.pdf``, ``a/../b.pdf``)
  keeps its last component, as RFC 6266 section 4.3 asks of browsers. Any other separator is part of a
  title (``Offer 1/2.pdf``) and becomes ``_``, so that nothing of the title is lost.
- **Invisible characters.** Line and tab controls become a space, other controls ``_``. Format characters go:
  bidirectional ones (``invoice<U+202E>fdp.exe`` reads as ``invoiceexe.pdf``), zero-width ones, tags, fillers.
  The joiners U+200C and U+200D stay between two characters that are not ASCII, where Persian, Indic scripts
  and emoji need them; a variation selector stays behind an emoji, a CJK ideograph or a Mongolian letter. Lone
  surrogates, private-use and unassigned characters become ``_``.
- **Characters with a meaning.** ``<>:"|?*`` (Windows) become ``_``, and so do ``#`` and ``%``, which silently
  change the meaning of a URL. ``[`` and ``]`` become parentheses: fsspec and shells take them for a
  pattern, so that deleting ``scan[1].pdf`` would delete ``scan1.pdf``.
- **Beginnings.** A leading dot gets a ``_`` before it, so that nothing is hidden and ``.pdf`` keeps its
  extension; a leading ``-`` becomes ``_``, so that no program takes the name for an option. ``~`` stays: it
  means something only where a path begins, and a key begins with a message key.
- **Ends.** No dots and no spaces, which Windows drops.
- **Windows' device names** (``NUL .pdf``, ``com¹.txt``) get a ``_`` before them.
- **Length.** At most 255 bytes of UTF-8, or as many as the store's file system allows. The extension stays, also a
  double one (``.tar.gz``, ``.pdf.p7m``), and no cut makes another: what is cut behind a dot ends in ``_``, so that
  ``x.exe`` cannot be what is left of a longer name that no filter and no reader took for a program. No cut
  separates a letter from its accent or takes an emoji apart.
- **NFC**, so that one name has one spelling.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from pathvalidate import FileNameValidator

from attachments.foundation.terminal_text import PRINTABLE_BUT_BLANK
from attachments.foundation.unicode_text import well_formed

MAX_BYTES = 255
"""The longest name, in bytes of UTF-8: the limit of ext4, XFS and APFS, and of NTFS in characters."""

SHORT_BYTES = (143, 82)
"""Lengths to try if a store refuses a longer name: eCryptfs and encrypted Synology shares allow 143 bytes per name.

The store's own names have at most 82: two keys and a writer's id.
"""

_FALLBACK = "attachment"
_MAX_SIDE = 1024  # characters

# pathvalidate lacks the console's two names, which Windows reserves as well.
_KNOWN_DEVICES = FileNameValidator(platform="universal").reserved_keywords
_DEVICES = frozenset(name.casefold() for name in (*_KNOWN_DEVICES, "CONIN$", "CONOUT$"))

_LOOKS_LIKE_A_PATH = re.compile(r"(?s)~?[/\\]|[A-Za-z]:[/\\]|file:|.*(?:^|[/\\])\.{1,2}(?:[/\\]|$)")
_SEPARATORS = re.compile(r"[/\\]+")

_REPLACED = str.maketrans({**dict.fromkeys('<>:"|?*#%', "_"), "[": "(", "]": ")"})

# Format characters that print: the number and verse signs of Arabic, Syriac and Kaithi scripts.
_VISIBLE_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
_JOINERS = frozenset("\u200c\u200d")
_LINE_CONTROLS = frozenset("\t\n\v\f\r\x85\u2028\u2029")
_MONGOLIAN_SELECTORS = frozenset("\u180b\u180c\u180d\u180f")
_IDEOGRAPHIC_SELECTORS = frozenset(map(chr, range(0xE0100, 0xE01F0)))
SELECTORS = _MONGOLIAN_SELECTORS | _IDEOGRAPHIC_SELECTORS | frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Variation selectors: they do not print, and say which form the character before them has."""
_KEYCAP = "\u20e3"
_OTHER_EMOJI = frozenset("\u203c\u2049\u2139\u3030")  # emoji whose category is not a symbol
_SKIN_TONES = frozenset("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")

_EXTENSION = re.compile(r"(?:\.[^\W_]{1,12}){0,1}\.[^\W_]{1,16}\Z")


def safe_name(name: str | None, *, fallback: str = _FALLBACK, most: int = MAX_BYTES) -> str:
    """The name to store a file under: never empty, never a path, at most 255 bytes of UTF-8, or `most` of them.

    `most` has no effect above 255 and below 82. `fallback` is used if the name is missing or nothing of it is left.
    ``safe_name(safe_name(x))`` is ``safe_name(x)``. Never raises.
    """
    most = max(min(most, MAX_BYTES), SHORT_BYTES[-1])
    return _clean_until_stable(name or "", most) or _clean_until_stable(fallback, most) or _FALLBACK


def shorter_names(name: str) -> Iterator[str]:
    """A safe name, then shorter ones, for a store that may refuse its length. Deterministic."""
    yield name
    for most in SHORT_BYTES:
        if len(name.encode()) > most:
            yield safe_name(name, most=most)


def is_nameless(name: str | None) -> bool:
    """Whether the safe name would be empty, so that the fallback is used."""
    return not _clean_until_stable(name or "")


def first_invisible(text: str) -> str | None:
    """The first character that is invisible and has no meaning at its position; None if there is none."""
    for at, char in enumerate(text):
        if char in _JOINERS:
            if not _joins(text[at - 1 : at], text[at + 1 : at + 2]):
                return char
        elif char in SELECTORS:
            if not _varies(char, text[at - 1 : at], text[at + 1 : at + 2]):
                return char
        elif char in _LINE_CONTROLS or unicodedata.category(char) == "Cc" or _is_invisible_format(char):
            return char
    return None


def without_middle(name: str) -> str:
    """The name without its middle, if it is far longer than any file name, because normalizing takes quadratic time."""
    return name if len(name) <= 2 * _MAX_SIDE else name[:_MAX_SIDE] + name[-_MAX_SIDE:]


def _clean_until_stable(name: str, most: int = MAX_BYTES) -> str:
    """Clean repeatedly, because removing one character can create a new problem."""
    name = without_middle(name)
    while (cleaned := _clean(name, most)) != name:
        name = cleaned
    return name


def _clean(name: str, most: int) -> str:
    name = unicodedata.normalize("NFC", _printable(_join_surrogates(name)))
    name = _last_component(name).translate(_REPLACED)
    name = name.strip().rstrip(". ").rstrip()
    if not name:
        return ""
    if name[0] == "-":
        name = "_" + name[1:]
    if name[0] == "." or name.partition(".")[0].rstrip().casefold() in _DEVICES:
        name = "_" + name
    return _cut(name, most)


def _join_surrogates(name: str) -> str:
    """The name with surrogate pairs joined, and `_` for each half that has no partner."""
    # "replace" writes U+FFFD, which a name may also contain itself; it has no meaning, so it is replaced.
    return well_formed(name).replace("\ufffd", "_")


def _printable(name: str) -> str:
    kept: list[str] = []
    for at, char in enumerate(name):
        category = unicodedata.category(char)
        if char in _LINE_CONTROLS:
            kept.append(" ")
        elif category in {"Cc", "Co", "Cn"}:
            kept.append("_")
        elif char in _JOINERS:
            if _joins(name[at - 1 : at], name[at + 1 : at + 2]):
                kept.append(char)
        elif char in SELECTORS:
            if _varies(char, name[at - 1 : at], name[at + 1 : at + 2]):
                kept.append(char)
        elif _is_invisible_format(char):
            continue
        else:
            kept.append(char)
    return "".join(kept)


def _is_invisible_format(char: str) -> bool:
    return char in PRINTABLE_BUT_BLANK or (unicodedata.category(char) == "Cf" and char not in _VISIBLE_FORMATS)


def _joins(before: str, after: str) -> bool:
    """Whether a joiner between these two characters can have a meaning in some script, or in an emoji."""
    return all(side and not side.isascii() and unicodedata.category(side)[0] in "LMS" for side in (before, after))


def _varies(selector: str, base: str, after: str) -> bool:
    """Whether a variation selector between these two characters can have a meaning: nowhere in a Latin extension.

    https://www.unicode.org/Public/UCD/latest/ucd/StandardizedVariants.txt and emoji/emoji-variation-sequences.txt
    """
    name = unicodedata.name(base, "") if base else ""
    if selector in _MONGOLIAN_SELECTORS:
        return name.startswith("MONGOLIAN ")
    if name.startswith("CJK "):
        return True
    if selector in _IDEOGRAPHIC_SELECTORS or not base:
        return False
    if base.isascii():
        return after == _KEYCAP and (base.isdigit() or base in "#*")
    return unicodedata.category(base)[0] == "S" or base in _OTHER_EMOJI


def _last_component(name: str) -> str:
    if not _SEPARATORS.search(name):
        return name
    if _LOOKS_LIKE_A_PATH.match(name):
        return next((part for part in reversed(_SEPARATORS.split(name)) if part.strip(". ")), "")
    return _SEPARATORS.sub("_", name)


def _cut(name: str, most: int) -> str:
    if len(name.encode()) <= most:
        return name
    found = _EXTENSION.search(name)
    extension = found.group() if found else ""
    if len(extension.encode()) > most // 2:  # of two extensions the last one says what it is
        extension = f".{extension.rpartition('.')[2]}"
    room = most - len(extension.encode())
    stem = _beginning(name.removesuffix(extension), room)
    if "." in stem:  # what follows the dot must not become an extension, nor be one once `.age` is taken away
        stem = f"{_beginning(stem, room - 1)}_"
    return stem + extension


def _beginning(text: str, room: int) -> str:
    """The longest beginning that fits into so many bytes, without trailing dots and spaces."""
    end = len(text.encode()[:room].decode("utf-8", "ignore"))
    whole = end
    while whole > 0 and _belongs_together(text[whole - 1], text[whole : whole + 1]):
        whole -= 1
    # A "letter" with hundreds of accents may be cut at any code point.
    return text[: whole or end].rstrip(" .") or text[:end]


def _belongs_together(before: str, after: str) -> bool:
    """Whether readers see these two characters as one, so that the name must not be cut there."""
    if not after:
        return False
    return before in _JOINERS or after in _JOINERS | _SKIN_TONES or unicodedata.category(after)[0] == "M"
