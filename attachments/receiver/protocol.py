"""HTTP on one connection, such that a stranger's costs little: neither memory for long, nor a log line of its own."""

import asyncio
import logging
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from attachments.receiver.limits import Limits
from attachments.receiver.strangers import Strangers

AUTHENTICATED = "attachments.authenticated"
"""In the `state` of a request's scope: what to call when it has carried a valid secret."""

BUSY = object()

server_log = logging.getLogger("uvicorn.error")
request_log = logging.getLogger("uvicorn.error.requests")
request_log.setLevel(logging.ERROR)  # a request to upgrade is no fault, and uvicorn's advice about it would mislead


class ReceiverProtocol(H11Protocol):
    """Closes connections on which no request comes; uvicorn itself waits for ever for the first one."""

    def __init__(
        self,
        strangers: Strangers,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: Limits | None = None,
    ) -> None:
        self._idle = (limits or Limits()).idle_connection
        # Not this object, which would then be freed, with its buffers, by the garbage collector alone.
        stranger = self._stranger = object()
        super().__init__(config, server_state, {**app_state, AUTHENTICATED: lambda: strangers.discard(stranger)})
        self._strangers = strangers
        self.logger = request_log

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._at_last_look: object = None
        self._look = self.loop.call_later(self._idle, self._close_if_idle)
        self._strangers.add(self._stranger, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        self._strangers.discard(self._stranger)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Only where no response has begun, as one has when the body of a refused request turns out to be malformed."""
        server_log.warning(msg)
        error = sys.exception()
        if error is not None:  # h11's, which refers to itself: its frames would keep this connection's buffers
            error.__traceback__ = None
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        super().send_400_response(msg)
        if self.cycle is not None:  # its own response would be a second one
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _close_if_idle(self) -> None:
        """Idle means: at two looks no request was under way, and none in between."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._at_last_look is self.cycle:
            self.transport.abort()
            return
        self._at_last_look = self.cycle if is_idle else BUSY
        self._look = self.loop.call_later(self._idle, self._close_if_idle)
