"""The attachments of a message as Emailgistics lists them (api/messages/list-attachments).

Additive changes come unannounced (getting-started/versioning): unknown fields are ignored and unknown kinds
kept as they are. Only an id is indispensable.
"""

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from attachments.emailgistics.errors import BadAnswer
from attachments.foundation.unicode_text import well_formed

FILE_ATTACHMENT = "fileAttachment"
"""The only kind that can be downloaded."""
_PLACEHOLDER = re.compile(r"(safe attachments|atp) scan in progress(\s*\.[a-z]{3,4})?", re.ASCII | re.IGNORECASE)
"""The name that Microsoft Defender lists in place of an attachment that it is still scanning (Safe Attachments, Dynamic
Delivery)."""
_LONGEST_PLACEHOLDER = 200  # characters

ID_CHARACTERS = 2_048
"""More than eight times the length of Microsoft Graph's ids. A longer one makes the list a `BadAnswer`."""
NAME_CHARACTERS = 2_048
"""Far more than file systems allow. Of a longer name, the beginning and the end are kept."""
WORD_CHARACTERS = 256
"""Characters of a type or kind; a registered type has at most 255 (RFC 6838, section 4.2). The rest is cut off."""
LARGEST_SIZE = 2**63 - 1
"""Bytes; a larger size counts as unknown."""


def capped(value: Any, most: int = WORD_CHARACTERS) -> str:
    """The first `most` characters of a text, without surrounding blanks; empty for anything else."""
    return well_formed(value.strip()[:most].rstrip()) if isinstance(value, str) else ""


def _name(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    half = NAME_CHARACTERS // 2
    return well_formed(value if len(value) <= NAME_CHARACTERS else value[:half] + value[-half:])


def _content_type(value: Any) -> str:
    return capped(value) or "application/octet-stream"


def _size(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_SIZE else None


def _kind(value: Any) -> str:
    return capped(value) or FILE_ATTACHMENT


class Attachment(BaseModel):
    """One attachment as listed. Accepts the vendor's field names and these; `repr` and `str` do not show its name."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )

    id: str = Field(min_length=1, max_length=ID_CHARACTERS)
    """An opaque Microsoft Graph id: case-sensitive, often 150 to 250 characters, may hold `/`."""
    name: Annotated[str, BeforeValidator(_name)] = Field(default="", repr=False)
    """The file name from the sender: any text of up to `NAME_CHARACTERS`, or empty."""
    content_type: Annotated[str, BeforeValidator(_content_type)] = Field(
        default="application/octet-stream", alias="contentType"
    )
    size: Annotated[int | None, BeforeValidator(_size)] = None
    """Bytes as Exchange reports them, which may differ from the download. None if unknown."""
    kind: Annotated[str, BeforeValidator(_kind)] = Field(default=FILE_ATTACHMENT, alias="attachmentType")
    """`fileAttachment`, `referenceAttachment`, `itemAttachment`, or something newer.

    One without a kind counts as a file: a download that fails says so, one that is never tried does not.
    """

    @property
    def downloadable(self) -> bool:
        """Whether it can be downloaded."""
        return self.kind == FILE_ATTACHMENT

    @property
    def is_placeholder(self) -> bool:
        """Whether it is the placeholder of an attachment that a scanner holds back, and that will be listed later."""
        return len(self.name) <= _LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(self.name.strip()) is not None


class _Listing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    attachments: tuple[Attachment, ...]


def parse_listing(body: bytes) -> tuple[Attachment, ...]:
    """The attachments in the body of a listing. Raises `BadAnswer` when it is not the documented JSON.

    A missing list is refused rather than read as "no attachments": that would lose them without a word.
    """
    try:
        # Not pydantic's own JSON parser, which rejects the whole list for one name with a lone surrogate.
        return _Listing.model_validate(json.loads(body)).attachments
    except (ValueError, RecursionError, ValidationError):
        raise BadAnswer("The list of attachments is not the documented JSON") from None
