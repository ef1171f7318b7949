"""What the doctor looks at on the receiver's machine: the secret, the receiver itself, and its inbox."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import PATIENCE, NoResponse, call_with_timeout
from attachments.foundation.certificate_problem import certificate_problem
from attachments.foundation.loopback import bypass_proxies
from attachments.foundation.numerals import counted
from attachments.receiver.inbox import InboxUnavailable
from attachments.receiver.inbox_reader import read_depth
from attachments.receiver.monitoring import MONITORING_ADDRESS
from attachments.receiver.secrets import LONGER, LONGER_PARTS, SHORT_PART, TOO_SHORT, VARIABLE, has_short_part, is_short

SLOW = 600.0  # seconds that a delivery waits, after which somebody should look
STUCK = 3600.0
WEBHOOKS = "/webhooks"


def look_at_receiver(
    secrets: Sequence[str], url: str | None, monitoring: tuple[str, int] | None = None
) -> Iterator[Finding]:
    """Whether webhooks are taken, and only with the secret: by the receiver at `url`, or by what is set here.

    `monitoring`: host and port where the receiver serves `/ready`, when it does so apart from the webhooks.
    """
    if has_short_part(secrets):
        yield failed("receiver", f"{SHORT_PART} `attachments receive` does not start.", LONGER_PARTS)
    elif is_short(secrets):
        yield warning("receiver", TOO_SHORT, LONGER)
    if url is None:
        if not secrets:
            yield failed(
                "receiver",
                f"{VARIABLE} is not set here, so `attachments receive` does not start.",
                "Set it to the webhook's secret in Emailgistics Admin; or say --receiver URL when it runs elsewhere.",
            )
        elif not (has_short_part(secrets) or is_short(secrets)):
            yield ok("receiver", f"{VARIABLE} is set here.")
        return
    try:
        yield from call_with_timeout(PATIENCE, lambda: tuple(_look_at(url, monitoring)))
    except NoResponse:
        yield failed("receiver", "It does not answer in time.", "Look at its log, and at what stands before it.")
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        yield failed("receiver", "--receiver is no URL.", "It looks like http://127.0.0.1:8080.")
    except httpx.HTTPError as error:
        if (problem := certificate_problem(error)) is not None:
            yield failed("receiver", *problem)
            return
        text = f"Nothing answers at the address of --receiver ({type(error).__name__})."
        yield failed("receiver", text, "Start `attachments receive` there, or correct the address.")


def look_at_inbox(path: Path) -> Iterator[Finding]:
    """How much waits in the inbox for Prefect, when it is on this machine."""
    try:
        depth = call_with_timeout(PATIENCE, lambda: read_depth(path))
    except NoResponse:
        yield failed("inbox", "It cannot be read in time.", "Look at its disk.")
        return
    except InboxUnavailable as error:
        yield failed(
            "inbox", str(error), "Look as the receiver's user; if the file is damaged, move it away and keep it."
        )
        return
    if depth is None:
        return
    waiting = counted(depth.entries, "delivery waits", "deliveries wait")
    text = f"{waiting}, the oldest for {depth.oldest_seconds:.0f} s."
    remedy = "Look at the log of `attachments receive`: is it running, and does it reach Prefect?"
    if not depth.entries:
        yield ok("inbox", "Nothing waits in it.")
    elif depth.oldest_seconds > STUCK:
        yield failed("inbox", text, remedy)
    elif depth.oldest_seconds > SLOW:
        yield warning("inbox", text, remedy)
    else:
        yield ok("inbox", text)


def _look_at(url: str, monitoring: tuple[str, int] | None) -> Iterator[Finding]:
    base = url.partition(WEBHOOKS)[0].rstrip("/")
    bypass_proxies(base)
    with httpx.Client(timeout=PATIENCE) as client:
        # No delivery, should it be taken: then it is refused for its content.
        refusal = client.post(f"{base}{WEBHOOKS}/default", json={})
        if refusal.status_code == httpx.codes.UNAUTHORIZED:
            yield ok("receiver", "It refuses a webhook without the secret.")
        elif refusal.status_code == httpx.codes.BAD_REQUEST:
            text = "It takes webhooks without a secret, from anybody."
            yield failed("receiver", text, f"Set {VARIABLE} and start it without --insecure.")
        else:
            text = f"A webhook without the secret gets {refusal.status_code}, where it should get 401."
            yield failed("receiver", text, "Is this the receiver's address, and does the proxy pass on /webhooks/?")
            return
        status = _readiness(client, base, monitoring)
    if status == httpx.codes.OK:
        yield ok("ready", "It would take a delivery now.")
    elif status == httpx.codes.SERVICE_UNAVAILABLE:
        text = "It would refuse a delivery now: its inbox cannot be written."
        yield failed("ready", text, "Free or mend the disk of its inbox.")
    else:
        text = f"Whether it would take a delivery cannot be seen (/ready answers {status})."
        yield warning(
            "ready",
            text,
            "The page is not public, rightly: ask on the receiver's own machine, with --monitoring-address if the "
            "receiver was given one.",
        )


def _readiness(client: httpx.Client, base: str, monitoring: tuple[str, int] | None) -> int:
    """The status of `/ready`: where webhooks go, or where the receiver serves it apart from them."""
    status: int = httpx.codes.NOT_FOUND
    if monitoring is None:
        status = client.get(f"{base}/ready").status_code
        if status in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE) or not base.startswith("https:"):
            return status
    host, port = monitoring or MONITORING_ADDRESS
    apart = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    bypass_proxies(apart)
    try:
        ready = client.get(f"{apart}/ready")
        is_ours = ready.json()["status"] in ("ok", "error")
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        is_ours = False
    return ready.status_code if is_ours else status
