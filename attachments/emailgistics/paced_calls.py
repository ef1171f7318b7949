"""The interface through which every call to the vendor waits for its turn.

The limit is 100 requests a minute for the whole account (getting-started/rate-limits), so it cannot be kept
by one client alone, so the creator of a client supplies a `Pacer` that takes the others into account.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import httpx

from attachments.emailgistics.boundary import translated
from attachments.emailgistics.deadline import Call
from attachments.emailgistics.transport import CALL

ACTION = "emailgistics.action"
"""Request extension: a description of the call, for messages."""

OWN_LIMIT = "emailgistics.own_limit"
"""The extension of a request that has a limit of its own besides: its 429 need not be about the calls a minute.

Which of the two it is cannot be told. Taken for the calls a minute, each of the tries of a start that waits half an
hour for a run would pause the fleet, twice as long each time, and live mail with it. Not taken for it, nothing is lost:
the start waits a minute by itself, and when the calls a minute are used up, the next other call hears it too."""

TOO_MANY_REQUESTS = 429


class Pacer(Protocol):
    """Delays calls so that the account's limit is never exceeded. Threads may share it."""

    def call(self) -> AbstractContextManager[None]:
        """Wait for the turn of one call on entry; exit when the response has begun or the call has failed."""

    def rate_limited(self) -> None:
        """Report that the vendor responded 429 nevertheless, before the call is exited."""


class Unpaced:
    """A pacer that never waits."""

    def call(self) -> AbstractContextManager[None]:
        """Do not wait."""
        return nullcontext()

    def rate_limited(self) -> None:
        """Ignore it."""


class PacedTransport(httpx.BaseTransport):
    """Sends each request when it is its turn. Raises this project's errors; those of the pacer pass unchanged.

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
