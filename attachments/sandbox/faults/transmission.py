"""Faults in how it is sent: late, slowly, not to the end, wrongly framed, or not at all."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from attachments.sandbox.faults.base import CountedFault, UncountableFault
from attachments.sandbox.fields import Number, Whole
from attachments.sandbox.plan import CutOff, Ending, Framing, Hold, Plan


class Delay(CountedFault):
    """So many seconds before the answer begins."""

    kind: Literal["delay"]
    seconds: Number = 1.0

    def apply(self, plan: Plan) -> None:
        plan.delay += self.seconds


class Slow(CountedFault):
    """The body at so many bytes a second; for silence order a stall."""

    kind: Literal["slow"]
    bytes_per_second: Annotated[float, Field(gt=0)] = 1024.0

    def apply(self, plan: Plan) -> None:
        plan.bytes_per_second = self.bytes_per_second


class Stall(CountedFault):
    """Silence after so many bytes of the body, for so many seconds; null: until the client leaves."""

    kind: Literal["stall"]
    after_bytes: Whole = 0
    seconds: Number | None = None

    def apply(self, plan: Plan) -> None:
        plan.hold = Hold(self.after_bytes, self.seconds)


class Drip(CountedFault):
    """After so many bytes of the body one byte every so many seconds: no read time-out ever strikes.

    With null for the seconds it is a stall.
    """

    kind: Literal["drip"]
    after_bytes: Whole = 0
    seconds: Number | None = None

    def apply(self, plan: Plan) -> None:
        plan.hold = Hold(self.after_bytes, self.seconds, dripping=self.seconds is not None)


class Cut(CountedFault):
    """The body ends too early.

    Framing `length` announces the true length before, `close` none at all, so that nothing shows the loss;
    `chunked` leaves out the last chunk.
    """

    kind: Literal["cut"]
    after_bytes: Whole | None = None
    after_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    how: Ending = "fin"
    framing: Framing = "length"

    @model_validator(mode="after")
    def _has_one_position(self) -> "Cut":
        if {"after_bytes", "after_fraction"} <= self.model_fields_set:
            raise ValueError("send after_bytes or after_fraction, not both")
        return self

    def apply(self, plan: Plan) -> None:
        plan.cut = CutOff(self.after_bytes, self.after_fraction, self.how)
        plan.framing = self.framing


class ChangedFraming(CountedFault):
    """The whole body, framed by its length, by the connection's end, or in chunks (RFC 9112, 6)."""

    kind: Literal["framing"]
    framing: Framing = "length"

    def apply(self, plan: Plan) -> None:
        plan.framing = self.framing


class WrongLength(CountedFault):
    """A Content-Length that is not the body's; all of the true body is sent, then the connection ends."""

    kind: Literal["wrong_length"]
    announce: Whole

    def apply(self, plan: Plan) -> None:
        plan.framing = "length"
        plan.announce = self.announce


class Drop(UncountableFault):
    """The connection ends without any answer."""

    kind: Literal["drop"]
    how: Ending = "fin"

    def apply(self, plan: Plan) -> None:
        plan.drop = self.how
