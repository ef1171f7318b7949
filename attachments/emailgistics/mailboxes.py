"""The mailboxes that the key can access (api/mailboxes/list)."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from attachments.emailgistics.errors import BadAnswer
from attachments.emailgistics.models import WORD_CHARACTERS, capped

_ADDRESS_CHARACTERS = 320  # the longest possible address: 64 + 1 + 255 (RFC 5321, section 4.5.3.1)


def _id(value: Any) -> Any:
    # Its type is not documented, so a number is accepted.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Mailbox(BaseModel):
    """One shared mailbox; `repr` and `str` show only its id."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", validate_by_name=True, validate_by_alias=True, hide_input_in_errors=True
    )

    id: Annotated[str, BeforeValidator(_id)] = Field(min_length=1, max_length=WORD_CHARACTERS, alias="mailboxId")
    """The id for reports."""
    address: Annotated[str, BeforeValidator(lambda value: capped(value, _ADDRESS_CHARACTERS))] = Field(
        default="", alias="mailboxEmail", repr=False
    )
    """The address in webhooks."""
    name: Annotated[str, BeforeValidator(capped)] = Field(default="", alias="mailboxName", repr=False)
    active: Annotated[bool, BeforeValidator(lambda value: value is not False)] = True
    """True unless the vendor says otherwise, because checking an inactive one does no harm."""


class _MailboxListing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    mailboxes: tuple[Mailbox, ...]


def parse_mailboxes(body: bytes) -> tuple[Mailbox, ...]:
    """The mailboxes in the body of a listing. Raises `BadAnswer` if it is not the documented JSON."""
    try:
        return _MailboxListing.model_validate(json.loads(body)).mailboxes
    except (ValueError, RecursionError, ValidationError):
        raise BadAnswer("The list of mailboxes is not the documented JSON") from None
