"""An answer's body, read piece by piece under the deadline of its call."""

from collections.abc import Iterator

import httpx

from attachments.emailgistics.boundary import own_end, translated
from attachments.emailgistics.deadline import Call
from attachments.emailgistics.errors import BadAnswer
from attachments.emailgistics.framing import Framing, framing_of


def pieces(response: httpx.Response, call: Call, action: str) -> Iterator[bytes]:
    """The bytes as they come off the wire. Raises this project's errors; its end proves nothing.

    Not `Response.iter_raw`: that adds two layers, and nothing to what the stream itself yields.
    """
    stream = response.stream
    assert isinstance(stream, httpx.SyncByteStream)  # noqa: S101 - httpx types both kinds as one
    with translated(action, call, reading=True):
        for piece in stream:
            if (ended := own_end(call, action)) is not None:
                raise ended
            yield piece


def readable_framing(response: httpx.Response, action: str) -> Framing:
    """The framing of a body that came as it was asked for. Raises `BadAnswer` for one that is encoded.

    Some servers say `gzip` of a file that is a .gz: decoding would change it, and not decoding would store
    what a proxy has compressed. So neither: we asked for `identity` (RFC 9110, section 12.5.3).
    """
    if response.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        raise BadAnswer(f"{action}: the body is encoded, though it was asked for as it is")
    return framing_of(response.headers, action)


def whole(response: httpx.Response, call: Call, action: str, *, most: int) -> bytes:
    """A small body in one, of at most so many bytes. Raises `BadAnswer` for more, `Truncated` for a cut one.

    One that is framed by the connection's end alone is returned: its reader must tell whether it is whole.
    """
    framing = readable_framing(response, action)
    body = bytearray()
    for piece in pieces(response, call, action):
        body += piece
        if len(body) > most:
            raise BadAnswer(f"{action}: the answer is longer than {most} bytes")
    doubt = framing.doubt(len(body), len(body), action)
    if doubt is not None:
        raise doubt
    return bytes(body)
