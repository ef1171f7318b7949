"""The faults that are ordered, and the calls that they are meant for."""

import time
from dataclasses import dataclass, field

from attachments.sandbox.faults.kinds import Fault, read_fault
from attachments.sandbox.fields import Fields
from attachments.sandbox.routes import Call

ANY = "any"
_ENDPOINTS = (ANY, "list", "download", "mailboxes", "report", "result")


@dataclass
class Order:
    """A fault for the calls that match: after the first `skip` of them, `times` times (None: until removed).

    `until` is in monotonic seconds, None for ever. `document` is the order as it came.
    """

    id: str
    fault: Fault
    document: dict[str, object]
    endpoint: str
    message_id: str | None
    attachment_id: str | None
    times: int | None
    skip: int
    until: float | None
    matched: int = 0
    fired: int = 0

    def matches(self, call: Call) -> bool:
        """Whether the call is one that the fault is meant for."""
        return (
            self.endpoint in (ANY, call.endpoint)
            and self.message_id in (None, call.message_id)
            and self.attachment_id in (None, call.attachment_id)
        )

    @property
    def spent(self) -> bool:
        """Whether it can never strike again."""
        over = self.until is not None and time.monotonic() >= self.until
        return over or (self.times is not None and self.fired >= self.times)

    def strikes(self) -> bool:
        """Counts one matching call and says whether the fault happens to it."""
        if self.spent:
            return False
        self.matched += 1
        if self.matched <= self.skip:
            return False
        self.fired += 1
        return True


@dataclass
class FaultBook:
    """All orders, in the order in which they came; those that match the same call all happen to it."""

    orders: dict[str, Order] = field(default_factory=dict)
    _ordered: int = 0

    def add(self, document: object) -> Order:
        """Takes an order; raises BadFieldError when it cannot be read."""
        fields = Fields(document, "order of a fault")
        lasts = fields.number_or_none("for_seconds")
        order = Order(
            id=str(self._ordered + 1),
            fault=read_fault(fields.take("fault")),
            document=dict(document) if isinstance(document, dict) else {},
            endpoint=fields.choice("endpoint", _ENDPOINTS, ANY),
            message_id=fields.text_or_none("message_id"),
            attachment_id=fields.text_or_none("attachment_id"),
            # Left out: once, or as long as `for_seconds` says.
            times=fields.whole_or_none("times") if "times" in fields or lasts is not None else 1,
            skip=fields.whole("skip", 0),
            until=None if lasts is None else time.monotonic() + lasts,
        )
        fields.close()
        self._ordered += 1
        self.orders[order.id] = order
        return order

    def take(self, call: Call, *, counted: bool) -> list[Fault]:
        """The faults that happen to this call: those that the limit counts, or those that it does not."""
        return [
            order.fault
            for order in self.orders.values()
            if order.fault.counted is counted and order.matches(call) and order.strikes()
        ]
