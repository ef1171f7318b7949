"""All errors of calls to Emailgistics and of its webhooks.

EmailgisticsError
  x InvalidArgument      (also a ValueError) refused before anything was sent
  x InvalidDelivery      (also a ValueError) a webhook's body that cannot be read
  x BadRequest           400, or a request that could not be formed
  x InvalidKey           401
  x Forbidden            403
  x NotFound             404
  x UnexpectedStatus     any other 4xx, and every 3xx
  x RateLimited          429                            retryable
  x ServerError          5xx                            retryable
  x ConnectionFailed     no connection, or it broke     retryable
  x TimedOut             one step took too long         retryable
  x DeadlineExceeded     all of it took too long        retryable
  x Truncated            the body is not all there      retryable
  x BadAnswer            a success that makes no sense  retryable
  x StrayLink            a link of an answer leads out of the API
  x ReportFailed         a report that came to nothing  retryable
  x Aborted              we ended it ourselves

Exceptions' texts become Prefect states, which anyone with the UI can read, so `str` and `repr` hold our own
words only: never what the vendor wrote, a URL, an id or a name. The one word let through is `error.code`,
and only when it looks like a code.

Statuses: getting-started/errors of the vendor's documentation.
"""

import re
from typing import ClassVar

VENDOR_MESSAGE_CHARACTERS = 2_000
"""Characters of the vendor's own message that are kept."""

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,40}", re.ASCII)


class EmailgisticsError(Exception):
    """The base class. `str` says what happened and what to do; it is safe to log and to show.

    `status` is the HTTP status, `code` the vendor's `error.code` (None when there is none or it is no plain
    token), `vendor_message` the vendor's own text (it may hold customer data: keep it out of logs and
    states), `retry_after` the seconds that the answer asked us to wait.
    """

    outcome_code: ClassVar[str] = "error"
    """A short stable code, for a manifest's `code`."""
    retryable: ClassVar[bool] = False
    """Whether a retry may succeed without anyone's help."""
    remedy: ClassVar[str] = "See the attached code and status."
    """What a person can do about it."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        vendor_message: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code if code is not None and _CODE.fullmatch(code) else None
        self.vendor_message = None if vendor_message is None else vendor_message[:VENDOR_MESSAGE_CHARACTERS]
        self.retry_after = retry_after

    def __str__(self) -> str:
        details = [f"HTTP {self.status}"] if self.status is not None else []
        if self.code is not None and self.code != str(self.status):
            details.append(f"code {self.code}")
        context = f" ({', '.join(details)})" if details else ""
        return f"{self.message}{context}. {self.remedy}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, status={self.status!r}, code={self.code!r})"


class InvalidArgument(EmailgisticsError, ValueError):
    """An argument is not valid; nothing was sent."""

    outcome_code = "invalid-argument"
    remedy = "Correct the setting or the id and try again."


class InvalidDelivery(EmailgisticsError, ValueError):
    """A webhook's body is not a valid delivery. The text never quotes the body."""

    outcome_code = "invalid-delivery"
    remedy = "Check that Emailgistics sent it, and that no proxy changes the body."


class BadRequest(EmailgisticsError):
    """400: the vendor rejected the request as malformed, or it could not be formed."""

    outcome_code = "bad-request"
    remedy = "A retry does not help: check the ids and the base URL, or report a bug in this project."


class InvalidKey(EmailgisticsError):
    """401: the API key is missing, malformed, expired or deleted. Every call fails."""

    outcome_code = "invalid-key"
    remedy = (
        "The API key is malformed, expired or deleted, so every call will fail: create a new key in "
        "Emailgistics and put it in place of the old one."
    )


class Forbidden(EmailgisticsError):
    """403: the key lacks a scope, or the attachment is not a file."""

    outcome_code = "forbidden"
    remedy = (
        "Either the API key lacks a scope (listing needs messages:read, downloading messages:content, mailboxes and "
        "reports need reporting), or "
        "the attachment is a link or an Outlook item, which cannot be downloaded."
    )


class NotFound(EmailgisticsError):
    """404: gone, or in a mailbox outside the key's allowlist. The vendor does not say which."""

    outcome_code = "not-found"
    remedy = (
        "Either the message, attachment or mailbox is gone (deleted or expired), or the mailbox is outside the API "
        "key's allowlist; Emailgistics does not tell which. Check the key's mailboxes first."
    )


class UnexpectedStatus(EmailgisticsError):
    """A status that the vendor does not document: another 4xx, or a redirect, which is never followed."""

    outcome_code = "unexpected-status"
    remedy = "Check the base URL, and any proxy in between."


class RateLimited(EmailgisticsError):
    """429: the account's limit of calls a minute (or of report runs) is used up."""

    outcome_code = "rate-limited"
    retryable = True
    remedy = "Wait for at least a minute, longer each time; other users of the account share the limit."


class ServerError(EmailgisticsError):
    """5xx: something failed on the vendor's side, or at a proxy."""

    outcome_code = "server-error"
    retryable = True
    remedy = "This usually passes; try again later."


class ConnectionFailed(EmailgisticsError):
    """The connection failed, or broke before the response."""

    outcome_code = "connection"
    retryable = True
    remedy = "Try again; if it persists, check the network, host name, proxy and certificates."


class TimedOut(EmailgisticsError):
    """One step (connecting, sending, receiving the next bytes) took longer than its timeout."""

    outcome_code = "timeout"
    retryable = True
    remedy = "Emailgistics is slow when Exchange is loaded; try again later, or raise the timeout."


class DeadlineExceeded(EmailgisticsError):
    """The whole call took longer than its deadline, even if bytes kept arriving."""

    outcome_code = "deadline"
    retryable = True
    remedy = "Try again later, or raise the deadline for large files on a slow line."


class Truncated(EmailgisticsError):
    """The body ended early, or nothing proves that it is complete."""

    outcome_code = "truncated"
    retryable = True
    remedy = "The partial download was discarded; download it again from the beginning."


class BadAnswer(EmailgisticsError):
    """A success whose body or headers are not as documented, maybe because of a proxy."""

    outcome_code = "bad-answer"
    retryable = True
    remedy = "Try again; if it persists, check for a proxy that changes responses, then ask Emailgistics."


class StrayLink(EmailgisticsError):
    """A response links to another host, or out of the API, where the API key must not be sent."""

    outcome_code = "stray-link"
    remedy = (
        "Set the base URL to the one that Emailgistics names for your region, and check for a proxy in between that "
        "changes host names."
    )


class ReportFailed(EmailgisticsError):
    """A report ended in `error`, was not ready in time, or expired repeatedly (concepts/result-envelope)."""

    outcome_code = "report-failed"
    retryable = True
    remedy = "Try again later; if it persists, request a shorter span of time, then ask Emailgistics."


class Aborted(EmailgisticsError):
    """This process ended the call, with `abort()`."""

    outcome_code = "aborted"
    remedy = "This is intended; a later run starts the download from the beginning."
