"""Webhooks, as pure functions over headers and bytes (webhooks/delivery, request-payload, response-envelope).

Whatever a caller sends, `authenticate` answers yes or no and `parse_delivery` returns a `Delivery` or raises
`InvalidDelivery`: a stranger's bytes never make the receiver answer 500.
"""

import hmac
import json
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from attachments.emailgistics.errors import InvalidDelivery
from attachments.emailgistics.models import ID_CHARACTERS
from attachments.foundation.message_id import normalized

__all__ = [
    "Action",
    "Delivery",
    "Envelope",
    "InvalidDelivery",
    "authenticate",
    "envelope",
    "parse_delivery",
]

RECEIVED = "received"
"""The only event so far."""

_MAILBOX_CHARACTERS = 320  # the longest address there is: 64 + 1 + 255 (RFC 5321, section 4.5.3.1)
_WORD_CHARACTERS = 64


class Delivery(BaseModel):
    """The fields of a webhook's payload that the download needs, without sender, subject and text.

    `repr` and `str` do not show the mailbox, which is an address.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    message_id: str
    event: str | None = None
    mailbox: str | None = Field(default=None, repr=False)
    received: str | None = None
    """When the message was received, in the vendor's notation."""
    conversation_id: str | None = None
    has_attachments: bool | None = None
    """None if the payload does not say."""
    timestamp: str | None = None
    """In the vendor's notation; all attempts of one delivery have the same."""

    @property
    def is_received(self) -> bool:
        """Whether it reports a received message; a payload without an event does too."""
        return self.event in (None, RECEIVED)

    @property
    def wants_download(self) -> bool:
        """Whether there may be attachments: a message was received, and the payload does not deny attachments."""
        return self.is_received and self.has_attachments is not False


class Action(TypedDict):
    """An action for Emailgistics (webhooks/actions/*), such as `{"type": "tag", "value": {...}}`."""

    type: str
    value: dict[str, Any]
    name: NotRequired[str]


class Envelope(TypedDict):
    """The body of the response to a webhook (webhooks/response-envelope)."""

    status: Literal["success", "error"]
    message: str
    actions: NotRequired[list[Action]]


def authenticate(authorization: str | None, secrets: Sequence[str]) -> bool:
    """Whether the `Authorization` header carries one of the current secrets (webhooks/delivery).

    All secrets are compared, each in constant time, so the time taken does not tell which one it was. An
    empty secret matches nothing; with no secret at all, nobody is let in. Never raises.
    """
    scheme, _, token = (authorization or "").strip().partition(" ")
    offered = token.strip().encode("utf-8", "surrogatepass")
    matches = False
    for secret in secrets:
        same = hmac.compare_digest(offered, secret.encode("utf-8", "surrogatepass"))
        matches |= same and bool(secret)
    return matches and scheme.lower() == "bearer"


def parse_delivery(body: bytes) -> Delivery:
    """Parse a webhook's body. Unknown fields and events are tolerated; invalid optional fields become None.

    Raises `InvalidDelivery` when it is not a JSON object (RFC 8259: no NaN) with a usable `id`.
    """
    try:
        payload = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidDelivery("The webhook's body is not JSON") from None
    if not isinstance(payload, dict):
        raise InvalidDelivery("The webhook's body is not a JSON object")
    has_attachments = payload.get("hasAttachments")
    return Delivery(
        message_id=_message_id(payload.get("id")),
        event=_optional(payload.get("event"), _WORD_CHARACTERS),
        mailbox=_optional(payload.get("mailbox"), _MAILBOX_CHARACTERS),
        received=_optional(payload.get("received"), _WORD_CHARACTERS),
        conversation_id=_optional(payload.get("conversationId"), ID_CHARACTERS),
        has_attachments=has_attachments if isinstance(has_attachments, bool) else None,
        timestamp=_optional(payload.get("timestamp"), _WORD_CHARACTERS),
    )


def envelope(status: Literal["success", "error"], message: str, actions: Sequence[Action] = ()) -> Envelope:
    """The response's body. Send it with HTTP 200; after `"error"` the vendor does not retry.

    `message` is logged by the vendor and shown in Admin.
    """
    answer = Envelope(status=status, message=message)
    if actions:
        answer["actions"] = list(actions)
    return answer


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _plain(text: str) -> bool:
    """Whether the text has neither control characters nor lone surrogates."""
    return not any(unicodedata.category(character) in {"Cc", "Cs"} for character in text)


def _message_id(value: object) -> str:
    message_id = normalized(value) if isinstance(value, str) else ""
    if not message_id:
        raise InvalidDelivery("The webhook's body has no id")
    if len(message_id) > ID_CHARACTERS:
        raise InvalidDelivery(f"The webhook's id is longer than {ID_CHARACTERS} characters")
    if not _plain(message_id):
        raise InvalidDelivery("The webhook's id contains control characters or broken Unicode")
    return message_id


def _optional(value: object, longest: int) -> str | None:
    if not isinstance(value, str):
        return None
    text = value.strip()[:longest].rstrip()
    return text if text and _plain(text) else None
