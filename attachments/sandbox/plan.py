"""The plan of a response and its transmission: faults change it, `wire` executes it."""

from dataclasses import dataclass
from typing import Literal

from attachments.sandbox.answers import Answer, Origin

Framing = Literal["length", "close", "chunked"]
Ending = Literal["fin", "reset"]


@dataclass(frozen=True)
class Hold:
    """After so many bytes of the body: silence for `seconds`, or when dripping, a byte every `seconds`.

    None: silence until the client leaves.
    """

    after_bytes: int
    seconds: float | None
    dripping: bool = False


@dataclass(frozen=True)
class CutOff:
    """Where the body ends too early: after so many bytes, or after that part (0 to 1) of them."""

    after_bytes: int | None
    after_fraction: float
    ending: Ending

    def position(self, size: int) -> int:
        """The byte of a body of `size` bytes before which the connection ends."""
        wanted = int(size * self.after_fraction) if self.after_bytes is None else self.after_bytes
        return min(wanted, size)


@dataclass
class Plan:
    """One response and its transmission; times in seconds, sizes in bytes."""

    answer: Answer
    origin: Origin
    takes_gzip: bool = False
    delay: float = 0.0
    bytes_per_second: float | None = None
    hold: Hold | None = None
    cut: CutOff | None = None
    framing: Framing = "length"
    announce: int | None = None
    drop: Ending | None = None
