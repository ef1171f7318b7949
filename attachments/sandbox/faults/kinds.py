"""All kinds of fault, by the name that a test orders them by."""

from collections.abc import Callable
from typing import Protocol

from attachments.sandbox.faults import content, transmission
from attachments.sandbox.fields import BadFieldError, Fields
from attachments.sandbox.plan import Plan


class Fault(Protocol):
    """Something that goes wrong with one answer.

    A fault that is not `counted` stands for a proxy in front of the vendor: the rate limit never hears of
    the call.
    """

    @property
    def counted(self) -> bool: ...

    def apply(self, plan: Plan) -> None: ...


_KINDS: dict[str, Callable[[Fields], Fault]] = {
    "status": content.Status.read,
    "redirect": content.Redirect.read,
    "headers": content.ChangedHeaders.read,
    "extra_fields": content.ExtraFields.read,
    "unfinished_list": content.UnfinishedList.read,
    "content_encoding": content.ContentEncoding.read,
    "delay": transmission.Delay.read,
    "slow": transmission.Slow.read,
    "stall": transmission.Stall.read,
    "drip": transmission.Drip.read,
    "cut": transmission.Cut.read,
    "framing": transmission.ChangedFraming.read,
    "wrong_length": transmission.WrongLength.read,
    "drop": transmission.Drop.read,
}


def read_fault(document: object) -> Fault:
    """The fault that a JSON object describes; raises BadFieldError for an unknown kind, field or value."""
    fields = Fields(document, "fault")
    kind = fields.text("kind")
    if kind not in _KINDS:
        raise BadFieldError(f"fault: there is no kind {kind!r}; send one of {', '.join(_KINDS)}")
    fault = _KINDS[kind](fields)
    fields.close()
    return fault
