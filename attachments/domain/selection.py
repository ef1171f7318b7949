"""Selects attachments: lists of rules to include and to exclude, by type, name and size."""

from __future__ import annotations

import json
import mimetypes
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Annotated, Any, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from attachments.storage.names import SELECTORS, is_nameless, safe_name, without_middle

# The standard library's own table (never the machine's), and types in mail that some versions of it lack.
TYPES = {
    **mimetypes.MimeTypes().types_map[True],
    ".7z": "application/x-7z-compressed",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".bz2": "application/x-bzip2",
    ".dwg": "image/vnd.dwg",
    ".doc": "application/msword",
    ".docm": "application/vnd.ms-word.document.macroenabled.12",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".eml": "message/rfc822",
    ".epub": "application/epub+zip",
    ".gz": "application/gzip",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".ics": "text/calendar",
    ".jfif": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".log": "text/plain",
    ".m4a": "audio/mp4",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mp3": "audio/mpeg",
    ".msg": "application/vnd.ms-outlook",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ogg": "audio/ogg",
    ".one": "application/onenote",
    ".p7m": "application/pkcs7-mime",
    ".p7s": "application/pkcs7-signature",
    ".ppt": "application/vnd.ms-powerpoint",
    ".pptm": "application/vnd.ms-powerpoint.presentation.macroenabled.12",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".rar": "application/vnd.rar",
    ".rtf": "application/rtf",
    ".tgz": "application/gzip",
    ".vcf": "text/vcard",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".xls": "application/vnd.ms-excel",
    ".xlsb": "application/vnd.ms-excel.sheet.binary.macroenabled.12",
    ".xlsm": "application/vnd.ms-excel.sheet.macroenabled.12",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xml": "application/xml",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zip": "application/zip",
    ".zst": "application/zstd",
}

_UNKNOWN = "application/octet-stream"

UNINFORMATIVE_TYPES = frozenset(
    {
        _UNKNOWN,
        "application/binary",
        "application/download",
        "application/file",
        "application/force-download",
        "application/octet",
        "application/octetstream",
        "application/unknown",
        "application/x-binary",
        "application/x-download",
        "application/x-force-download",
        "application/x-forcedownload",
        "application/x-octet-stream",
        "application/x-octetstream",
        "application/x-unknown",
        "binary/octet-stream",
        "unknown/unknown",
    }
)
"""What senders write when they do not know the type. Text without a slash, such as `pdf`, and `*/*` count as unknown
too."""

ALIASES = {
    "application/acrobat": "application/pdf",
    "application/csv": "text/csv",
    "application/doc": "application/msword",
    "application/excel": "application/vnd.ms-excel",
    "application/javascript": "text/javascript",
    "application/msexcel": "application/vnd.ms-excel",
    "application/mspowerpoint": "application/vnd.ms-powerpoint",
    "application/powerpoint": "application/vnd.ms-powerpoint",
    "application/rar": "application/vnd.rar",
    "application/vnd.msword": "application/msword",
    "application/vnd.pdf": "application/pdf",
    "application/x-csv": "text/csv",
    "application/x-excel": "application/vnd.ms-excel",
    "application/x-gzip": "application/gzip",
    "application/x-javascript": "text/javascript",
    "application/x-json": "application/json",
    "application/x-ms-excel": "application/vnd.ms-excel",
    "application/x-msexcel": "application/vnd.ms-excel",
    "application/x-mspowerpoint": "application/vnd.ms-powerpoint",
    "application/x-msword": "application/msword",
    "application/x-pdf": "application/pdf",
    "application/x-pkcs7-mime": "application/pkcs7-mime",
    "application/x-pkcs7-signature": "application/pkcs7-signature",
    "application/x-rar": "application/vnd.rar",
    "application/x-rar-compressed": "application/vnd.rar",
    "application/x-rtf": "application/rtf",
    "application/x-xls": "application/vnd.ms-excel",
    "application/x-xml": "application/xml",
    "application/x-yaml": "application/yaml",
    "application/x-zip": "application/zip",
    "application/x-zip-compressed": "application/zip",
    "application/xls": "application/vnd.ms-excel",
    "audio/m4a": "audio/mp4",
    "audio/mp3": "audio/mpeg",
    "audio/vnd.wave": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/x-m4a": "audio/mp4",
    "audio/x-mp3": "audio/mpeg",
    "audio/x-mpeg": "audio/mpeg",
    "audio/x-wav": "audio/wav",
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/tif": "image/tiff",
    "image/x-bmp": "image/bmp",
    "image/x-gif": "image/gif",
    "image/x-jpeg": "image/jpeg",
    "image/x-jpg": "image/jpeg",
    "image/x-ms-bmp": "image/bmp",
    "image/x-png": "image/png",
    "image/x-tif": "image/tiff",
    "image/x-tiff": "image/tiff",
    "image/x-windows-bmp": "image/bmp",
    "text/comma-separated-values": "text/csv",
    "text/directory": "text/vcard",
    "text/json": "application/json",
    "text/pdf": "application/pdf",
    "text/rtf": "application/rtf",
    "text/x-comma-separated-values": "text/csv",
    "text/x-csv": "text/csv",
    "text/x-markdown": "text/markdown",
    "text/x-pdf": "application/pdf",
    "text/x-vcard": "text/vcard",
    "text/x-yaml": "application/yaml",
    "text/xml": "application/xml",
    "text/yaml": "application/yaml",
}
"""Other names of a type, and the one that is compared."""

