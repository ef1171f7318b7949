"""Reads messages out of the control API's JSON."""

import base64
import binascii
import mimetypes
import time

from attachments.sandbox import graph_ids
from attachments.sandbox.bodies import Body, GeneratedBody, HeldBody
from attachments.sandbox.fields import BadFieldError, Fields
from attachments.sandbox.messages import DEFAULT_MAILBOX, FILE, STANDARD, Attachment, Message, Standard
from attachments.sandbox.payload import now

_GENERATED_BYTES = 1024


def read_messages(document: object) -> list[Message]:
    """One message, or those under `messages`; raises BadFieldError when one cannot be read."""
    if isinstance(document, dict) and "messages" in document:
        fields = Fields(document, "messages")
        rows = fields.take("messages")
        fields.close()
        if not isinstance(rows, list):
            raise BadFieldError("messages: send a list of messages")
        return [read_message(row) for row in rows]
    return [read_message(document)]


def read_message(document: object) -> Message:
    """One message; what it leaves out is made up."""
    fields = Fields(document, "message")
    message_id = fields.text_or_none("id") or graph_ids.new_message_id()
    mailbox = fields.text_or_none("mailbox") or DEFAULT_MAILBOX
    rows = fields.take("attachments", [])
    if not isinstance(rows, list):
        raise BadFieldError("message: attachments must be a list")
    delay = fields.number("visible_after", 0.0)
    message = Message(
        id=message_id,
        mailbox=mailbox,
        sender=fields.text_or_none("sender") or "Sam Sender <sam@sender.example>",
        subject=_or(fields.text_or_none("subject"), "A message of the sandbox"),
        received=fields.text_or_none("received") or now(),
        conversation_id=fields.text_or_none("conversation_id") or graph_ids.conversation_id(message_id),
        internet_message_id=graph_ids.internet_message_id(message_id),
        to=(mailbox,),
        body_text=fields.text_or_none("body_text"),
        visible_at=time.monotonic() + delay if delay else 0.0,
        attachments=tuple(_attachment(row, message_id, index) for index, row in enumerate(rows)),
    )
    fields.close()
    ids = [attachment.id for attachment in message.attachments]
    if len(set(ids)) != len(ids):
        raise BadFieldError("message: two attachments have the same id; give each its own")
    return message


def _attachment(document: object, message_id: str, index: int) -> Attachment:
    fields = Fields(document, f"attachment {index}")
    if "name" not in fields:
        raise BadFieldError(f"attachment {index}: name must be a text or null")
    name = fields.text_or_none("name")
    attachment_id = fields.text_or_none("id") or graph_ids.attachment_id(message_id, index)
    kind = fields.text_or_none("type") or FILE
    guessed = mimetypes.guess_type(name or "")[0] or "application/octet-stream"
    content_type = fields.header_or_none("content_type") if "content_type" in fields else guessed
    disposition: str | Standard | None = STANDARD
    if "content_disposition" in fields:
        disposition = fields.header_or_none("content_disposition")
    body = _body(fields, f"{message_id}\n{attachment_id}", index, 0 if kind != FILE else _GENERATED_BYTES)
    listed_size = fields.whole_or_none("listed_size") if "listed_size" in fields else body.size
    inline = fields.flag("inline", default=False)
    fields.close()
    return Attachment(attachment_id, name, content_type, kind, listed_size, body, disposition, inline)


def _body(fields: Fields, seed: str, index: int, default_bytes: int) -> Body:
    given = [name for name in ("bytes", "text", "base64") if name in fields]
    if len(given) > 1:
        raise BadFieldError(f"attachment {index}: send only one of {', '.join(given)}")
    chosen = fields.take("seed")
    if given == ["text"]:
        return HeldBody(fields.text("text").encode("utf-8", "surrogatepass"))
    if given == ["base64"]:
        try:
            return HeldBody(base64.b64decode(fields.text("base64"), validate=True))
        except binascii.Error as error:
            raise BadFieldError(f"attachment {index}: base64 cannot be decoded ({error})") from error
    return GeneratedBody(seed if chosen is None else str(chosen), fields.whole("bytes", default_bytes))


def _or(value: str | None, default: str) -> str:
    return default if value is None else value
