"""The single seam through which every call to the vendor goes.

The limit is 100 requests a minute for the whole account (getting-started/rate-limits), so it cannot be kept
by one client alone: whoever makes a client brings a `Pacer` that knows of the others.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import httpx

from attachments.emailgistics.boundary import translated
from attachments.emailgistics.deadline import Call
from attachments.emailgistics.transport import CALL

ACTION = "emailgistics.action"
"""The extension of a request that says in words what it does, for messages."""

OWN_LIMIT = "emailgistics.own_limit"
"""The extension of a request that has a limit of its own besides: its 429 need not be about the calls a minute.

Which of the two it is cannot be told. Taken for the calls a minute, each of the tries of a start that waits half an
hour for a run would pause the fleet, twice as long each time, and live mail with it. Not taken for it, nothing is lost:
the start waits a minute by itself, and when the calls a minute are used up, the next other call hears it too."""

TOO_MANY_REQUESTS = 429


class Pacer(Protocol):
    """Spreads calls so that the account's limit is never passed. Shared between threads."""

    def call(self) -> AbstractContextManager[None]:
        """Entering waits for a turn, one call each; leaving says that the answer has begun, or that none came."""

    def rate_limited(self) -> None:
        """The vendor answered 429 all the same; said before the call is left."""


class Unpaced:
    """Every call at once."""

    def call(self) -> AbstractContextManager[None]:
        """No wait."""
        return nullcontext()

    def rate_limited(self) -> None:
        """Nothing to learn."""


class PacedTransport(httpx.BaseTransport):
    """Sends each request when its turn has come. Raises this project's errors; a pacer's own pass unchanged.

    The deadline of the call starts with its turn: waiting for one is no fault of the vendor's.
    """

    def __init__(self, inner: httpx.BaseTransport, pacer: Pacer) -> None:
        self._inner = inner
        self._pacer = pacer

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        call: Call = request.extensions[CALL]
        with self._pacer.call():
            call.start()
            with translated(request.extensions[ACTION], call):
                response = self._inner.handle_request(request)
            if response.status_code == TOO_MANY_REQUESTS and not request.extensions.get(OWN_LIMIT):
                self._pacer.rate_limited()
        return response

    def close(self) -> None:
        self._inner.close()