_KNOWN_TYPES = frozenset({*TYPES.values(), *ALIASES.values(), _UNKNOWN, "message/rfc822", "text/calendar"})

_RESTRICTED_NAME = r"[a-z0-9*?][a-z0-9!#$&^_.+*?-]*"  # RFC 6838, section 4.2, and the two wildcards
_TYPE_PATTERN = re.compile(rf"{_RESTRICTED_NAME}(?:/{_RESTRICTED_NAME})?")
_PARAMETERS = re.compile(r"""(?:;\s*(?:[^\s;,|/="]+\s*=\s*(?:"[^"]*"|[^\s;,|/="]*)\s*)?)*""")
_MAX_PATTERN_LENGTH = 1000
_SEVERAL_NAMES = re.compile(r"\*\.[\w*?]+(?:\s*[,;|]\s*|\s+)\*\.|\{[^{}]*,[^{}]*\}|[\r\n]")


class AttachmentLike(Protocol):
    """The properties that a filter compares. `size` is in bytes, as listed."""

    @property
    def name(self) -> str | None: ...
    @property
    def content_type(self) -> str | None: ...
    @property
    def size(self) -> int | None: ...


@dataclass(frozen=True)
class Decision:
    """Whether an attachment is selected, and if not, the rule that dropped it, as configured."""

    wanted: bool
    rule: str | None = None


def _check_patterns(value: Any) -> Any:
    if value is None:
        return ()
    if isinstance(value, str):
        raise ValueError(f"write a list, even of one: {_as_list(_split_types(value) or [value])}")  # noqa: TRY004  # pydantic reports these
    for item in _strings(value):
        if not item.strip():
            raise ValueError("one of the patterns is empty; remove it, or write * to match everything")
        if len(item) > _MAX_PATTERN_LENGTH:
            raise ValueError(
                f"a pattern has {len(item)} characters, more than any name; at most {_MAX_PATTERN_LENGTH} are allowed"
            )
        for character in (item.strip()[0], item.strip()[-1]):
            if unicodedata.category(character) in {"Cc", "Cf"}:
                raise ValueError(
                    f"a pattern begins or ends with an invisible character (U+{ord(character):04X}), "
                    "perhaps pasted with it; type the pattern again"
                )
    return value


def _check_content_types(value: Any) -> Any:
    value = _check_patterns(value)
    for item in _strings(value):
        media_type, _, parameters = item.partition(";")
        pattern = media_type.strip().casefold()
        has_type = "/" in pattern or ("*" in pattern and not pattern.startswith("*."))
        if has_type and _TYPE_PATTERN.fullmatch(pattern) and _PARAMETERS.fullmatch(f";{parameters}"):
            continue
        if len(several := _split_types(item)) > 1:
            raise ValueError(f"{item!r} is more than one content type; write a list: {_as_list(several)}")
        extensions = [part.removeprefix("*").removeprefix(".") for part in _parts(item)]
        names = _as_list([f"*.{extension}" for extension in extensions])
        instead = f", or match the file name instead: names {names}" if all(map(str.isalnum, extensions)) else ""
        raise ValueError(f"{item!r} is not a content type; write one such as application/pdf or image/*{instead}")
    return value


