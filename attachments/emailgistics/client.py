"""The client for the part of Emailgistics' HTTP API that attachments need."""

import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from attachments.emailgistics.body import read_body
from attachments.emailgistics.boundary import translated
from attachments.emailgistics.deadline import Call
from attachments.emailgistics.download import Download
from attachments.emailgistics.errors import (
    DeadlineExceeded,
    EmailgisticsError,
    InvalidArgument,
    StrayLink,
    TimedOut,
)
from attachments.emailgistics.mailboxes import Mailbox, parse_mailboxes
from attachments.emailgistics.models import Attachment, parse_listing
from attachments.emailgistics.paced_calls import ACTION, OWN_LIMIT, PacedTransport, Pacer, Unpaced
from attachments.emailgistics.reports import ReceivedMessages, ReportLimits
from attachments.emailgistics.status_errors import ERROR_BODY_SECONDS, REPORTS, require_success
from attachments.emailgistics.transport import CALL, SocketTransport
from attachments.foundation import cancellation
from attachments.foundation.loopback import is_exposed

__all__ = ["Download", "EmailgisticsClient"]

LISTING = "Listing the attachments"
DOWNLOADING = "Downloading an attachment"
MAILBOXES = "Listing the mailboxes"

CONNECT_SECONDS = 30.0
"""A host that has not responded by then will not, however long the download may take."""
LISTING_BYTES = 16 * 1024 * 1024
"""Enough for thousands of attachments. A longer list or page of a report is refused, so that memory stays bounded."""

JSON = {"Content-Type": "application/json"}

_KEY = re.compile(r"[\x21-\x7e]+", re.ASCII)
_QUIET_LOGGERS = ("httpx", "httpcore", "httpcore.connection", "httpcore.http11", "httpcore.proxy")

logger = logging.getLogger(__name__)

_announced: set[str] = set()
_announcing = threading.Lock()


class EmailgisticsClient:
    """Lists and downloads attachments. One instance serves any number of threads over pooled connections.

    `base_url` such as `https://c1.emailgistics.com/api/v1`; plain HTTP for loopback hosts only. Redirects are
    never followed, and of the environment only proxies and certificates (`SSL_CERT_FILE`) count: no netrc, no
    cookies. `list_timeout`: seconds for a whole listing. `download_timeout`: seconds for each step of a
    download (connecting at most 30). `download_deadline`: seconds for all of it, from the request on; waiting
    for the pacer's turn does not count. The vendor suggests 30 and 300 (api/messages).

    Making one sets the loggers of httpx and httpcore to WARNING: they log URLs and headers, which contain ids
    and file names. Raises `InvalidArgument` for an invalid URL or key. Nothing is retried here:
    see `EmailgisticsError.retryable`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        pacer: Pacer | None = None,
        transport: httpx.BaseTransport | None = None,
        list_timeout: float = 30,
        download_timeout: float = 300,
        download_deadline: float = 1800,
        error_seconds: float = ERROR_BODY_SECONDS,
        listing_bytes: int = LISTING_BYTES,
        report_limits: ReportLimits | None = None,
    ) -> None:
        self._base_url = checked_base_url(base_url)
        self._headers = {
            "Authorization": f"Bearer {checked_key(api_key)}",
            "Accept-Encoding": "identity",
            "User-Agent": "emailgistics-attachments",
        }
        self._list_timeout = list_timeout
        self._download_timeout = download_timeout
        self._download_deadline = download_deadline
        self._error_seconds = error_seconds
        self._listing_bytes = listing_bytes
        self._report_limits = report_limits
        _quieten_loggers()
        inner = transport if transport is not None else SocketTransport(self._base_url)
        self._transport = PacedTransport(inner, pacer if pacer is not None else Unpaced())
        self._calls: set[Call] = set()
        self._calls_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"EmailgisticsClient(host={self._base_url.host!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def list_attachments(self, message_id: str) -> tuple[Attachment, ...]:
        """The message's attachments, in the vendor's order (api/messages/list-attachments)."""
        call = Call(self._list_timeout, TimedOut)
        url = self._url("messages", message_id, "attachments")
        with self._request("GET", url, LISTING, call, self._list_timeout) as response:
            return parse_listing(read_body(response, call, LISTING, max_bytes=self._listing_bytes))

    @contextmanager
    def download(self, message_id: str, attachment_id: str, *, listed_size: int | None = None) -> Iterator[Download]:
        """The attachment's bytes (api/messages/download-attachment) as a stream.

        `listed_size` is used only if nothing else can prove that the body is complete.
        """
        call = Call(self._download_deadline, DeadlineExceeded)
        url = self._url("messages", message_id, "attachments", attachment_id, "download")
        with self._request("GET", url, DOWNLOADING, call, self._download_timeout) as response:
            yield Download(response, call, DOWNLOADING, listed_size=listed_size)

    def mailboxes(self) -> tuple[Mailbox, ...]:
        """The mailboxes on the key's allowlist (api/mailboxes/list). Needs the scope `reporting`."""
        return parse_mailboxes(self._exchange("GET", "admin/mailboxes", MAILBOXES))

    def received_messages(
        self, mailbox_id: str, start: datetime, end: datetime, *, on_wait: Callable[[str], None] | None = None
    ) -> ReceivedMessages:
        """The messages that a mailbox received from `start` until before `end`, or a moment more on either side.

        `on_wait` receives a sentence when the client waits for something. Needs the scopes `reporting` and
        `messages:read`. No request is sent before the first one is taken. Raises `InvalidArgument` for moments
        without a zone and a span that ends before it starts; the rest as it is read (see `ReceivedMessages`).
        """
        return ReceivedMessages(self._report, mailbox_id, start, end, on_wait, self._report_limits)

    def abort(self) -> None:
        """End every call in progress, from any thread, even if its response has not begun.

        Each raises `Aborted` where it waits. Later calls are not affected.
        """
        with self._calls_lock:
            calls = tuple(self._calls)
        for call in calls:
            call.abort()

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def _report(self, method: str, href: str, action: str, content: bytes | None = None) -> bytes:
        return self._exchange(method, href, action, content, allowed_statuses=REPORTS)

    def _exchange(
        self,
        method: str,
        href: str,
        action: str,
        content: bytes | None = None,
        allowed_statuses: Collection[int] = (httpx.codes.OK,),
    ) -> bytes:
        """The whole body of a small response. `href` is relative to the base URL, or a link from the vendor."""
        target = self._resolve_link(href, action)
        call = Call(self._list_timeout, TimedOut)
        with self._request(
            method, str(target), action, call, self._list_timeout, content, allowed_statuses
        ) as response:
            return read_body(response, call, action, max_bytes=self._listing_bytes)

    @contextmanager
    def _request(
        self,
        method: str,
        url: str,
        action: str,
        call: Call,
        timeout: float,
        content: bytes | None = None,
        allowed_statuses: Collection[int] = (httpx.codes.OK,),
    ) -> Iterator[httpx.Response]:
        """The successful response to a request, with its body unread; closed on exit."""
        with self._calls_lock:
            self._calls.add(call)
        try:
            with cancellation.on_cancel(call.abort):
                with translated(action, call):
                    request = httpx.Request(
                        method,
                        url,
                        headers=self._headers if content is None else {**self._headers, **JSON},
                        content=content,
                        extensions={
                            CALL: call,
                            ACTION: action,
                            # The account's limit of three report runs must not pause the whole fleet.
                            OWN_LIMIT: method == "POST",
                            "timeout": {
                                "connect": min(timeout, CONNECT_SECONDS),
                                "read": timeout,
                                "write": timeout,
                                "pool": call.seconds,
                            },
                        },
                    )
                response = self._transport.handle_request(request)
                try:
                    _notice_deprecation(response, action)
                    require_success(response, call, action, allowed_statuses, error_seconds=self._error_seconds)
                    yield response
                finally:
                    _close_silently(response, call, action)
        finally:
            call.use(None)
            with self._calls_lock:
                self._calls.discard(call)

    def _resolve_link(self, href: str, action: str) -> httpx.URL:
        """The target of a link. Raises `StrayLink` unless it is below the base URL, because the key is sent with the
        call."""
        base = httpx.URL(f"{str(self._base_url).rstrip('/')}/")
        try:
            target = base.join(href)
        except httpx.InvalidURL:
            raise StrayLink(f"{action}: the response contains a link that is not a valid URL") from None
        if (target.scheme, target.host, target.port) != (base.scheme, base.host, base.port) or target.userinfo:
            raise StrayLink(f"{action}: the response contains a link to another host, which is not followed")
        # `path` is decoded, because a server may decode an encoded ".." too.
        if not target.path.startswith(base.path) or ".." in re.split(r"[/\\]", target.path):
            raise StrayLink(f"{action}: the response contains a link out of the API, which is not followed")
        return target

    def _url(self, *segments: str) -> str:
        return "/".join((str(self._base_url).rstrip("/"), *map(_one_segment, segments)))


