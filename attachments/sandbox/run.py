"""Runs the sandbox until it is stopped, and delivers its messages."""

import asyncio
import hashlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import SplitResult

import aiohttp

from attachments.sandbox.account import Account
from attachments.sandbox.bodies import Spool
from attachments.sandbox.delivery import Delivery, Posting, deliver, require_private
from attachments.sandbox.fields import BadFieldError
from attachments.sandbox.keys import Key, KeyRing
from attachments.sandbox.mail import read_mail
from attachments.sandbox.mail_files import FORMATS
from attachments.sandbox.messages import Messages
from attachments.sandbox.output import say
from attachments.sandbox.payload import webhook_payload
from attachments.sandbox.server import serving
from attachments.sandbox.window import SlidingWindow

SECRET = "EMAILGISTICS_WEBHOOK_SECRET"  # noqa: S105  the variable's name
_CONNECT_SECONDS = 0.25
"""Seconds between attempts to connect to a receiver that does not listen yet."""
_ADVICE = {
    HTTPStatus.UNAUTHORIZED: f"401 means that the receiver has another secret: set {SECRET} to the receiver's.",
    HTTPStatus.NOT_FOUND: "404 means that the receiver does not know the path of --deliver-to: check it.",
}


class _CannotStart(Exception):
    """The text names the option or variable that is wrong."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `attachments.sandbox.command` has read from the command line."""

    mail: Path | None
    host: str
    port: int
    key: str
    limit: int | None
    window: float
    deliver_to: SplitResult | None
    port_file: Path | None


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Report an operating system error with the option or variable that caused it."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or type(error).__name__
        raise _CannotStart(f"{what} ({reason})") from None


def run(options: Options) -> int:
    """Runs the sandbox until SIGTERM (0) or Ctrl-C (130); 1 when it could not start."""
    spool = Spool()
    try:
        secret = _secret()
        if options.deliver_to and secret:
            require_private(options.deliver_to.geturl())
        return asyncio.run(_run(options, secret, spool))
    except BadFieldError as error:
        say(f"sandbox: {error}; check --deliver-to", file=sys.stderr)
        return 1
    except (_CannotStart, OSError) as error:
        say(f"sandbox: {error}", file=sys.stderr)
        return 1
    finally:
        spool.close()


def _secret() -> str:
    """The whole secret from the environment, because it may contain a comma.

    Raises _CannotStart when its file cannot be read, or no header can carry it.
    """
    text = os.environ.get(SECRET) or ""
    if not text.strip() and (file := os.environ.get(f"{SECRET}_FILE")):
        with _named(f"{SECRET}_FILE: cannot read {file}"):
            text = Path(file).read_text("utf-8", "surrogateescape")
    if not text.strip().isprintable():
        raise _CannotStart(
            f"a secret cannot hold a line break or another control character: check {SECRET} and {SECRET}_FILE"
        )
    return text.strip()


async def _run(options: Options, secret: str, spool: Spool) -> int:
    stop: asyncio.Future[int] = asyncio.Future()
    for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 128 + signal.SIGINT)):
        asyncio.get_running_loop().add_signal_handler(number, _stop, stop, status)
    account = Account(KeyRing([Key(options.key)]), SlidingWindow(options.limit, options.window), Messages())
    if (mail := options.mail) is not None:
        with _named(f"--mail: cannot read {mail}"):
            account.messages.add(await asyncio.to_thread(lambda: list(read_mail(mail, spool))))
        if not len(account.messages):
            say(f"no mail found in {options.mail}; the sandbox reads {FORMATS}")
    async with AsyncExitStack() as until_end:
        with _named(f"cannot listen on {options.host}, port {options.port}: choose others with --host and --port"):
            address = await until_end.enter_async_context(serving(account, options.host, options.port))
        count = len(account.messages)
        say(f"Emailgistics sandbox: {address}/api/v1 ({count} message{'' if count == 1 else 's'})")
        if options.port_file is not None:
            with _named(f"--port-file: cannot write {options.port_file}"):
                _write_whole(options.port_file, address.rpartition(":")[2])
        delivering = asyncio.create_task(_deliver_all(account, options.deliver_to, secret))
        status = await stop
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
    return status


def _stop(stop: asyncio.Future[int], status: int) -> None:
    if not stop.done():
        stop.set_result(status)


async def _deliver_all(account: Account, url: SplitResult | None, secret: str) -> None:
    """Deliver every message once, in order; prints each by its key, without names."""
    if url is None:
        return
    await _wait_for_listener(url)
    deliveries: list[Delivery] = []
    async with aiohttp.ClientSession() as session:
        for message in list(account.messages):
            posting = Posting(webhook_payload(message), url.geturl(), secret)
            delivery = posting.begin()
            deliveries.append(delivery)
            account.deliveries.append(delivery)
            await deliver(session, posting, delivery)
            key = hashlib.sha256(message.id.encode()).hexdigest()[:32]
            last, count = delivery.attempts[-1], len(delivery.attempts)
            say(
                f"message {key}: {delivery.outcome} after {count} attempt{'s' if count > 1 else ''},"
                f" last response {last.status or last.error}"
            )
    say(_summary(deliveries))


async def _wait_for_listener(url: SplitResult) -> None:
    """Wait until the receiver accepts connections."""
    host, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
    is_announced = False
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            if not is_announced:
                say(f"waiting for the receiver at {host}:{port}")
                is_announced = True
            await asyncio.sleep(_CONNECT_SECONDS)
        else:
            writer.close()
            return


def _summary(deliveries: Sequence[Delivery]) -> str:
    """The summary: how many were accepted, and what to do about the others."""
    outcomes = Counter(delivery.outcome for delivery in deliveries)
    text = f"delivered {outcomes['success']} of {len(deliveries)} message{'' if len(deliveries) == 1 else 's'}"
    if outcomes["success"] == len(deliveries):
        return text
    refused = (f"{outcomes['error']} rejected (error)", f"{outcomes['failed']} failed")
    statuses = {delivery.attempts[-1].status for delivery in deliveries}
    advice = [text for status, text in _ADVICE.items() if status in statuses]
    others = ", ".join(part for part in refused if not part.startswith("0 "))
    return " ".join([f"{text}; {others}.", *advice, "To deliver again, restart the sandbox."])


def _write_whole(path: Path, text: str) -> None:
    """Write the file atomically."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text + "\n")
    beside.replace(path)