def _check_names(value: Any) -> Any:
    value = _check_patterns(value)
    for item in _strings(value):
        pattern = item.strip()
        if "/" in pattern or "\\" in pattern:
            raise ValueError(
                f"{item!r} has a / or \\, which no stored file name has; match the name alone, without a folder, "
                "and write ? for a character that cannot be written"
            )
        if _SEVERAL_NAMES.search(pattern) or _is_name_list(pattern):
            raise ValueError(
                f"{item!r} is more than one pattern; write each one by itself, in a list such as "
                f"{_as_list(_EXAMPLES)}, or, if it is a single name, ? for what stands between its parts"
            )
        if "[[]" in pattern:
            raise ValueError(f"{item!r} escapes a bracket; brackets stand for themselves, so write [ in place of [[]")
        if "." + pattern.casefold().removeprefix(".") in TYPES:
            extension = pattern.removeprefix(".")
            raise ValueError(f'{item!r} matches no file name but "{pattern}"; for an extension write "*.{extension}"')
    return value


_EXAMPLES = ("*.pdf", "*.docx")


def _is_name_list(pattern: str) -> bool:
    """Whether the text is a list of names with extensions, such as ``invoice.pdf, order.pdf``."""
    parts = [part.strip().casefold().rpartition(".") for part in re.split(r"[,;|]", pattern)]
    return len(parts) > 1 and all(dot and dot + extension in TYPES for _, dot, extension in parts)


def _split_types(item: str) -> Sequence[str]:
    """The content types in a text that consists of several, maybe with parameters; otherwise empty."""
    parts = [part for part in _parts(item) if "=" not in part]
    return parts if all("/" in part and _TYPE_PATTERN.fullmatch(part.casefold()) for part in parts) else ()


def _parts(item: str) -> Sequence[str]:
    return [part for part in re.split(r"[\s,;|]+", item) if part]


def _as_list(patterns: Sequence[str]) -> str:
    return json.dumps(list(patterns), ensure_ascii=False)