def checked_base_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL:
        raise InvalidArgument("The base URL is not a valid URL") from None
    if not url.host or url.userinfo or url.query or url.fragment:
        raise InvalidArgument("The base URL must name a host and perhaps a path, and nothing else")
    if url.scheme in ("http", "https") and not is_exposed(url.scheme, url.host):
        return url
    raise InvalidArgument("The base URL must start with https:// (plain HTTP is allowed only for this machine)")


def checked_key(api_key: str) -> str:
    if not api_key:
        raise InvalidArgument("The API key is empty")
    if not _KEY.fullmatch(api_key):
        raise InvalidArgument("The API key contains blanks, line ends or characters that no key has")
    return api_key


def _one_segment(segment: str) -> str:
    """The text quoted as one path segment, without separators and dot segments."""
    if not segment:
        raise InvalidArgument("An id is empty")
    try:
        quoted = quote(segment, safe="")
    except UnicodeEncodeError:
        raise InvalidArgument("An id contains broken Unicode") from None
    # RFC 3986, section 5.2.4: clients and servers remove "." and "..".
    return quoted.replace(".", "%2E") if segment in {".", ".."} else quoted


def _close_silently(response: httpx.Response, call: Call, action: str) -> None:
    """Ignore errors on closing: the body has been read, or its error was raised."""
    with suppress(EmailgisticsError), translated(action, call):
        response.close()


def _quieten_loggers() -> None:
    for name in _QUIET_LOGGERS:
        noisy = logging.getLogger(name)
        noisy.setLevel(max(noisy.level, logging.WARNING))


def _notice_deprecation(response: httpx.Response, action: str) -> None:
    """Log once per process that an endpoint is deprecated (getting-started/versioning)."""
    if "deprecation" not in response.headers:
        return
    with _announcing:
        first = action not in _announced
        _announced.add(action)
    if first:
        logger.warning("Emailgistics has announced that the endpoint for %r is deprecated", action)
