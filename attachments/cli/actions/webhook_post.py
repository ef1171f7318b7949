"""Posts a webhook like Emailgistics."""

import json
from datetime import UTC, datetime

import httpx

from attachments.cli.command_boundary import CommandFailed
from attachments.foundation.certificate_problem import certificate_problem
from attachments.foundation.connection_settings import settings_problem
from attachments.foundation.loopback import bypass_proxies, is_exposed

TIMEOUT = 100.0  # seconds, as the vendor's (webhooks/delivery)
MISSING_MESSAGE = (
    "The receiver requires a secret, and none was sent. Set EMAILGISTICS_WEBHOOK_SECRET here to the receiver's secret."
)
REFUSED_MESSAGE = (
    "The receiver refuses the secret that was sent. Set EMAILGISTICS_WEBHOOK_SECRET here to "
    "the receiver's secret. If that was changed while the receiver was running, restart it."
)
EXPOSED_MESSAGE = (
    "Nothing was sent: with plain HTTP, anyone on the network could read the webhook's secret. Use https://, or "
    "run this on the receiver's own machine with http://127.0.0.1."
)


def post_webhook(url: str, secret: str | None, message_id: str, mailbox: str | None) -> str:
    """Post one `received` event and return the receiver's message.

    The fields are the vendor's (webhooks/request-payload) without `received` and `hasAttachments`, which are unknown
    here and would be taken as facts. Raises `CommandFailed` for any response other than success.
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
        raise CommandFailed(EXPOSED_MESSAGE)
    bypass_proxies(url)
    try:
        answer = httpx.post(url, content=json.dumps(payload), headers=headers, timeout=TIMEOUT)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise CommandFailed(
            " ".join(settings_problem() or ())
            or f"{url} is not a valid URL. Write it like http://127.0.0.1:8080/webhooks/default."
        ) from None
    except httpx.LocalProtocolError:  # raised before sending; only the secret can cause it
        raise CommandFailed(
            "EMAILGISTICS_WEBHOOK_SECRET contains a line break or another character that is not allowed in an HTTP "
            "header. Set it to the receiver's secret, in one line."
        ) from None
    except httpx.HTTPError as error:
        if (problem := certificate_problem(error)) is not None:
            raise CommandFailed(f"{url}: {' '.join(problem)}") from None
        raise CommandFailed(
            f"No receiver responds at {url} ({type(error).__name__}). Check that `attachments receive` is running."
        ) from None
    except (OSError, ValueError, ImportError) as error:  # raised before sending, because of the environment
        raise CommandFailed(
            " ".join(settings_problem() or ())
            or (
                f"The proxy that the environment sets needs a package that is not installed ({type(error).__name__}). "
                "Set an HTTP proxy in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or install `httpx[socks]`."
            )
        ) from None
    try:
        envelope = answer.json()
        word, message = envelope["status"], envelope["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CommandFailed(
            f"The server at {url} is not a receiver (HTTP {answer.status_code}). Check the address."
        ) from None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        # The receiver's own text is for the administrator of Emailgistics.
        raise CommandFailed(f"HTTP 401: {REFUSED_MESSAGE if secret else MISSING_MESSAGE}")
    if answer.status_code != httpx.codes.OK or word != "success":
        raise CommandFailed(f"HTTP {answer.status_code}: {message}")
    return str(message)


def _is_exposed(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:  # reported on posting
        return False
    return is_exposed(url.scheme, url.host)