def _strings(value: Any) -> Iterable[str]:
    return (item for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else ()


def _check_size(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write a number of bytes")  # noqa: TRY004  # pydantic reports these
    return value


Size = Annotated[int | None, BeforeValidator(_check_size)]


class _FilterModel(BaseModel):
    """A frozen model whose error for an unknown key lists the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := [str(key) for key in data if key not in cls.model_fields]):
            known = ", ".join(cls.model_fields)
            raise ValueError(f"unknown {', '.join(sorted(unknown))}; a {cls.__name__.lower()} has {known}")
        return data


class Rule(_FilterModel):
    """Matches an attachment if all of its conditions match."""

    content_types: Annotated[tuple[str, ...], BeforeValidator(_check_content_types)] = Field(
        default=(),
        title="Content types",
        description=(
            "Any of these content types, such as application/pdf or image/*. Case and parameters are "
            "ignored, and types that say nothing, such as application/octet-stream, are judged by the file "
            "name's extension."
        ),
    )
    names: Annotated[tuple[str, ...], BeforeValidator(_check_names)] = Field(
        default=(),
        title="File names",
        description=(
            "Any of these file names, such as *.pdf or invoice-*: * is any text, ? any character, and all else "
            "stands for itself. Case is ignored. The name is compared as it was sent and as it is stored."
        ),
    )
    min_size: Size = Field(
        default=None, ge=0, title="Smallest size", description="At least this many bytes, as listed."
    )
    max_size: Size = Field(default=None, ge=0, title="Largest size", description="At most this many bytes, as listed.")

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if not str(self):
            raise ValueError(
                "a rule has no conditions; give it content_types, names, min_size or max_size, or remove it"
            )
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(
                f"min_size {self.min_size} is larger than max_size {self.max_size}, so nothing can match; swap them"
            )
        return self

    def matches(self, attachment: AttachmentLike) -> bool:
        """Whether all conditions match. A condition on the size does not match if no size is listed."""
        size = attachment.size
        if self.min_size is not None and (size is None or size < self.min_size):
            return False
        if self.max_size is not None and (size is None or size > self.max_size):
            return False
        types = [_canonical(_without_parameters(pattern)) for pattern in self.content_types]
        if types and not _any_matches(types, _effective_types(attachment)):
            return False
        return not self.names or _any_matches(self.names, (attachment.name or "", safe_name(attachment.name)))

    def needs_name(self, attachment: AttachmentLike) -> bool:
        """Whether the result depends on the attachment's name."""
        return bool(self.names) or (bool(self.content_types) and _is_uninformative(attachment))

    def __str__(self) -> str:
        """The conditions, as configured: ``content_types image/*, max_size 20000``."""
        conditions = [
            f"{field} {' or '.join(patterns)}"
            for field, patterns in (("content_types", self.content_types), ("names", self.names))
            if patterns
        ]
        conditions += [
            f"{field} {size}"
            for field, size in (("min_size", self.min_size), ("max_size", self.max_size))
            if size is not None
        ]
        return ", ".join(conditions)


class Filter(_FilterModel):
    """Selects an attachment that matches any include rule, or if there are none, and no exclude rule."""

    include: tuple[Rule, ...] = Field(
        default=(),
        title="Include",
        description="Attachments that match at least one of these rules are downloaded. Without any rule, all are.",
    )
    exclude: tuple[Rule, ...] = Field(
        default=(),
        title="Exclude",
        description="Attachments that match one of these rules are not downloaded, even if an include rule matches.",
    )

    def decide(self, attachment: AttachmentLike) -> Decision:
        """Whether the attachment is selected, and otherwise which rule drops it."""
        for number, rule in enumerate(self.exclude):
            if rule.matches(attachment):
                return Decision(wanted=False, rule=f"exclude[{number}]: {rule}")
        if self.include and not any(rule.matches(attachment) for rule in self.include):
            return Decision(wanted=False, rule="include: no rule matches")
        return Decision(wanted=True)

    def needs_name(self, attachment: AttachmentLike) -> bool:
        """Whether the decision depends on a name that the list lacks; the download's header may supply it."""
        return is_nameless(attachment.name) and any(rule.needs_name(attachment) for rule in self.include + self.exclude)

    def may_want(self, attachment: AttachmentLike) -> bool:
        """Whether the attachment is selected, or only its download can tell."""
        return self.needs_name(attachment) or self.decide(attachment).wanted


def describe_errors(error: ValidationError) -> str:
    """The problems of a filter, one clause each: where, and what to write instead."""
    return "; ".join(
        f"{_place(found['loc'])}{found['ctx']['error'] if found['type'] == 'value_error' else found['msg']}"
        for found in error.errors()
    )


def _place(steps: Sequence[int | str]) -> str:
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    return f"{place}: " if place else ""


def decide(filter: Filter | None, attachment: AttachmentLike) -> Decision:  # noqa: A002  # the flow's parameter
    """Whether the attachment is selected; without a filter, all are."""
    return Decision(wanted=True) if filter is None else filter.decide(attachment)


def _effective_types(attachment: AttachmentLike) -> Sequence[str]:
    """The attachment's content types: as stated and as registered, or by the name's extension."""
    stated = _without_parameters(attachment.content_type or "")
    if not _is_uninformative(attachment):
        return stated, _canonical(stated)
    _, dot, extension = safe_name(attachment.name).casefold().rpartition(".")
    known = TYPES.get(dot + extension)
    return (known,) if known else (_UNKNOWN, stated)


def _is_uninformative(attachment: AttachmentLike) -> bool:
    stated = _without_parameters(attachment.content_type or "")
    return stated in UNINFORMATIVE_TYPES or "/" not in stated or "*" in stated


def known_type(content_type: str | None) -> str | None:
    """The media type in its usual spelling if it is a known one; None otherwise.

    The sender writes it, so an unknown type may be any text, even a file name.
    """
    canonical = _canonical(_without_parameters(content_type or ""))
    return canonical if canonical in _KNOWN_TYPES else None


def _canonical(content_type: str) -> str:
    return ALIASES.get(content_type, content_type)


def _without_parameters(content_type: str) -> str:
    return content_type.partition(";")[0].strip().strip("\"'").strip().casefold()


def _any_matches(patterns: Sequence[str], texts: Iterable[str]) -> bool:
    folded = {_fold(without_middle(text)) for text in texts}
    return any(_compile(pattern).match(text) for pattern in patterns for text in folded)


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    # fnmatch's expressions never backtrack over more than one star, so no file name can make them slow. Its character
    # classes are disabled, because file names contain brackets.
    return re.compile(translate(_fold(pattern.strip()).replace("[", "[[]")))


def _fold(text: str) -> str:
    """Normalize what readers see as equal: NFC, without case and variation selectors."""
    shown = "".join(character for character in text if character not in SELECTORS)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", shown).casefold())
