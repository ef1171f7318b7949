"""No foreign error gets past the boundary, and nothing of its text does."""

import inspect
import pickle
import socket
import ssl
import traceback

import httpcore
import httpx
import pytest

from attachments.emailgistics.boundary import translated
from attachments.emailgistics.deadline import Call
from attachments.emailgistics.errors import (
    Aborted,
    BadAnswer,
    BadRequest,
    ConnectionFailed,
    DeadlineExceeded,
    EmailgisticsError,
    TimedOut,
    Truncated,
)

CANARY = "https://c1.emailgistics.com/api/v1/messages/CANARY/attachments"


def errors_of(module: object) -> list[type[Exception]]:
    return [each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, Exception)]


def made(kind: type[Exception]) -> Exception:
    if kind is httpx.HTTPStatusError:
        request = httpx.Request("GET", CANARY)
        return httpx.HTTPStatusError(CANARY, request=request, response=httpx.Response(500, request=request))
    takes_no_text = {httpx.StreamConsumed, httpx.StreamClosed, httpx.ResponseNotRead, httpx.RequestNotRead}
    return kind() if kind in takes_no_text else kind(CANARY)


FOREIGN = [
    *errors_of(httpx),
    *errors_of(httpcore),
    OSError,
    ConnectionResetError,
    TimeoutError,
    socket.gaierror,
    ssl.SSLError,
    ssl.SSLEOFError,
    ssl.SSLCertVerificationError,
]


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_foreign_error_is_translated(kind: type[Exception], reading: bool) -> None:
    """Every class that httpx and httpcore export, and the system's: ours comes out, without their text."""
    with pytest.raises(EmailgisticsError) as raised, translated("Downloading", reading=reading):
        raise made(kind)
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + str(raised.value)
    assert "CANARY" not in shown
    assert kind.__name__ not in "".join(traceback.format_exception(raised.value)).replace(f"({kind.__name__})", "")
    assert type(pickle.loads(pickle.dumps(raised.value))) is type(raised.value)


def test_the_lists_are_not_empty() -> None:
    """The walk above is no proof if it finds nothing."""
    assert len(errors_of(httpx)) >= 28
    assert len(errors_of(httpcore)) >= 14


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (httpx.ConnectTimeout, TimedOut),
        (httpx.ReadTimeout, TimedOut),
        (httpx.PoolTimeout, TimedOut),
        (httpcore.WriteTimeout, TimedOut),
        (httpx.ConnectError, ConnectionFailed),
        (httpx.ReadError, ConnectionFailed),
        (httpcore.ProxyError, ConnectionFailed),
        (httpx.RemoteProtocolError, ConnectionFailed),
        (httpx.InvalidURL, BadRequest),
        (httpx.UnsupportedProtocol, BadRequest),
        (httpx.DecodingError, BadAnswer),
    ],
)
def test_the_most_specific_counts(foreign: type[Exception], ours: type[EmailgisticsError]) -> None:
    """A class is translated as itself, not as its base."""
    with pytest.raises(ours), translated("Listing"):
        raise foreign(CANARY)


@pytest.mark.parametrize("foreign", [httpx.ReadError, httpcore.RemoteProtocolError, ConnectionResetError])
def test_a_break_while_reading_is_a_cut(foreign: type[Exception]) -> None:
    """Once the body has begun, a broken connection means that bytes are missing."""
    with pytest.raises(Truncated), translated("Downloading", reading=True):
        raise foreign(CANARY)


@pytest.mark.parametrize("foreign", [httpx.ReadError, httpcore.RemoteProtocolError, httpx.ReadTimeout])
def test_our_own_end_comes_first(foreign: type[Exception]) -> None:
    """When we ended the call, the error that this caused is not what is reported."""
    late, aborted = Call(0), Call(60)
    late.start()
    aborted.start()
    aborted.abort()
    with pytest.raises(DeadlineExceeded), translated("Downloading", late, reading=True):
        raise foreign(CANARY)
    with pytest.raises(Aborted), translated("Downloading", aborted, reading=True):
        raise foreign(CANARY)


@pytest.mark.parametrize("bug", [KeyError, AttributeError, AssertionError, KeyboardInterrupt])
def test_a_bug_passes(bug: type[BaseException]) -> None:
    """What is nobody's answer is not dressed up as one."""
    with pytest.raises(bug), translated("Downloading"):
        raise bug


def test_the_cause_is_named_without_its_text() -> None:
    """The symbol of the innermost cause helps a person, and holds no data."""
    refused = ssl.SSLCertVerificationError(1, CANARY)
    with pytest.raises(ConnectionFailed, match=r"\(SSLCertVerificationError\)"), translated("Listing"):
        raise httpcore.ConnectError(CANARY) from refused
