"""Turns an unsuccessful response into the error that describes it (getting-started/errors)."""

import json
import re
from collections.abc import Collection

import httpx

from attachments.emailgistics.body import pieces
from attachments.emailgistics.deadline import Call
from attachments.emailgistics.errors import (
    BadAnswer,
    BadRequest,
    EmailgisticsError,
    Forbidden,
    InvalidKey,
    NotFound,
    RateLimited,
    ServerError,
    UnexpectedStatus,
)
from attachments.emailgistics.models import capped

ERROR_BODY_BYTES = 64 * 1024
ERROR_BODY_SECONDS = 10.0
"""How much of an error's body is read, and for how long: the explanation must not delay or hide the status."""

MESSAGE_CHARACTERS = 2_000
"""Characters of the vendor's explanation that are kept."""

_LONGEST_RETRY_AFTER = 3_600
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_BY_STATUS: dict[int, type[EmailgisticsError]] = {
    400: BadRequest,
    401: InvalidKey,
    403: Forbidden,
    404: NotFound,
    429: RateLimited,
}


REPORTS = frozenset({httpx.codes.OK, httpx.codes.CREATED, httpx.codes.ACCEPTED})
"""Success statuses of requests that start or poll a report. The documentation does not say which."""


def require_success(
    response: httpx.Response,
    call: Call,
    action: str,
    fine: Collection[int] = (httpx.codes.OK,),
    *,
    error_seconds: float = ERROR_BODY_SECONDS,
) -> None:
    """Return if the response's status is in `fine`; otherwise raise the error for its status.

    Any other 2xx is a `BadAnswer`: a 206, for example, would be a part that looks like the whole.
    """
    status = response.status_code
    if status in fine:
        return
    code, vendor_message = _explanation(_beginning(response, call, action, error_seconds))
    raise _error_of(status)(
        f"{action}: {_in_words(status)}",
        status=status,
        code=code,
        vendor_message=vendor_message,
        retry_after=_retry_after(response.headers),
    )


def _error_of(status: int) -> type[EmailgisticsError]:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if httpx.codes.is_server_error(status):
        return ServerError
    return BadAnswer if httpx.codes.is_success(status) else UnexpectedStatus


def _in_words(status: int) -> str:
    if httpx.codes.is_redirect(status):
        return (
            "responded with a redirect, which is not followed, because the API key is sent only to the configured host"
        )
    if httpx.codes.is_success(status):
        return "responded with a success status other than the documented 200"
    return "refused" if status < httpx.codes.INTERNAL_SERVER_ERROR else "failed on the other side"


def _beginning(response: httpx.Response, call: Call, action: str, seconds: float) -> bytes:
    """The first part of the body, or what arrived of it before an error or the time limit."""
    call.shorten(seconds)
    body = bytearray()
    try:
        for piece in pieces(response, call, action):
            body += piece[: ERROR_BODY_BYTES - len(body)]
            if len(body) >= ERROR_BODY_BYTES or call.remaining() <= 0:
                break
    except EmailgisticsError:
        pass  # the status is known, and more important than its explanation
    return bytes(body)


def _explanation(body: bytes) -> tuple[str | None, str | None]:
    """The documented `error.code` and `error.message`; None for each that is missing."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None, None
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return None, None
    code, message = error.get("code"), error.get("message")
    if type(code) is int:
        code = str(code)
    return capped(code) or None, capped(message, MESSAGE_CHARACTERS) or None


def _retry_after(headers: httpx.Headers) -> float | None:
    """`Retry-After` in seconds (RFC 9110, section 10.2.3); its form as a date is not read."""
    value = headers.get("retry-after", "")
    return float(min(int(value), _LONGEST_RETRY_AFTER)) if _SECONDS.fullmatch(value) else None
