"""The stand-in's account: the state that a response can depend on."""

from collections import deque
from dataclasses import dataclass, field

from attachments.sandbox.delivery import Delivery
from attachments.sandbox.faults.book import FaultBook
from attachments.sandbox.keys import KeyRing
from attachments.sandbox.messages import DEFAULT_MAILBOX, Messages
from attachments.sandbox.reports import Reports
from attachments.sandbox.request_log import RequestLog
from attachments.sandbox.window import SlidingWindow


@dataclass
class Account:
    """Keys, messages, rate limit, faults and the log of requests."""

    keys: KeyRing
    window: SlidingWindow
    messages: Messages = field(default_factory=Messages)
    faults: FaultBook = field(default_factory=FaultBook)
    reports: Reports = field(default_factory=Reports)
    log: RequestLog = field(default_factory=RequestLog)
    deliveries: deque[Delivery] = field(default_factory=lambda: deque(maxlen=10_000))

    def mailboxes(self) -> list[str]:
        """The addresses of the shared mailboxes: of the messages, of the allowlists, and the default one."""
        known = {DEFAULT_MAILBOX.casefold(): DEFAULT_MAILBOX}
        for key in self.keys:
            known.update((address.casefold(), address) for address in key.mailboxes or ())
        known.update((message.mailbox.casefold(), message.mailbox) for message in self.messages)
        return [known[address] for address in sorted(known)]
