"""Posts a webhook as Emailgistics does."""

import json
from datetime import UTC, datetime

import httpx

from attachments.cli.command_boundary import CommandFailed
from attachments.foundation.certificate_problem import certificate_problem
from attachments.foundation.connection_settings import settings_problem
from attachments.foundation.loopback import bypass_proxies, is_exposed

TIMEOUT = 100.0  # seconds, as the vendor's (webhooks/delivery)
UNAUTHENTICATED = (
    "The receiver wants a secret, and none was sent. Set EMAILGISTICS_WEBHOOK_SECRET here to the receiver's."
)
REFUSED = (
    "The receiver refuses the secret that was sent. Set EMAILGISTICS_WEBHOOK_SECRET here to the receiver's. If the "
    "receiver's has changed since it was started, restart it."
)
EXPOSED = (
    "Nothing was sent: by plain HTTP, anyone on the way to that host could read the webhook's secret. Use https://, or "
    "run this on the receiver's own machine with http://127.0.0.1."
)


def post_webhook(url: str, secret: str | None, message_id: str, mailbox: str | None) -> str:
    """Post one `received` event and return the receiver's message.

    The fields are the vendor's (webhooks/request-payload), but for `received` and `hasAttachments`: we know neither
    when the message came in nor what is on it, and what a webhook says counts. Raises `CommandFailed` for any other
    answer than success.
    """
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    payload = {
        "id": message_id,
        "event": "received",
        "timestamp": moment,
        "mailbox": mailbox,
    }
    headers = {b"Content-Type": b"application/json"}
    if secret:
        headers[b"Authorization"] = f"Bearer {secret}".encode("utf-8", "surrogateescape")
    if secret and _is_exposed(url):
        raise CommandFailed(EXPOSED)
    bypass_proxies(url)
    try:
        answer = httpx.post(url, content=json.dumps(payload), headers=headers, timeout=TIMEOUT)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise CommandFailed(
            " ".join(settings_problem() or ())
            or f"{url} is no URL. It looks like http://127.0.0.1:8080/webhooks/default."
        ) from None
    except httpx.LocalProtocolError:  # before anything is sent; nothing else of what we send could be refused
        raise CommandFailed(
            "EMAILGISTICS_WEBHOOK_SECRET holds a line break or another character that no HTTP header may hold. Set it "
            "to the receiver's, in one line."
        ) from None
    except httpx.HTTPError as error:
        if (problem := certificate_problem(error)) is not None:
            raise CommandFailed(f"{url}: {' '.join(problem)}") from None
        raise CommandFailed(
            f"No receiver answers at {url} ({type(error).__name__}). Is `attachments receive` running?"
        ) from None
    except (OSError, ValueError, ImportError) as error:  # before anything is sent, for what the environment names
        raise CommandFailed(
            " ".join(settings_problem() or ())
            or f"The proxy that the environment names needs a package that is not installed ({type(error).__name__}). "
            "Name an HTTP proxy in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or install `httpx[socks]`."
        ) from None
    try:
        envelope = answer.json()
        word, message = envelope["status"], envelope["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CommandFailed(
            f"What answers at {url} is no receiver (HTTP {answer.status_code}). Check the address."
        ) from None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        # The receiver's own words are for who looks after the webhook in Emailgistics Admin.
        raise CommandFailed(f"HTTP 401: {REFUSED if secret else UNAUTHENTICATED}")
    if answer.status_code != httpx.codes.OK or word != "success":
        raise CommandFailed(f"HTTP {answer.status_code}: {message}")
    return str(message)


def _is_exposed(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:  # posting says so
        return False
    return is_exposed(url.scheme, url.host)
