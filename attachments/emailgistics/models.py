"""What Emailgistics lists of a message (api/messages/list-attachments).

Additive changes come unannounced (getting-started/versioning): unknown fields are ignored and unknown kinds
kept as they are. Only an id is indispensable.
"""

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from attachments.emailgistics.errors import BadAnswer

FILE_ATTACHMENT = "fileAttachment"
"""The one kind that can be downloaded."""
_PLACEHOLDER = re.compile(r"(safe attachments|atp) scan in progress(\s*\.[a-z]{3,4})?", re.ASCII | re.IGNORECASE)
"""What Microsoft Defender lists in place of an attachment that it still scans (Safe Attachments, Dynamic Delivery)."""
_LONGEST_PLACEHOLDER = 200  # characters; a sender may give a file a name of millions


def well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate (JSON allows `"\\ud800"`), so it can be encoded."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(value: Any) -> Any:
    return well_formed(value) if isinstance(value, str) else ""


def _content_type(value: Any) -> Any:
    return _text(value).strip() or "application/octet-stream"


def _size(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def _kind(value: Any) -> str:
    return _text(value) or FILE_ATTACHMENT


Text = Annotated[str, BeforeValidator(_text)]
"""Any text as the vendor sends it; empty for anything else."""


class Attachment(BaseModel):
    """One attachment as listed. Takes the vendor's names and ours; `repr` and `str` do not show its name."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )

    id: str = Field(min_length=1)
    """An opaque Microsoft Graph id: case-sensitive, often 150 to 250 characters, may hold `/`."""
    name: Annotated[str, BeforeValidator(_text)] = Field(default="", repr=False)
    """The file's name as the sender gave it; any text at all, or empty."""
    content_type: Annotated[str, BeforeValidator(_content_type)] = Field(
        default="application/octet-stream", alias="contentType"
    )
    size: Annotated[int | None, BeforeValidator(_size)] = None
    """Bytes, as Exchange reports them: need not equal what is delivered. None when unknown."""
    kind: Annotated[str, BeforeValidator(_kind)] = Field(default=FILE_ATTACHMENT, alias="attachmentType")
    """`fileAttachment`, `referenceAttachment`, `itemAttachment`, or something newer.

    One without a kind counts as a file: a download that fails says so, one that is never tried does not.
    """

    @property
    def downloadable(self) -> bool:
        """Whether its bytes can be had at all."""
        return self.kind == FILE_ATTACHMENT

    @property
    def is_placeholder(self) -> bool:
        """Whether it stands for an attachment that a scanner holds back, and that will be listed in its place."""
        return len(self.name) <= _LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(self.name.strip()) is not None


class _Listing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    attachments: tuple[Attachment, ...]


def parse_listing(body: bytes) -> tuple[Attachment, ...]:
    """The attachments in the body of a listing. Raises `BadAnswer` when it is not the documented JSON.

    A missing list is refused rather than read as "no attachments": that would lose them without a word.
    """
    try:
        # Not pydantic's own JSON parser: it refuses the whole list for one name with a lone surrogate in it.
        return _Listing.model_validate(json.loads(body)).attachments
    except (ValueError, RecursionError, ValidationError):
        raise BadAnswer("The list of attachments is not the documented JSON") from None
