"""The original file name in a download's `Content-Disposition` (RFC 6266, RFC 8187, RFC 2231).

`filename*` takes precedence over `filename`; an ambiguous or broken header has no name. Accepted beyond the RFCs,
because senders do it: quotation marks within quotes, UTF-8 and Latin-1 as they are, and encoded words (RFC 2047,
section 5 forbids them here). Python codecs that are not charsets are rejected.

The name is as the sender wrote it, `../../etc/passwd` included: the store makes it safe.
"""

import codecs
import re
from binascii import Error as Base64Error
from email.errors import HeaderParseError
from email.header import decode_header
from urllib.parse import unquote

from attachments.foundation.unicode_text import well_formed

HEADER_CHARACTERS = 16_384
"""Longer headers are not read: four such would hold the longest name there is, percent-encoded."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_PART = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*+"?)++', re.DOTALL)  # ends at a semicolon outside quotes
_QUOTED_PAIR = re.compile(r"\\([\x00-\x7f])")
_EXTENDED = re.compile(r"([^']*)'[^']*'(.*)", re.DOTALL)  # RFC 8187, section 3.2: charset, language, text
_SECTION = re.compile(r"filename\*[0-9]+\*?")
_ENCODED_WORD = re.compile(r"=\?([^?*\s]+)(?:\*[^?\s]*)?\?[bq]\?[^?\s]*\?=", re.ASCII | re.IGNORECASE)
_WITHOUT_LANGUAGE = re.compile(r"\*.*")  # RFC 2231, section 5: a language may follow the charset
_NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "raw_unicode_escape", "undefined", "unicode-escape",
                "unicode_escape", "mbcs", "oem"}  # fmt: skip


def filename_of(header: str | None) -> str | None:
    """The file name in the header; None when there is none, or when it is ambiguous or broken. Never raises.

    The name has no lone surrogates. `header` is as httpx decodes it, from UTF-8 or Latin-1.
    """
    if not header or len(header) > HEADER_CHARACTERS:
        return None
    parameters = _parameters(_as_utf8(header))
    name = None
    if _TOKEN.fullmatch(extended := parameters.get("filename*", "")):
        name = _decoded(extended)
    if name is None:
        name = _unquoted(parameters["filename"]) if "filename" in parameters else _joined_sections(parameters)
        name = _without_encoded_words(name or "")
    return well_formed(name) or None


def _parameters(header: str) -> dict[str, str]:
    """The parameters' values as written, by name in lower case; none when the header is ambiguous or broken."""
    parts = [part.strip() for part in _PART.findall(header) if not part.isspace()]
    if not parts or not _TOKEN.fullmatch(parts.pop(0)):
        return {}
    parameters: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if not equals or name in parameters:
            return {}
        parameters[name] = value.strip()
    return parameters


def _unquoted(value: str) -> str | None:
    """The text of a token or a quoted string; None when the value is neither."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        return _QUOTED_PAIR.sub(r"\1", value[1:-1])
    return value if _TOKEN.fullmatch(value) else None


def _decoded(value: str) -> str | None:
    """The text of an extended value; None when it is not one, or its charset is unknown or does not fit."""
    found = _EXTENDED.fullmatch(value)
    if found is None:
        return None
    charset = found[1] or "utf-8"
    try:
        return unquote(found[2], charset, "strict") if _is_charset(charset) else None
    except (LookupError, ValueError):
        return None


def _joined_sections(parameters: dict[str, str]) -> str | None:
    """The name in sections, `filename*0` and so on (RFC 2231, section 3); None when one is missing or broken."""
    joined = ""
    for number in range(sum(map(bool, map(_SECTION.fullmatch, parameters)))):
        section = parameters.get(f"filename*{number}", parameters.get(f"filename*{number}*", ""))
        text = _unquoted(section)
        if text is None:
            return None
        joined += text
    return _decoded(joined) if "'" in joined else joined


def _as_utf8(header: str) -> str:
    """Undo the Latin-1 of UTF-8 bytes, and the surrogates of bytes that Python could not decode."""
    for codec, errors in (("latin-1", "strict"), ("utf-8", "surrogateescape")):
        try:
            octets = header.encode(codec, errors)
        except UnicodeEncodeError:
            continue
        try:
            return octets.decode("utf-8")
        except UnicodeDecodeError:
            return octets.decode("latin-1")
    return well_formed(header)


def _is_charset(name: str) -> bool:
    try:
        return codecs.lookup(name).name not in _NO_CHARSETS
    except (LookupError, ValueError):
        return False


def _without_encoded_words(name: str) -> str:
    """`=?UTF-8?B?…?=` in clear; the name as it is when it has none, or a broken one."""
    charsets: list[str] = _ENCODED_WORD.findall(name)
    if not charsets or not all(map(_is_charset, charsets)):
        return name
    try:
        return "".join(
            part if isinstance(part, str) else part.decode(_WITHOUT_LANGUAGE.sub("", charset or "latin-1"))
            for part, charset in decode_header(name)
        )
    except (HeaderParseError, Base64Error, LookupError, ValueError):
        return name
