"""Reads a response's body in pieces, within the deadline of its call."""

from collections.abc import Iterator

import httpx

from attachments.emailgistics.boundary import own_end, translated
from attachments.emailgistics.deadline import Call
from attachments.emailgistics.errors import BadAnswer
from attachments.emailgistics.framing import Framing, framing_of


def pieces(response: httpx.Response, call: Call, action: str) -> Iterator[bytes]:
    """The bytes as they arrive. Raises this project's errors; the end of the iteration proves nothing.

    Not `Response.iter_raw`, which adds two layers without any benefit.
    """
    stream = response.stream
    assert isinstance(stream, httpx.SyncByteStream)  # noqa: S101 - httpx types both kinds as one
    with translated(action, call, reading=True):
        for piece in stream:
            if (ended := own_end(call, action)) is not None:
                raise ended
            yield piece


def readable_framing(response: httpx.Response, action: str) -> Framing:
    """The framing of an unencoded body. Raises `BadAnswer` for an encoded one.

    Some servers declare a .gz file as `gzip`: decoding would change it, and not decoding would store what a proxy has
    compressed. The request asks for `identity` (RFC 9110, section 12.5.3), so both are errors.
    """
    if response.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        raise BadAnswer(f"{action}: the body is encoded, although `identity` was requested")
    return framing_of(response.headers, action)


def read_body(response: httpx.Response, call: Call, action: str, *, max_bytes: int) -> bytes:
    """A whole small body of at most `max_bytes` bytes. Raises `BadAnswer` for more, `Truncated` for an incomplete one.

    A body that is framed only by the end of the connection is returned; the caller must check that it is complete.
    """
    framing = readable_framing(response, action)
    body = bytearray()
    for piece in pieces(response, call, action):
        body += piece
        if len(body) > max_bytes:
            raise BadAnswer(f"{action}: the response is longer than {max_bytes} bytes")
    doubt = framing.doubt(len(body), len(body), action)
    if doubt is not None:
        raise doubt
    return bytes(body)
