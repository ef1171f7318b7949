"""A download in progress: its headers, and its bytes with proof that they are complete."""

from collections.abc import Iterator

import httpx

from attachments.emailgistics.body import pieces, readable_framing
from attachments.emailgistics.boundary import own_end
from attachments.emailgistics.content_disposition import filename_of
from attachments.emailgistics.deadline import Call


class Download:
    """The bytes of one attachment as they arrive. Iterate once, within its `with` block.

    The iteration ends without an error only when the body is proven complete (see `framing.Framing.doubt`);
    otherwise it raises `Truncated`, `TimedOut`, `DeadlineExceeded`, `BadAnswer` or `Aborted`. Stopping early
    is fine, and silent.
    """

    def __init__(self, response: httpx.Response, call: Call, action: str, *, listed_size: int | None) -> None:
        self._framing = readable_framing(response, action)
        self._response = response
        self._call = call
        self._action = action
        self._listed_size = listed_size
        self._begun = False
        self.file_name: str | None = filename_of(_header(response.headers, b"content-disposition"))
        """The original name by `Content-Disposition`: any text, not made safe. None when it has none."""
        self.content_type: str | None = response.headers.get("content-type")
        self.length: int | None = self._framing.length
        """Bytes, as announced; None when they are not."""

    def __repr__(self) -> str:
        return f"Download(length={self.length!r})"

    def __iter__(self) -> Iterator[bytes]:
        if self._begun:  # httpcore would spin for ever
            raise RuntimeError("A download can be read only once; open it again to restart it")
        self._begun = True
        received = 0
        for piece in pieces(self._response, self._call, self._action):
            received += len(piece)
            yield piece
        doubt = self._framing.doubt(received, self._listed_size, self._action)
        if doubt is not None:
            raise own_end(self._call, self._action) or doubt

    def abort(self) -> None:
        """End it, from any thread: the iteration raises `Aborted` at once, however long it would wait."""
        self._call.abort()


def _header(headers: httpx.Headers, name: bytes) -> str | None:
    """The header's first value, by itself: httpx decodes all in Latin-1 when one of them is no UTF-8."""
    for key, value in headers.raw:
        if key.lower() == name:
            return value.decode("utf-8", "surrogateescape")
    return None
