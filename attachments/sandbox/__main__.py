"""`python -m attachments.sandbox`: the stand-in Emailgistics as a process of its own."""

import argparse
import asyncio
import hashlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from attachments.sandbox.account import Account
from attachments.sandbox.bodies import Spool
from attachments.sandbox.delivery import Posting, deliver
from attachments.sandbox.keys import Key, KeyRing
from attachments.sandbox.mail import read_mail
from attachments.sandbox.messages import Messages
from attachments.sandbox.payload import webhook_payload
from attachments.sandbox.server import serving
from attachments.sandbox.window import SlidingWindow


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sandbox until SIGTERM or SIGINT; 0 when it ended as told, 1 when it could not start."""
    options = _parser().parse_args(argv)
    spool = Spool()
    try:
        return asyncio.run(_run(options, spool))
    except OSError as error:
        print(f"sandbox: {error}; check --mail, --host, --port and --port-file", file=sys.stderr)
        return 1
    finally:
        spool.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attachments sandbox", description="A stand-in Emailgistics: its API, and a sender of webhooks."
    )
    parser.add_argument("--mail", type=Path, metavar="PATH", help="folder of .eml files, one .eml file, or an mbox")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--key", default="sandbox-key", help="API key with every scope and mailbox")
    parser.add_argument("--limit", type=_limit, default=100, help="calls a window for the account, or 'off'")
    parser.add_argument("--window", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--deliver-to", metavar="URL", help="deliver a webhook for every message of --mail once")
    parser.add_argument("--secret", help="the webhook's secret")
    parser.add_argument("--port-file", type=Path, metavar="PATH", help="write the port here once listening")
    return parser


def _limit(text: str) -> int | None:
    return None if text == "off" else int(text)


async def _run(options: argparse.Namespace, spool: Spool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    account = Account(KeyRing([Key(options.key)]), SlidingWindow(options.limit, options.window), Messages())
    if options.mail is not None:
        account.messages.add(await asyncio.to_thread(lambda: list(read_mail(options.mail, spool))))
    async with serving(account, options.host, options.port) as address:
        print(f"Emailgistics sandbox: {address}/api/v1 ({len(account.messages)} messages)", flush=True)
        if options.port_file is not None:
            _write_whole(options.port_file, address.rpartition(":")[2])
        delivering = asyncio.create_task(_deliver_all(account, options))
        await stop.wait()
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
    return 0


async def _deliver_all(account: Account, options: argparse.Namespace) -> None:
    """Delivers every message once, one after the other; prints each by its key, without names."""
    if options.deliver_to is None:
        return
    async with aiohttp.ClientSession() as session:
        for message in list(account.messages):
            posting = Posting(webhook_payload(message), options.deliver_to, options.secret)
            delivery = posting.begin()
            account.deliveries.append(delivery)
            await deliver(session, posting, delivery)
            key = hashlib.sha256(message.id.encode()).hexdigest()[:32]
            last = delivery.attempts[-1]
            print(
                f"message {key}: {delivery.outcome} after {len(delivery.attempts)} attempts,"
                f" last answer {last.status or last.error}",
                flush=True,
            )
    print(f"delivered {len(account.messages)} messages", flush=True)


def _write_whole(path: Path, text: str) -> None:
    """Writes the file so that nobody ever reads a part of it."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text + "\n")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
