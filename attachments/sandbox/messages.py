"""The stand-in's messages."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from attachments.sandbox.bodies import Body

FILE: Final = "fileAttachment"
ITEM: Final = "itemAttachment"

DEFAULT_MAILBOX: Final = "support@sandbox.example"


@dataclass(frozen=True)
class Standard:
    """The Content-Disposition that the vendor documents, as opposed to one that a test dictates."""


STANDARD: Final = Standard()


@dataclass(frozen=True)
class Attachment:
    """One part of a message, for `list` and `download`.

    `disposition` is the raw Content-Disposition to send, None for none at all.
    """

    id: str
    name: str | None
    content_type: str | None
    type: str
    listed_size: int | None
    body: Body
    disposition: str | Standard | None = STANDARD
    inline: bool = False
    """Part of the text, which Microsoft Graph's `hasAttachments` does not count."""


@dataclass(frozen=True)
class Message:
    """A message in a shared mailbox; times are ISO 8601 text, `visible_at` is in monotonic seconds."""

    id: str
    mailbox: str
    sender: str
    subject: str
    received: str
    conversation_id: str
    internet_message_id: str
    attachments: tuple[Attachment, ...]
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    body_text: str | None = None
    visible_at: float = 0.0

    @property
    def visible(self) -> bool:
        """Whether Exchange has settled; before that, the API does not have the message."""
        return time.monotonic() >= self.visible_at

    def attachment(self, attachment_id: str) -> Attachment | None:
        """The attachment with exactly that id."""
        return next((known for known in self.attachments if known.id == attachment_id), None)


@dataclass
class Messages:
    """All messages, by id, in order of arrival."""

    _by_id: dict[str, Message] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._by_id

    def add(self, messages: Iterable[Message]) -> None:
        """Add messages, replacing those with the same id."""
        self._by_id.update((message.id, message) for message in messages)

    def find(self, message_id: str) -> Message | None:
        """The message with exactly that id."""
        return self._by_id.get(message_id)

    def clear(self) -> None:
        """Remove all messages."""
        self._by_id.clear()
