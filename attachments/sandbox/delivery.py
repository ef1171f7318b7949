"""Posts webhooks as the vendor does (webhooks/delivery, webhooks/response-envelope).

Three times at most; again after a connection error, a time-out or a 5xx; any 4xx ends it, but for a 429 with
Retry-After, which is waited for up to 10 s. What is not documented is taken as failure that ends it: another
2xx than 200, and a redirect.
"""

import asyncio
import ipaddress
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit

import aiohttp

from attachments.sandbox.fields import BadFieldError
from attachments.sandbox.payload import Payload

Outcome = Literal["success", "error", "failed"]

_KEPT_BODY = 64 * 1024
_LONGEST_RETRY_AFTER = 10.0
_SHORTEST_PAUSE = 0.1


@dataclass(frozen=True)
class Attempt:
    """One POST: the status or the error, and the response's text."""

    status: int | None
    error: str | None
    seconds: float
    body: str | None


@dataclass
class Delivery:
    """One webhook with its attempts; `outcome` is None while it is in progress.

    `success`: 200 and the envelope says so. `error`: 200 and the envelope says error, which the vendor does
    not retry. `failed`: everything else.
    """

    message_id: str
    url: str
    outcome: Outcome | None = None
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(frozen=True)
class Posting:
    """What to deliver, where, and how to retry; times in seconds.

    `pause` is the wait between attempts, None for 0.1, 0.2, … Raises BadFieldError for a secret that others could read
    on its way.
    """

    payload: Payload
    url: str
    secret: str | None = None
    attempts: int = 3
    timeout: float = 100.0
    pause: float | None = None

    def __post_init__(self) -> None:
        if self.secret:
            require_private(self.url)

    def begin(self) -> Delivery:
        """The delivery before its first attempt."""
        return Delivery(str(self.payload.get("id")), self.url)


def require_private(url: str) -> None:
    """Raise BadFieldError if a secret would be sent to another host in clear text."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if parts.scheme == "http" and not is_loopback:
        raise BadFieldError(f"the secret is not sent to {host} by plain HTTP; use https://, or a host of this machine")


async def deliver(session: aiohttp.ClientSession, posting: Posting, delivery: Delivery) -> None:
    """Make the attempts, and record them and the outcome in the delivery."""
    for number in range(posting.attempts):
        attempt, retry_after = await _attempt(session, posting)
        delivery.attempts.append(attempt)
        pause = pause_before_retry(posting, attempt, retry_after, number)
        if pause is None or number + 1 == posting.attempts:
            break
        await asyncio.sleep(pause)
    delivery.outcome = _outcome(delivery.attempts)


async def _attempt(session: aiohttp.ClientSession, posting: Posting) -> tuple[Attempt, str | None]:
    headers = {"Content-Type": "application/json", "User-Agent": "Emailgistics-Sandbox"}
    if posting.secret:
        headers["Authorization"] = f"Bearer {posting.secret}"
    began = time.monotonic()
    try:
        async with session.post(
            posting.url,
            data=json.dumps(posting.payload).encode("ascii"),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=posting.timeout),
            allow_redirects=False,
        ) as answer:
            body = await _beginning(answer.content)
            seconds = time.monotonic() - began
            attempt = Attempt(answer.status, None, seconds, body.decode("utf-8", "replace"))
            return attempt, answer.headers.get("Retry-After")
    except TimeoutError:
        return Attempt(None, f"no answer within {posting.timeout} s", time.monotonic() - began, None), None
    except (aiohttp.ClientError, OSError) as error:
        return Attempt(None, f"{type(error).__name__}: {error}", time.monotonic() - began, None), None


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) >= _KEPT_BODY:
            break
    return bytes(body[:_KEPT_BODY])


def pause_before_retry(posting: Posting, attempt: Attempt, retry_after: str | None, number: int) -> float | None:
    """The seconds until the next attempt; None if there is none."""
    if attempt.status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = _seconds(retry_after)
        return None if wait is None else min(wait, _LONGEST_RETRY_AFTER)
    if attempt.status is None or attempt.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _SHORTEST_PAUSE * 2**number if posting.pause is None else posting.pause
    return None


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds, from a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        due = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if due.tzinfo is None:
        due = due.replace(tzinfo=UTC)
    return max(0.0, (due - datetime.now(UTC)).total_seconds())


def _outcome(attempts: list[Attempt]) -> Outcome:
    if not attempts or attempts[-1].status != HTTPStatus.OK:
        return "failed"
    match envelope(attempts[-1]).get("status"):
        case "success":
            return "success"
        case "error":
            return "error"
        case _:
            return "failed"


def envelope(attempt: Attempt) -> dict[str, object]:
    """The response's JSON object; empty if it is not one."""
    try:
        document = json.loads(attempt.body or "")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
