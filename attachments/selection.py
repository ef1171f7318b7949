"""Which attachments are wanted: lists of rules to include and to exclude, by type, name and size."""

from __future__ import annotations

import mimetypes
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Annotated, Any, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# The standard library's own table (never the machine's), and what mail carries that it lacks in some version.
_TYPES = {
    **mimetypes.MimeTypes().types_map[True],
    ".7z": "application/x-7z-compressed",
    ".avif": "image/avif",
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

_SAYS_NOTHING = "application/octet-stream"


class AttachmentLike(Protocol):
    """What the filter looks at. `size` in bytes, as listed."""

    @property
    def name(self) -> str | None: ...
    @property
    def content_type(self) -> str | None: ...
    @property
    def size(self) -> int | None: ...


@dataclass(frozen=True)
class Decision:
    """Whether an attachment is wanted, and if not, the rule that dropped it, as it is configured."""

    wanted: bool
    rule: str | None = None


def _list_of_texts(value: Any) -> Any:
    if value is None:
        return ()
    if isinstance(value, str):
        raise ValueError(f'write a list, even of one: ["{value}"]')  # noqa: TRY004  # pydantic reports these
    if isinstance(value, list | tuple) and any(isinstance(item, str) and not item.strip() for item in value):
        raise ValueError("one of the patterns is empty; remove it, or write * to match everything")
    return value


def _content_types(value: Any) -> Any:
    value = _list_of_texts(value)
    for item in value if isinstance(value, list | tuple) else ():
        if isinstance(item, str) and not re.search(r"[/*?\[]", item):
            raise ValueError(
                f"{item!r} is no content type; write one such as application/pdf or image/*, "
                f'or match the file name instead: names ["*.{item.strip(". ")}"]'
            )
    return value


class _Strict(BaseModel):
    """Frozen, and clear about keys that it does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := [str(key) for key in data if key not in cls.model_fields]):
            known = ", ".join(cls.model_fields)
            raise ValueError(f"unknown {', '.join(sorted(unknown))}; a {cls.__name__.lower()} has {known}")
        return data


class Rule(_Strict):
    """Matches an attachment when all the conditions that it has match."""

    content_types: Annotated[tuple[str, ...], BeforeValidator(_content_types)] = Field(
        default=(),
        title="Content types",
        description=(
            "Any of these content types, such as application/pdf or image/*. Case and parameters are "
            "ignored, and application/octet-stream is judged by the file name's extension."
        ),
    )
    names: Annotated[tuple[str, ...], BeforeValidator(_list_of_texts)] = Field(
        default=(),
        title="File names",
        description="Any of these file names, such as *.pdf or invoice-*. Case is ignored.",
    )
    min_size: int | None = Field(
        default=None, ge=0, title="Smallest size", description="At least this many bytes, as listed."
    )
    max_size: int | None = Field(
        default=None, ge=0, title="Largest size", description="At most this many bytes, as listed."
    )

    @model_validator(mode="after")
    def _has_sense(self) -> Self:
        if not str(self):
            raise ValueError(
                "a rule without conditions; give it content_types, names, min_size or max_size, or remove it"
            )
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(
                f"min_size {self.min_size} is larger than max_size {self.max_size}, so nothing can match; exchange them"
            )
        return self

    def matches(self, attachment: AttachmentLike) -> bool:
        """Whether all conditions hold. One about the size does not hold when no size is listed."""
        size = attachment.size
        if self.min_size is not None and (size is None or size < self.min_size):
            return False
        if self.max_size is not None and (size is None or size > self.max_size):
            return False
        types = [_without_parameters(pattern) for pattern in self.content_types]
        if types and not _any_matches(types, _judged_type(attachment)):
            return False
        return not self.names or _any_matches(self.names, attachment.name or "")

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


class Filter(_Strict):
    """An attachment is wanted when it matches some include rule, or there are none, and no exclude rule."""

    include: tuple[Rule, ...] = Field(
        default=(),
        title="Include",
        description="Wanted is what matches at least one of these rules. Without any, everything is.",
    )
    exclude: tuple[Rule, ...] = Field(
        default=(),
        title="Exclude",
        description="Not wanted is what matches one of these rules, whatever is included.",
    )

    def decide(self, attachment: AttachmentLike) -> Decision:
        """Whether the attachment is wanted, and which rule drops it."""
        for number, rule in enumerate(self.exclude):
            if rule.matches(attachment):
                return Decision(wanted=False, rule=f"exclude[{number}]: {rule}")
        if self.include and not any(rule.matches(attachment) for rule in self.include):
            return Decision(wanted=False, rule="include: no rule matches")
        return Decision(wanted=True)


def decide(filter: Filter | None, attachment: AttachmentLike) -> Decision:  # noqa: A002  # the flow's parameter
    """Whether the attachment is wanted; without a filter everything is."""
    return Decision(wanted=True) if filter is None else filter.decide(attachment)


def _judged_type(attachment: AttachmentLike) -> str:
    """The content type without case and parameters; by the file name's extension when it says nothing."""
    stated = _without_parameters(attachment.content_type or "")
    if stated not in {"", _SAYS_NOTHING}:
        return stated
    _, dot, extension = (attachment.name or "").strip().casefold().rpartition(".")
    return _TYPES.get(dot + extension, _SAYS_NOTHING)


def _without_parameters(content_type: str) -> str:
    return content_type.partition(";")[0].strip().casefold()


def _any_matches(patterns: Sequence[str], text: str) -> bool:
    folded = _folded(text)
    return any(_compiled(pattern).match(folded) for pattern in patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # fnmatch's own expressions never backtrack over more than one star, so no file name can make them slow.
    return re.compile(translate(_folded(pattern.strip())))


def _folded(text: str) -> str:
    """One spelling for what readers take for the same: NFC, without case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
