"""Faults in how it is sent: late, slowly, not to the end, wrongly framed, or not at all."""

from dataclasses import dataclass
from typing import ClassVar, Self, cast

from attachments.sandbox.fields import BadFieldError, Fields
from attachments.sandbox.plan import CutOff, Ending, Framing, Hold, Plan

_FRAMINGS = ("length", "close", "chunked")
_ENDINGS = ("fin", "reset")


@dataclass(frozen=True)
class Delay:
    """So many seconds before the answer begins."""

    seconds: float
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(fields.number("seconds", 1.0))

    def apply(self, plan: Plan) -> None:
        plan.delay += self.seconds


@dataclass(frozen=True)
class Slow:
    """The body at so many bytes a second."""

    bytes_per_second: float
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        speed = fields.number("bytes_per_second", 1024.0)
        if not speed:
            raise BadFieldError("fault: bytes_per_second must be above 0; for silence order a stall")
        return cls(speed)

    def apply(self, plan: Plan) -> None:
        plan.bytes_per_second = self.bytes_per_second


@dataclass(frozen=True)
class Stall:
    """Silence after so many bytes of the body, for so many seconds; null: until the client leaves."""

    after_bytes: int
    seconds: float | None
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(fields.whole("after_bytes", 0), fields.number_or_none("seconds"))

    def apply(self, plan: Plan) -> None:
        plan.hold = Hold(self.after_bytes, self.seconds)


@dataclass(frozen=True)
class Drip:
    """After so many bytes of the body one byte every so many seconds: no read time-out ever strikes.

    With null for the seconds it is a stall.
    """

    after_bytes: int
    seconds: float | None
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(fields.whole("after_bytes", 0), fields.number_or_none("seconds"))

    def apply(self, plan: Plan) -> None:
        plan.hold = Hold(self.after_bytes, self.seconds, dripping=self.seconds is not None)


@dataclass(frozen=True)
class Cut:
    """The body ends too early.

    Framing `length` announces the true length before, `close` none at all, so that nothing shows the loss;
    `chunked` leaves out the last chunk.
    """

    cut: CutOff
    framing: Framing
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        if "after_bytes" in fields and "after_fraction" in fields:
            raise BadFieldError("fault: send after_bytes or after_fraction, not both")
        fraction = fields.number("after_fraction", 0.5)
        if fraction > 1:
            raise BadFieldError("fault: after_fraction must lie between 0 and 1")
        ending = cast("Ending", fields.choice("how", _ENDINGS, "fin"))
        return cls(CutOff(fields.whole_or_none("after_bytes"), fraction, ending), _framing(fields))

    def apply(self, plan: Plan) -> None:
        plan.cut = self.cut
        plan.framing = self.framing


@dataclass(frozen=True)
class ChangedFraming:
    """The whole body, framed by its length, by the connection's end, or in chunks (RFC 9112, 6)."""

    framing: Framing
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(_framing(fields))

    def apply(self, plan: Plan) -> None:
        plan.framing = self.framing


@dataclass(frozen=True)
class WrongLength:
    """A Content-Length that is not the body's; all of the true body is sent, then the connection ends."""

    announce: int
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        announce = fields.whole_or_none("announce")
        if announce is None:
            raise BadFieldError("fault: announce must be the number of bytes to announce")
        return cls(announce)

    def apply(self, plan: Plan) -> None:
        plan.framing = "length"
        plan.announce = self.announce


@dataclass(frozen=True)
class Drop:
    """The connection ends without any answer."""

    ending: Ending
    counted: bool

    @classmethod
    def read(cls, fields: Fields) -> Self:
        ending = cast("Ending", fields.choice("how", _ENDINGS, "fin"))
        return cls(ending, fields.flag("counted", default=True))

    def apply(self, plan: Plan) -> None:
        plan.drop = self.ending


def _framing(fields: Fields) -> Framing:
    return cast("Framing", fields.choice("framing", _FRAMINGS, "length"))
