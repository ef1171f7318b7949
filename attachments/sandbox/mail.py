"""Reads mail from disk as Exchange would show it.

What becomes an attachment:
- a `message/rfc822` or `message/global` part: an itemAttachment, not looked into. So does any other
  `message/*` part that `email` parses into messages (a delivery status, for one), for it has no bytes;
- any other part without parts that is disposed as `attachment`, has a file name, or is neither text nor a
  container: a fileAttachment, inline images included, as the API does not tell them apart. Its bytes are what
  `get_payload(decode=True)` makes of it;
- the rest, the texts without a name, is the message's body, and no attachment.
"""

import mimetypes
import re
from collections.abc import Iterator
from datetime import UTC
from email import message_from_bytes, policy
from email.headerregistry import BaseHeader, HeaderRegistry
from email.message import Message as Mail
from email.parser import BytesParser
from email.utils import formataddr, getaddresses, parsedate_to_datetime
from functools import lru_cache
from pathlib import Path

from attachments.sandbox import graph_ids
from attachments.sandbox.bodies import HeldBody, Spool
from attachments.sandbox.mail_files import raw_messages
from attachments.sandbox.messages import DEFAULT_MAILBOX, FILE, ITEM, Attachment, Message
from attachments.sandbox.payload import now

# What the standard library's parser raises on headers and bodies that are no mail, or nested without end.
_MALFORMED = (LookupError, ValueError, AttributeError, TypeError, RecursionError)

_HEADER_CHARACTERS = 4096
"""Longer headers are truncated, because the standard library takes quadratic time for some."""

_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_ITEM_TYPES = ("message/rfc822", "message/global")
_ENVELOPE_BYTES = 100
"""Bytes that Exchange lists beyond what it delivers (api/messages/list-attachments)."""


def read_mail(path: Path, spool: Spool) -> Iterator[Message]:
    """The messages of a file of mail, or of a folder with such files (see mail_files).

    The attachments' bytes go to the spool. Raises OSError when the path cannot be read.
    """
    return (parse_mail(content, spool) for content in raw_messages(path))


def parse_mail(content: bytes, spool: Spool) -> Message:
    """One message; of a malformed one, everything readable."""
    mail = _parsed(content)
    message_id = graph_ids.message_id(content)
    return Message(
        id=message_id,
        mailbox=DEFAULT_MAILBOX,
        sender=next(iter(_addresses(mail, "from")), ""),
        subject=_header(mail, "subject") or "",
        received=_received(mail),
        conversation_id=graph_ids.conversation_id(message_id),
        internet_message_id=_header(mail, "message-id") or graph_ids.internet_message_id(message_id),
        to=_addresses(mail, "to"),
        cc=_addresses(mail, "cc"),
        attachments=tuple(
            _attachment(part, message_id, index, spool) for index, part in enumerate(attachment_parts(mail))
        ),
    )


def attachment_parts(mail: Mail) -> Iterator[Mail]:
    """The parts that become attachments, in the order of the mail."""
    if mail.get_content_maintype() == "multipart" and mail.is_multipart():
        for part in _parts(mail):
            yield from attachment_parts(part)
    elif _is_attachment(mail):
        yield mail


class _Tolerant(policy.EmailPolicy):
    """Parses headers like the standard library, in bounded time; leaves those unchanged that it cannot parse."""

    def header_fetch_parse(self, name: str, value: str) -> str:
        return _understood(name, value[:_HEADER_CHARACTERS])


_registry = HeaderRegistry()
_tolerant = _Tolerant()


@lru_cache(maxsize=64)  # the standard library asks for the same header a dozen times
def _understood(name: str, value: str) -> str | BaseHeader:
    line = re.sub(r"[\r\n]", "", value)
    try:
        return _registry(name, line)
    except _MALFORMED:
        return line


def _parsed(content: bytes) -> Mail:
    try:
        return message_from_bytes(content, policy=_tolerant)
    except _MALFORMED:
        return BytesParser(policy=_tolerant).parsebytes(content, headersonly=True)


def _parts(mail: Mail) -> list[Mail]:
    payload = mail.get_payload()
    return [part for part in payload if isinstance(part, Mail)] if isinstance(payload, list) else []


def _is_attachment(part: Mail) -> bool:
    if _disposition(part) == "attachment" or _file_name(part):
        return True
    return part.get_content_maintype() not in ("text", "multipart")


def _attachment(part: Mail, message_id: str, index: int, spool: Spool) -> Attachment:
    content_type = part.get_content_type()
    attachment_id = graph_ids.attachment_id(message_id, index)
    if part.is_multipart() or content_type in _ITEM_TYPES:
        inner = next(iter(_parts(part)), None)
        title = None if inner is None else _header(inner, "subject")
        name = _file_name(part) or title or f"ATT{index + 1:05}.eml"
        return Attachment(attachment_id, name, _clean_type(content_type), ITEM, _ENVELOPE_BYTES, HeldBody(b""))
    body = spool.keep(decoded(part))
    name = _file_name(part) or f"ATT{index + 1:05}{mimetypes.guess_extension(content_type) or '.bin'}"
    return Attachment(attachment_id, name, _clean_type(content_type), FILE, body.size + _ENVELOPE_BYTES, body)


def decoded(part: Mail) -> bytes:
    """The bytes of a decoded part; empty if it cannot be decoded."""
    try:
        content = part.get_payload(decode=True)
    except _MALFORMED:
        return b""
    return content if isinstance(content, bytes) else b""


def _header(mail: Mail, name: str) -> str | None:
    try:
        value = mail[name]
        return None if value is None else _clean(str(value))
    except _MALFORMED:
        return None


def _addresses(mail: Mail, name: str) -> tuple[str, ...]:
    try:
        found = getaddresses([str(value) for value in mail.get_all(name, [])])
    except _MALFORMED:
        return ()
    return tuple(formataddr((_clean(title), address)) for title, address in found if address.isascii() and address)


def _received(mail: Mail) -> str:
    try:
        date = parsedate_to_datetime(str(mail["date"]))
        return date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (*_MALFORMED, OverflowError):
        return now()


def _disposition(part: Mail) -> str | None:
    try:
        return part.get_content_disposition()
    except _MALFORMED:
        return None


def _file_name(part: Mail) -> str | None:
    try:
        name = part.get_filename()
    except _MALFORMED:
        return None
    return None if name is None else _clean(name) or None


def _clean(text: str) -> str:
    """The text without lone surrogates, which represent undecodable bytes."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _clean_type(content_type: str) -> str:
    return content_type if _MEDIA_TYPE.fullmatch(content_type) else "application/octet-stream"
