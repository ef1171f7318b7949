"""The faults that are ordered, and the calls that they are meant for."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from attachments.sandbox.faults.kinds import Fault
from attachments.sandbox.fields import Document, Number, Text, Whole, read
from attachments.sandbox.routes import Call


class FaultOrder(Document):
    """A fault for the calls that match: after the first `skip` of them, `times` times (null: until removed).

    Without `times`: once, or for `for_seconds`.
    """

    fault: Fault
    endpoint: Literal["any", "list", "download", "mailboxes", "report", "result"] = "any"
    message_id: Text | None = None
    attachment_id: Text | None = None
    skip: Whole = 0
    for_seconds: Number | None = None
    times: Whole | None = None

    @property
    def most(self) -> int | None:
        """How many calls it affects; None: no limit."""
        is_once = "times" not in self.model_fields_set and self.for_seconds is None
        return 1 if is_once else self.times

    def matches(self, call: Call) -> bool:
        """Whether the call is one that the fault is meant for."""
        return (
            self.endpoint in ("any", call.endpoint)
            and self.message_id in (None, call.message_id)
            and self.attachment_id in (None, call.attachment_id)
        )


@dataclass
class Order:
    """An accepted order and its use so far; `since` is in monotonic seconds, `document` as received."""

    id: str
    terms: FaultOrder
    document: Any
    since: float = field(default_factory=time.monotonic)
    matched: int = 0
    fired: int = 0

    @property
    def spent(self) -> bool:
        """Whether it can no longer affect a call."""
        most, seconds = self.terms.most, self.terms.for_seconds
        return (most is not None and self.fired >= most) or (
            seconds is not None and time.monotonic() >= self.since + seconds
        )

    def strikes(self) -> bool:
        """Counts one matching call and says whether the fault happens to it."""
        if self.spent:
            return False
        self.matched += 1
        if self.matched <= self.terms.skip:
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
        order = Order(str(self._ordered + 1), read(FaultOrder, document, "order of a fault"), document)
        self._ordered += 1
        self.orders[order.id] = order
        return order

    def take(self, call: Call, *, counted: bool) -> list[Fault]:
        """The faults that happen to this call: those that the limit counts, or those that it does not."""
        return [
            order.terms.fault
            for order in self.orders.values()
            if order.terms.fault.counted is counted and order.terms.matches(call) and order.strikes()
        ]
