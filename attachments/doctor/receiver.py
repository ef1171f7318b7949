"""Checks on the receiver's machine: the secret, the receiver itself, and its inbox."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import RESPONSE_TIMEOUT, NoResponse, call_with_timeout
from attachments.foundation.certificate_problem import certificate_problem
from attachments.foundation.loopback import bypass_proxies
from attachments.foundation.numerals import counted
from attachments.receiver.inbox import InboxUnavailable
from attachments.receiver.inbox_reader import read_depth
from attachments.receiver.monitoring import DEFAULT_MONITORING_ADDRESS
from attachments.receiver.secrets import (
    SHORT_MESSAGE,
    SHORT_PART_MESSAGE,
    SHORT_PART_REMEDY,
    SHORT_REMEDY,
    VARIABLE,
    has_short_part,
    is_short,
)

SLOW_AFTER = 600.0  # seconds that a delivery waits before it is a warning
STUCK_AFTER = 3600.0
WEBHOOKS = "/webhooks"


def check_receiver(
    secrets: Sequence[str], url: str | None, monitoring: tuple[str, int] | None = None
) -> Iterator[Finding]:
    """Check that webhooks are accepted, and only with the secret: by the receiver at `url`, or by the settings here.

    `monitoring`: host and port where the receiver serves `/ready`, if that differs from the webhooks' address.
    """
    if has_short_part(secrets):
        yield failed("receiver", f"{SHORT_PART_MESSAGE} `attachments receive` does not start.", SHORT_PART_REMEDY)
    elif is_short(secrets):
        yield warning("receiver", SHORT_MESSAGE, SHORT_REMEDY)
    if url is None:
        if not secrets:
            yield failed(
                "receiver",
                f"{VARIABLE} is not set here, so `attachments receive` does not start.",
                "Set it to the webhook's secret in Emailgistics Admin; or give --receiver URL if it runs elsewhere.",
            )
        elif not (has_short_part(secrets) or is_short(secrets)):
            yield ok("receiver", f"{VARIABLE} is set here.")
        return
    try:
        yield from call_with_timeout(RESPONSE_TIMEOUT, lambda: tuple(_check_endpoint(url, monitoring)))
    except NoResponse:
        yield failed("receiver", "It did not respond in time.", "Check its log, and the proxy in front of it.")
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        yield failed("receiver", "--receiver is not a valid URL.", "Write it like http://127.0.0.1:8080.")
    except httpx.HTTPError as error:
        if (problem := certificate_problem(error)) is not None:
            yield failed("receiver", *problem)
            return
        text = f"Nothing responds at the address of --receiver ({type(error).__name__})."
        yield failed("receiver", text, "Start `attachments receive` there, or correct the address.")


def check_inbox(path: Path) -> Iterator[Finding]:
    """Check how many deliveries wait in the inbox, if it is on this machine."""
    try:
        depth = call_with_timeout(RESPONSE_TIMEOUT, lambda: read_depth(path))
    except NoResponse:
        yield failed("inbox", "It could not be read in time.", "Check its disk.")
        return
    except InboxUnavailable as error:
        yield failed(
            "inbox", str(error), "Run this as the receiver's user; if the file is damaged, move it away and keep it."
        )
        return
    if depth is None:
        return
    waiting = counted(depth.entries, "delivery waits", "deliveries wait")
    text = f"{waiting}, the oldest for {depth.oldest_seconds:.0f} s."
    remedy = "Check in the log of `attachments receive` that it is running and reaches Prefect."
    if not depth.entries:
        yield ok("inbox", "Nothing waits in it.")
    elif depth.oldest_seconds > STUCK_AFTER:
        yield failed("inbox", text, remedy)
    elif depth.oldest_seconds > SLOW_AFTER:
        yield warning("inbox", text, remedy)
    else:
        yield ok("inbox", text)


def _check_endpoint(url: str, monitoring: tuple[str, int] | None) -> Iterator[Finding]:
    base = url.partition(WEBHOOKS)[0].rstrip("/")
    bypass_proxies(base)
    with httpx.Client(timeout=RESPONSE_TIMEOUT) as client:
        # Not a valid delivery: a receiver without a secret rejects it for its content.
        refusal = client.post(f"{base}{WEBHOOKS}/default", json={})
        if refusal.status_code == httpx.codes.UNAUTHORIZED:
            yield ok("receiver", "It refuses a webhook without the secret.")
        elif refusal.status_code == httpx.codes.BAD_REQUEST:
            text = "It accepts webhooks without a secret, from anyone."
            yield failed("receiver", text, f"Set {VARIABLE} and start it without --insecure.")
        else:
            text = f"A webhook without the secret gets {refusal.status_code}, where it should get 401."
            yield failed(
                "receiver", text, "Check that this is the receiver's address, and that the proxy forwards /webhooks/."
            )
            return
        status = _readiness(client, base, monitoring)
    if status == httpx.codes.OK:
        yield ok("ready", "It would accept a delivery now.")
    elif status == httpx.codes.SERVICE_UNAVAILABLE:
        text = "It would refuse a delivery now: its inbox cannot be written."
        yield failed("ready", text, "Free space on the disk of its inbox, or repair the disk.")
    else:
        text = f"It is unknown whether it would accept a delivery (/ready responds {status})."
        yield warning(
            "ready",
            text,
            "The page should not be public. Run this on the receiver's own machine, with --monitoring-address if the "
            "receiver uses one.",
        )


def _readiness(client: httpx.Client, base: str, monitoring: tuple[str, int] | None) -> int:
    """The status of `/ready` at the webhooks' address, or at the separate monitoring address."""
    status: int = httpx.codes.NOT_FOUND
    if monitoring is None:
        status = client.get(f"{base}/ready").status_code
        if status in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE) or not base.startswith("https:"):
            return status
    host, port = monitoring or DEFAULT_MONITORING_ADDRESS
    apart = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    bypass_proxies(apart)
    try:
        ready = client.get(f"{apart}/ready")
        is_ours = ready.json()["status"] in ("ok", "error")
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        is_ours = False
    return ready.status_code if is_ours else status
