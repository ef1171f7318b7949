"""Translates the errors of httpx, httpcore and the operating system into this project's.

Their texts may contain the URL, and with it ids, so only the class's name or the symbol of an `errno` is kept.
"""

import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpcore
import httpx

from attachments.emailgistics.deadline import Call
from attachments.emailgistics.errors import (
    Aborted,
    BadAnswer,
    BadRequest,
    ConnectionFailed,
    EmailgisticsError,
    TimedOut,
    Truncated,
    UnexpectedStatus,
)

_Foreign = tuple[type[Exception], ...]

_TIMEOUTS: _Foreign = (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)
_PROTOCOL: _Foreign = (httpx.RemoteProtocolError, httpcore.RemoteProtocolError)

_TABLE: tuple[tuple[_Foreign, type[EmailgisticsError], str], ...] = (
    # The first matching row counts, most specific first.
    ((httpx.PoolTimeout, httpcore.PoolTimeout), TimedOut, "no connection became free in time"),
    ((httpx.ConnectTimeout, httpcore.ConnectTimeout), TimedOut, "connecting took too long"),
    ((httpx.WriteTimeout, httpcore.WriteTimeout), TimedOut, "sending the request took too long"),
    (_TIMEOUTS, TimedOut, "no data arrived for too long"),
    ((httpx.ProxyError, httpcore.ProxyError), ConnectionFailed, "the proxy refused"),
    (
        (
            httpx.UnsupportedProtocol,
            httpx.LocalProtocolError,
            httpx.TooManyRedirects,
            httpx.InvalidURL,
            httpx.CookieConflict,
            httpcore.UnsupportedProtocol,
            httpcore.LocalProtocolError,
        ),
        BadRequest,
        "the request could not be formed",
    ),
    ((httpx.DecodingError,), BadAnswer, "the body could not be decoded"),
    ((httpx.HTTPStatusError,), UnexpectedStatus, "the status is an error"),
    (_PROTOCOL, ConnectionFailed, "the server closed the connection"),
    ((httpx.StreamError,), ConnectionFailed, "the body was already closed or read"),
    (
        (
            httpx.HTTPError,
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.ConnectionNotAvailable,
            OSError,  # with it ssl.SSLError
        ),
        ConnectionFailed,
        "the connection failed",
    ),
)

FOREIGN: _Foreign = tuple(error for errors, _, _ in _TABLE for error in errors)
"""The errors that are translated. Anything else is a bug of this project, and passes."""

_MAX_CAUSES = 8


@contextmanager
def translated(action: str, call: Call | None = None, *, reading: bool = False) -> Iterator[None]:
    """Raise this project's errors instead of the libraries'. `action` begins the message ("downloading an attachment").

    `reading`: the body is being read, so a broken connection means an incomplete body.
    """
    try:
        yield
    except FOREIGN as foreign:
        raise _translation(foreign, action, call, reading=reading) from None


def _translation(foreign: Exception, action: str, call: Call | None, *, reading: bool) -> EmailgisticsError:
    if call is not None and (ended := own_end(call, action)):
        return ended
    if isinstance(foreign, _PROTOCOL) and call is not None and call.hung_up is False:
        return BadAnswer(f"{action}: the response violates HTTP")
    error, what = next((ours, what) for theirs, ours, what in _TABLE if isinstance(foreign, theirs))
    if reading and error is ConnectionFailed:
        return Truncated(f"{action}: the connection broke before the body was complete")
    return error(f"{action}: {what} ({_symbol(foreign)})")


def own_end(call: Call, action: str) -> EmailgisticsError | None:
    """The error if this process ended the call, by `abort()` or its deadline; otherwise None."""
    if call.aborted:
        return Aborted(f"{action}: ended by this process")
    if call.remaining() <= 0:
        return call.too_late(f"{action}: not done within {call.seconds:g} seconds")
    return None


def _symbol(foreign: BaseException) -> str:
    """The innermost cause as a symbol without data: `ECONNREFUSED`, `SSLCertVerificationError`."""
    cause = foreign
    for _ in range(_MAX_CAUSES):
        deeper = cause.__cause__ or cause.__context__
        if deeper is None:
            break
        cause = deeper
    number = cause.errno if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) else None
    return errno.errorcode.get(number or 0, type(cause).__name__)
