"""The JSON of a webhook (webhooks/request-payload)."""

from datetime import UTC, datetime
from email.utils import parseaddr

from attachments.sandbox.messages import Message

Payload = dict[str, object]


def webhook_payload(message: Message) -> Payload:
    """The payload that Emailgistics posts when a rule of the message's mailbox uses the webhook."""
    sender = _party(message.sender)
    payload: Payload = {
        "id": message.id,
        "event": "received",
        "internetMessageId": message.internet_message_id,
        "received": message.received,
        "mailbox": message.mailbox,
        "sender": sender,
        "from": sender,
        "to": [_party(address) for address in message.to],
        "cc": [_party(address) for address in message.cc],
        "subject": message.subject,
        "hasAttachments": any(not attachment.inline for attachment in message.attachments),
        "timestamp": _to_the_millisecond(),
        "conversationId": message.conversation_id,
    }
    if message.body_text is not None:
        payload["bodyText"] = message.body_text
    return payload


def sample_payload() -> Payload:
    """The payload of the test button in Admin: a message that does not exist (webhooks/setup)."""
    someone = {"emailAddress": {"name": "Sample Sender", "address": "sender@example.com"}}
    return {
        "id": "AAMkSampleMessageIdThatDoesNotExist=",
        "event": "received",
        "internetMessageId": "<sample@example.com>",
        "received": "2026-01-01T12:00:00Z",
        "mailbox": "shared@example.com",
        "sender": someone,
        "from": someone,
        "to": [{"emailAddress": {"name": "Shared", "address": "shared@example.com"}}],
        "cc": [],
        "subject": "Sample message",
        "hasAttachments": True,
        "timestamp": _to_the_millisecond(),
        "conversationId": "AAQkSampleConversation=",
    }


def now() -> str:
    """The time in UTC in the vendor's notation."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _to_the_millisecond() -> str:
    """The timestamp of a delivery, which all its attempts share."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _party(written: str) -> dict[str, dict[str, str]]:
    name, address = parseaddr(written)
    return {"emailAddress": {"name": name, "address": address or written}}
