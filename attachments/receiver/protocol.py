"""HTTP on one connection, so that an unauthenticated client costs little memory and no log line of its own."""

import asyncio
import logging
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from attachments.receiver.limits import ReceiverLimits
from attachments.receiver.unauthenticated import UnauthenticatedConnections

AUTHENTICATED = "attachments.authenticated"
"""Key in the `state` of a request's scope: a function to call when the request carries a valid secret."""

ACTIVE = object()

server_log = logging.getLogger("uvicorn.error")
request_log = logging.getLogger("uvicorn.error.requests")
request_log.setLevel(logging.ERROR)  # an upgrade request is not an error, and uvicorn's advice about it would mislead


class ReceiverProtocol(H11Protocol):
    """Closes connections that send no request; uvicorn itself waits for ever for the first one."""

    def __init__(
        self,
        unauthenticated: UnauthenticatedConnections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: ReceiverLimits | None = None,
    ) -> None:
        self._idle = (limits or ReceiverLimits()).idle_timeout
        # Not `self`: that cycle would leave this object and its buffers to the garbage collector.
        connection_id = self._connection_id = object()
        super().__init__(
            config, server_state, {**app_state, AUTHENTICATED: lambda: unauthenticated.remove(connection_id)}
        )
        self._unauthenticated = unauthenticated
        self.logger = request_log

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._cycle_at_last_check: object = None
        self._idle_check = self.loop.call_later(self._idle, self._close_if_idle)
        self._unauthenticated.add(self._connection_id, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle_check.cancel()
        self._unauthenticated.remove(self._connection_id)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Send it only if no response has begun. One has when the body of a refused request turns out to be
        malformed."""
        server_log.warning(msg)
        error = sys.exception()
        if error is not None:  # h11's error refers to itself, so its frames would keep this connection's buffers
            error.__traceback__ = None
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        super().send_400_response(msg)
        if self.cycle is not None:  # it would send a second response
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _close_if_idle(self) -> None:
        """Close the connection if no request was in progress at this check or the last, nor in between."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._cycle_at_last_check is self.cycle:
            self.transport.abort()
            return
        self._cycle_at_last_check = self.cycle if is_idle else ACTIVE
        self._idle_check = self.loop.call_later(self._idle, self._close_if_idle)
