"""The original file name in a download's `Content-Disposition` (RFC 6266, RFC 8187).

aiohttp's parser is the best of those compared: `filename*` wins, and what is ambiguous is None. Around it we
see to what it refuses or leaves out: `;` inside quotes (legal), blanks after a value, UTF-8 sent as it is,
encoded words (RFC 2047, section 5 forbids them here, senders use them all the same), codecs of Python's that
are no charsets, and its warnings, which carry the header.

The name is as the sender wrote it, `../../etc/passwd` included: making it safe is the store's business.
"""

import codecs
import re
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from types import FunctionType, SimpleNamespace
from typing import ParamSpec, TypeVar, cast
from urllib.parse import unquote

from aiohttp import multipart

from attachments.emailgistics.models import well_formed

_P = ParamSpec("_P")
_T = TypeVar("_T")

HEADER_CHARACTERS = 16_384
"""Longer headers are not read: four such would hold the longest name there is, percent-encoded."""

_SEMICOLON = "\uf53b"  # stands for one inside quotes; from the private use area, replaced in the input
_ENCODED_WORD = re.compile(r"=\?([^?*\s]+)(?:\*[^?\s]*)?\?[bq]\?[^?\s]*\?=", re.ASCII | re.IGNORECASE)
_WITHOUT_LANGUAGE = re.compile(r"\*.*")  # RFC 2231, section 5: a language may follow the charset
_NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "raw_unicode_escape", "undefined", "unicode-escape",
                "unicode_escape", "mbcs", "oem"}  # fmt: skip


def _unquoted(text: str, charset: str, errors: str) -> str:
    """As `urllib.parse.unquote`, for charsets only. Raises LookupError for what is none."""
    if not _is_charset(charset):
        raise LookupError
    return unquote(text, charset, errors)


def _is_charset(name: str) -> bool:
    try:
        return codecs.lookup(name).name not in _NO_CHARSETS
    except (LookupError, ValueError):
        return False


def _adapted(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same function, with our `unquote` and a `warnings` that says nothing in place of its module's.

    `warnings.catch_warnings` would not do: it changes the state of the whole process and is no good in
    threads, where downloads run; and a filter set on import is undone by whoever sets theirs later.
    """
    assert isinstance(function, FunctionType)  # noqa: S101 - tells mypy
    silent = SimpleNamespace(warn=lambda *_, **__: None)
    names = {**function.__globals__, "warnings": silent, "unquote": _unquoted}
    return cast(Callable[_P, _T], FunctionType(function.__code__, names, argdefs=function.__defaults__))


_parse = _adapted(multipart.parse_content_disposition)
_filename = _adapted(multipart.content_disposition_filename)


def filename_of(header: str | None) -> str | None:
    """The file's name that the header gives, or None when there is none or it cannot be told. Never raises.

    The name has no lone surrogates. `header` is as httpx decodes it, from UTF-8 or Latin-1.
    """
    if not header or len(header) > HEADER_CHARACTERS:
        return None
    parts = _parts(_as_utf8(header).replace(_SEMICOLON, "\ufffd"))
    try:
        _, params = _parse(";".join(part.replace(";", _SEMICOLON) for part in parts if part))
        name = _filename(params)
    except ValueError:  # continuations with one single quote too few
        return None
    if name is None:
        return None
    if "filename*" not in params:
        name = _without_encoded_words(name)
    return well_formed(name.replace(_SEMICOLON, ";")) or None


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


def _parts(header: str) -> Iterator[str]:
    """What the semicolons outside quotes divide, without blanks around."""
    start, quoted, escaped = 0, False, False
    for position, character in enumerate(header):
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == ";" and not quoted:
            yield header[start:position].strip()
            start = position + 1
    yield header[start:].strip()


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
