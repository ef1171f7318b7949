"""How the end of a response's body is marked (RFC 9112, section 6.3), and what proves that it is complete."""

import re
from dataclasses import dataclass

import httpx

from attachments.emailgistics.errors import BadAnswer, EmailgisticsError, Truncated

_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True)
class Framing:
    """`length` in bytes if it is announced; `chunked` if the end is marked instead; otherwise neither."""

    length: int | None
    chunked: bool

    def doubt(self, received: int, listed_size: int | None, action: str) -> EmailgisticsError | None:
        """None if a body that ended without an error after so many bytes is proven complete; otherwise the error.

        RFC 9112, section 6.3, for the answer to a GET:
        - (4, 5) `Transfer-Encoding: chunked`: the last chunk is the proof. One that is cut before it raises
          while it is read, so there is nothing left to check here. It overrides a length.
        - (6) `Content-Length`: all the bytes must be there, and no more.
        - (8) neither: the body ends when the connection does, and so does one that was cut (httpx raises
          nothing). Only the size that was listed can vouch for it, though it is not meant to be exact: when
          it differs, that counts as cut. With a length or chunks, the listed size is never looked at.

        That is `Truncated`, or `BadAnswer` for more bytes than announced.
        """
        if self.chunked:
            return None
        expected = listed_size if self.length is None else self.length
        if received == expected:
            return None
        if self.length is None:
            return Truncated(f"{action}: neither a length nor chunks nor the listed size prove that it is complete")
        if received > self.length:
            return BadAnswer(f"{action}: more than the announced {self.length} bytes arrived")
        return Truncated(f"{action}: only {received} of {self.length} bytes arrived")


def framing_of(headers: httpx.Headers, action: str) -> Framing:
    """The framing that these headers announce.

    Raises `BadAnswer` for a length that is no number or contradicts another. The same one twice is fine:
    RFC 9110, section 8.6, lets a recipient read it as one.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Framing(length=None, chunked=True)
    lengths = {part.strip() for part in headers.get_list("content-length", split_commas=True)}
    if not lengths:
        return Framing(length=None, chunked=False)
    length = lengths.pop()
    if lengths or not _DIGITS.fullmatch(length):
        raise BadAnswer(f"{action}: the announced length is not a number, or there are several")
    return Framing(length=int(length), chunked=False)
