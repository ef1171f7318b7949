"""Reads messages out of the control API's JSON."""

import base64
import binascii
import mimetypes
import time

from pydantic import Field, model_validator

from attachments.sandbox import graph_ids
from attachments.sandbox.bodies import Body, GeneratedBody, HeldBody
from attachments.sandbox.fields import BadFieldError, Document, HeaderText, Number, Text, Whole, read
from attachments.sandbox.messages import DEFAULT_MAILBOX, FILE, STANDARD, Attachment, Message
from attachments.sandbox.payload import now

_GENERATED_BYTES = 1024
_CONTENT = {"bytes", "text", "base64"}


class _AttachmentOrder(Document):
    """Missing values are generated; the content is at most one of `bytes` (a count), `text` and `base64`."""

    name: Text | None
    id: Text | None = None
    type: Text | None = None
    content_type: HeaderText | None = None
    content_disposition: HeaderText | None = None
    bytes: Whole | None = None
    text: Text | None = None
    base64: Text | None = None
    seed: object = None
    listed_size: Whole | None = None
    inline: bool = False

    @model_validator(mode="after")
    def _has_one_content(self) -> "_AttachmentOrder":
        if len(sent := _CONTENT & self.model_fields_set) > 1:
            raise ValueError(f"send only one of {', '.join(sorted(sent))}")
        return self


class _MessageOrder(Document):
    """Missing values are generated; `visible_after` is in seconds."""

    id: Text | None = None
    mailbox: Text | None = None
    sender: Text | None = None
    subject: Text | None = None
    received: Text | None = None
    conversation_id: Text | None = None
    body_text: Text | None = None
    visible_after: Number = 0.0
    attachments: list[_AttachmentOrder] = Field(default_factory=list)


class _MessageOrders(Document):
    messages: list[_MessageOrder]


def read_messages(document: object) -> list[Message]:
    """One message, or those under `messages`; raises BadFieldError when one cannot be read."""
    if isinstance(document, dict) and "messages" in document:
        return [_message(order) for order in read(_MessageOrders, document, "messages").messages]
    return [_message(read(_MessageOrder, document, "message"))]


def _message(order: _MessageOrder) -> Message:
    message_id = order.id or graph_ids.new_message_id()
    mailbox = order.mailbox or DEFAULT_MAILBOX
    message = Message(
        id=message_id,
        mailbox=mailbox,
        sender=order.sender or "Sam Sender <sam@sender.example>",
        subject="A message of the sandbox" if order.subject is None else order.subject,
        received=order.received or now(),
        conversation_id=order.conversation_id or graph_ids.conversation_id(message_id),
        internet_message_id=graph_ids.internet_message_id(message_id),
        to=(mailbox,),
        body_text=order.body_text,
        visible_at=time.monotonic() + order.visible_after if order.visible_after else 0.0,
        attachments=tuple(_attachment(row, message_id, index) for index, row in enumerate(order.attachments)),
    )
    ids = [attachment.id for attachment in message.attachments]
    if len(set(ids)) != len(ids):
        raise BadFieldError("message: two attachments have the same id; give each its own")
    return message


def _attachment(order: _AttachmentOrder, message_id: str, index: int) -> Attachment:
    sent = order.model_fields_set
    attachment_id = order.id or graph_ids.attachment_id(message_id, index)
    guessed = mimetypes.guess_type(order.name or "")[0] or "application/octet-stream"
    body = _body(order, f"{message_id}\n{attachment_id}", index)
    return Attachment(
        id=attachment_id,
        name=order.name,
        content_type=order.content_type if "content_type" in sent else guessed,
        type=order.type or FILE,
        listed_size=order.listed_size if "listed_size" in sent else body.size,
        body=body,
        disposition=order.content_disposition if "content_disposition" in sent else STANDARD,
        inline=order.inline,
    )


def _body(order: _AttachmentOrder, seed: str, index: int) -> Body:
    if order.text is not None:
        return HeldBody(order.text.encode("utf-8", "surrogatepass"))
    if order.base64 is not None:
        try:
            return HeldBody(base64.b64decode(order.base64, validate=True))
        except (binascii.Error, ValueError) as error:
            raise BadFieldError(f"attachment {index}: base64 cannot be decoded ({error})") from error
    default = _GENERATED_BYTES if (order.type or FILE) == FILE else 0
    size = default if order.bytes is None else order.bytes
    return GeneratedBody(seed if order.seed is None else str(order.seed), size)
