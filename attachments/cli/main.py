"""`attachments …`: one small command for each thing that an operator does."""

import argparse
import asyncio
import itertools
import json
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from attachments.cli.command_boundary import FAILED, INTERRUPTED, CommandFailed, import_prefect, run_command
from attachments.cli.secret_files import read_secret_files
from attachments.foundation.loopback import bypass_proxies
from attachments.foundation.message_id import mistake_in, normalized
from attachments.foundation.terminal_text import LogFormatter, bounded, printable, say, say_json

if TYPE_CHECKING:
    from attachments.doctor import Finding

DEFAULT_INBOX = "~/.local/state/emailgistics-attachments/inbox.sqlite"
FINISHING = (["setup"], ["receive"], ["sandbox"], ["decrypt"])
"""Commands that go on when their output is not read any more: they change something, or serve others."""
HIGHEST_PORT = 65535
MOST_AT_ONCE = 64
MESSAGE = "the message's id, its key of 32 hex digits, or a path or address with the key in it"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it did what it says, 1 when it could not, 2 when it was called wrongly.

    130 after Ctrl-C, 141 when nobody reads what it prints.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    finishes = arguments[:1] in FINISHING or "--clean" in arguments
    is_process = argv is None
    status = run_command(lambda: _run(arguments, is_process=is_process), finishes=finishes)
    if is_process and status == INTERRUPTED:
        os._exit(status)  # a thread that waits for a store or a server would hold the process up
    return status


def _run(arguments: Sequence[str], *, is_process: bool) -> int:
    if is_process and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `attachments.cli.console`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    bypass_proxies()
    if arguments[:1] == ["sandbox"]:
        return _sandbox(list(arguments[1:]))
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    if command not in {_check, _demo}:
        read_secret_files(os.environ)
    if command in {_setup, _receive, _preview, _doctor, _status}:
        import_prefect()
    return command(options)


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names only: what `--cl` means may change with the next option, and it removes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Quotes what it was given, which may have been pasted."""
        super().error(bounded(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="attachments", description="Mail attachments, from Emailgistics into your storage.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    setup = commands.add_parser(
        "setup", help="make blocks, limits, work pool and deployments in Prefect; safe to repeat"
    )
    setup.add_argument(
        "--schedules-off",
        action="store_true",
        help="switch no schedule on (default: the hourly reconciliation, once the API key has the scope reporting)",
    )
    setup.set_defaults(command=_setup)

    receive = commands.add_parser("receive", help="take webhooks from Emailgistics")
    receive.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    receive.add_argument(
        "--port", type=_port, default=8080, help="port to listen on; 0 picks one (default: %(default)s)"
    )
    receive.add_argument("--inbox", type=_path, help=f"the inbox file (default: ATTACHMENTS_INBOX or {DEFAULT_INBOX})")
    receive.add_argument("--insecure", action="store_true", help="take webhooks without a secret, from anybody")
    receive.add_argument("--tls-certificate", type=_path, metavar="PEM", help="serve HTTPS with this certificate")
    receive.add_argument("--tls-key", type=_path, metavar="PEM", help="the certificate's key")
    receive.add_argument(
        "--monitoring-address",
        type=_address,
        metavar="HOST:PORT",
        help="serve /ready and /metrics there, by plain HTTP, and not to those who post webhooks (default: "
        "127.0.0.1:8081 with --tls-certificate, else the address of the webhooks)",
    )
    receive.add_argument(
        "--wait",
        type=_wait,
        default=0.0,
        metavar="SECONDS",
        help="hold each answer until the run has ended, for so long at most: Emailgistics then owns the retry "
        "(up to 95; default: answer at once)",
    )
    receive.add_argument(
        "--answers",
        type=_path,
        metavar="FILE",
        help="YAML or JSON: for each deployment the actions to ask Emailgistics for, and how long to wait",
    )
    receive.add_argument(
        "--list-all",
        action="store_true",
        help="list also messages whose webhook says hasAttachments: false, which does not count inline parts such as a "
        "PDF in the text; costs a call to Emailgistics for each",
    )
    receive.set_defaults(command=_receive)

    trigger = commands.add_parser("trigger", help="send a webhook as Emailgistics would, to try an installation")
    trigger.add_argument("message_id", type=_message_id, help=MESSAGE)
    trigger.add_argument(
        "--url", default="http://127.0.0.1:8080/webhooks/default", help="the receiver (default: %(default)s)"
    )
    trigger.add_argument("--mailbox", help="the shared mailbox's address")
    trigger.set_defaults(command=_trigger)

    locate = commands.add_parser("locate", help="say where a message's files are")
    locate.add_argument("message_id", type=_message_id, help=MESSAGE)
    locate.add_argument("--json", action="store_true", help="print the manifest as JSON")
    locate.set_defaults(command=_locate)

    _add_views(commands)

    verify = commands.add_parser("verify", help="read what is stored again, and compare it with what is recorded")
    verify.add_argument("message_id", type=_message_id, nargs="?", help=f"{MESSAGE} (default: all messages)")
    verify.add_argument(
        "--identity", type=_path, metavar="FILE", help="an age identity: decrypt as well, and compare what comes out"
    )
    verify.add_argument("--clean", action="store_true", help="remove what dead writers have left behind")
    verify.add_argument(
        "--older-than",
        type=_hours,
        default=timedelta(hours=24),
        metavar="HOURS",
        help="what counts as left behind; a living writer looks the same: more than any download takes (default: 24)",
    )
    verify.add_argument("--at-once", type=_count, default=4, help="messages at a time (default: %(default)s)")
    verify.set_defaults(command=_verify)

    decrypt = commands.add_parser("decrypt", help="decrypt a message's attachments into a folder")
    decrypt.add_argument("message_id", type=_message_id, help=MESSAGE)
    decrypt.add_argument("--identity", type=_path, metavar="FILE", required=True, help="the age identity's file")
    decrypt.add_argument("--to", type=_path, metavar="FOLDER", required=True, help="where the files go")
    decrypt.set_defaults(command=_decrypt)

    demo = commands.add_parser("demo", help="run the whole product on this machine, with invented mail")
    demo.add_argument("--folder", type=_path, default=Path("build/demo"), help="where all goes (default: %(default)s)")
    demo.add_argument("--keep", action="store_true", help="leave everything running, until Ctrl-C")
    demo.set_defaults(command=_demo)

    commands.add_parser("sandbox", help="a stand-in Emailgistics: API and webhook sender")  # it reads its own options
    return parser


def _add_views(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """The commands that only look."""
    preview = commands.add_parser("preview", help="say what a deployment would take of a message, without downloading")
    preview.add_argument("message_id", type=_message_id, help=MESSAGE)
    preview.add_argument(
        "--deployment", default="default", metavar="NAME", help="whose filter counts (default: %(default)s)"
    )
    preview.add_argument("--json", action="store_true", help="print it as JSON")
    preview.set_defaults(command=_preview)

    check = commands.add_parser(
        "check", help="say what is wrong with the filters of a prefect.yaml, or with one filter"
    )
    check.add_argument(
        "file", type=Path, nargs="?", default=Path("prefect.yaml"), help="the file (default: %(default)s)"
    )
    check.add_argument("--filter", metavar="JSON", help="check this filter, not a file")
    check.set_defaults(command=_check)

    doctor = commands.add_parser("doctor", help="look whether all that is needed is there and right")
    doctor.add_argument(
        "--monitoring-address",
        type=_address,
        metavar="HOST:PORT",
        help="where the receiver serves /ready (default: where it does without the option)",
    )
    where = doctor.add_mutually_exclusive_group()
    where.add_argument("--receiver", metavar="URL", help="ask the receiver there, such as http://127.0.0.1:8080")
    where.add_argument("--no-receiver", action="store_true", help="there is no receiver: leave it out")
    doctor.add_argument("--inbox", type=_path, help=f"the inbox file (default: ATTACHMENTS_INBOX or {DEFAULT_INBOX})")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.set_defaults(command=_doctor)

    status = commands.add_parser("status", help="say how much waits, runs and has ended")
    status.add_argument("--inbox", type=_path, help=f"the inbox file (default: ATTACHMENTS_INBOX or {DEFAULT_INBOX})")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    status.set_defaults(command=_status)


def _wait(text: str) -> float:
    seconds = _number(text)
    if not 0 <= seconds <= 95:  # noqa: PLR2004  receiver.answers.LONGEST_WAIT, which takes a second to import
        raise argparse.ArgumentTypeError("say 0 to 95 seconds: Emailgistics waits for an answer for 100")
    return seconds


def _number(text: str) -> float:
    """The number, NaN for what is none: no range holds it."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _message_id(text: str) -> str:
    message_id = normalized(text)  # or the message's key
    if not message_id:
        raise argparse.ArgumentTypeError("the message's id is empty; is the variable set that should hold it?")
    mistake = mistake_in(message_id)
    if mistake is not None:
        raise argparse.ArgumentTypeError(f"this is no message id: {mistake}; copy the whole id")
    return message_id


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; is the variable set that should hold it?")
    return Path(text)


def _port(text: str) -> int:
    port = _number(text)
    if not 0 <= port <= HIGHEST_PORT or port != int(port):  # the resolver would take 99999 for another port
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to {HIGHEST_PORT}")
    return int(port)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host.strip("[]"):
        raise argparse.ArgumentTypeError("write HOST:PORT, such as 127.0.0.1:8081")
    return host.strip("[]"), _port(port)


def _hours(text: str) -> timedelta:
    hours = _number(text)
    if not 0 <= hours < 24 * 365 * 100:  # neither NaN nor what no date can hold
        raise argparse.ArgumentTypeError("write a number of hours without a unit, such as 24 or 0.5")
    return timedelta(hours=hours)


def _count(text: str) -> int:
    count = _number(text)
    if not 1 <= count <= MOST_AT_ONCE or count != int(count):
        raise argparse.ArgumentTypeError(f"write a whole number from 1 to {MOST_AT_ONCE}")
    return int(count)


def _setup(options: argparse.Namespace) -> int:
    from attachments.cli.setup import SetupError, set_up  # noqa: PLC0415  Prefect takes seconds to import
    from attachments.doctor.probe import PREFECT_ERRORS, describe_error  # noqa: PLC0415

    try:
        untried = asyncio.run(
            set_up(
                os.environ,
                lambda result, subject: say(f"{result:<10}{subject}"),
                switch_on=not options.schedules_off,
            )
        )
    except SetupError as error:
        return _fail(str(error))
    except PREFECT_ERRORS as error:
        what, remedy = describe_error(error)
        return _fail(f"{what} {remedy} Then run this again: what is listed above has been made.")
    if untried:
        say(f"Everything is made in Prefect, but the API key could not be tried: {untried}")
    else:
        say("All set. Next: `prefect worker start --pool attachments` and `attachments receive`.")
    return 0


def _receive(options: argparse.Namespace) -> int:
    from attachments.receiver.secrets import (  # noqa: PLC0415
        LONGER,
        LONGER_PARTS,
        SHORT_PART,
        TOO_SHORT,
        has_short_part,
        is_short,
    )

    secrets = _secrets()
    if not secrets and not options.insecure:
        return _fail(
            "EMAILGISTICS_WEBHOOK_SECRET is not set, so anybody could post here. Set it to the webhook's secret in "
            "Emailgistics Admin (two, comma-separated, while rotating), or say --insecure."
        )
    if has_short_part(secrets) and not options.insecure:
        return _fail(f"{SHORT_PART} {LONGER_PARTS}")
    if options.tls_key and not options.tls_certificate:
        return _fail("--tls-key is of no use without --tls-certificate.")
    if options.tls_certificate and not options.tls_key:
        return _fail("--tls-certificate needs the certificate's key: name its file with --tls-key.")

    from attachments.receiver.inbox import InboxUnavailable  # noqa: PLC0415
    from attachments.receiver.responses import InvalidResponses, load_responses  # noqa: PLC0415  Prefect takes seconds
    from attachments.receiver.server import CannotServe, ReceiverSettings, serve  # noqa: PLC0415

    log = logging.StreamHandler()
    log.setFormatter(LogFormatter("%(asctime)s %(levelname)-8s %(name)s  %(message)s"))
    logging.basicConfig(handlers=[log], level=logging.INFO)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if options.insecure:
        secrets = []
        logging.getLogger("attachments").warning("Running --insecure: webhooks are taken from anybody.")
    if is_short(secrets):
        logging.getLogger("attachments").warning("%s %s", TOO_SHORT, LONGER)
    try:
        stopped_by = serve(
            ReceiverSettings(
                inbox=_inbox(options),
                secrets=secrets,
                host=options.host,
                port=options.port,
                certificate=options.tls_certificate,
                certificate_key=options.tls_key,
                monitoring=options.monitoring_address,
                answers=load_responses(options.answers, options.wait),
                list_all=options.list_all,
            )
        )
    except (InboxUnavailable, CannotServe, InvalidResponses) as error:
        return _fail(str(error))
    return INTERRUPTED if stopped_by == signal.SIGINT else 0


def _trigger(options: argparse.Namespace) -> int:
    from attachments.cli.trigger import TriggerError, trigger  # noqa: PLC0415
    from attachments.cli.upkeep import UpkeepError, soon, store_of  # noqa: PLC0415
    from attachments.storage import StoreError  # noqa: PLC0415
    from attachments.storage.keys import may_name_key  # noqa: PLC0415

    message_id = options.message_id
    try:
        if may_name_key(message_id):  # a webhook names a message by its id, which a key's manifest knows
            store = store_of(os.environ)
            message_id = soon(lambda: store.message_id(options.message_id))
        say(trigger(options.url, next(iter(_secrets()), None), message_id, options.mailbox))
    except (TriggerError, StoreError, UpkeepError) as error:
        return _fail(str(error))
    return 0


def _locate(options: argparse.Namespace) -> int:
    from attachments.cli.upkeep import UpkeepError, found_manifest, store_of  # noqa: PLC0415
    from attachments.storage import StoreError  # noqa: PLC0415
    from attachments.storage.keys import manifest_path  # noqa: PLC0415

    try:
        store = store_of(os.environ)
        key, manifest = found_manifest(store, options.message_id)
    except (StoreError, UpkeepError) as error:
        return _fail(str(error))
    if options.json:
        say_json(json.loads(manifest.to_bytes()))
        return 0
    say(shlex.quote(store.location(manifest_path(key))))
    for entry in manifest.attachments:
        # Quoted as a shell needs it, where it needs it.
        is_at_home = entry.is_at_home(key)
        where = shlex.quote(store.location(entry.key or "")) if is_at_home else entry.attachment_key
        note = entry.rule or entry.code or (f"{entry.purged_at:%Y-%m-%d}" if entry.purged_at else "")
        if entry.key is not None and not is_at_home:
            note = "the manifest names a place that is not its own: it was altered; see `attachments verify`"
        say(f"{entry.outcome:<12}{entry.bytes or 0:>14,}  {where}  {note}".rstrip())
    return 0


def _preview(options: argparse.Namespace) -> int:
    from attachments.cli.preview import PreviewError, preview, shown  # noqa: PLC0415  Prefect takes seconds to import

    try:
        found = preview(options.message_id, options.deployment)
    except PreviewError as error:
        return _fail(str(error))
    if options.json:
        say_json(found.model_dump(mode="json"))
        return 0
    say(*shown(found))
    return 0


def _check(options: argparse.Namespace) -> int:
    from attachments.cli.check import CheckError, check_file, check_text  # noqa: PLC0415

    try:
        mistakes = list(check_text(options.filter) if options.filter is not None else check_file(options.file))
    except CheckError as error:
        return _fail(str(error))
    if mistakes:
        return _fail(*mistakes)
    say("No mistake found.")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from attachments.doctor import by_urgency, examine, summary  # noqa: PLC0415  Prefect takes seconds to import
    from attachments.doctor.receiver import look_at_inbox, look_at_receiver  # noqa: PLC0415

    receiver = () if options.no_receiver else look_at_receiver(_secrets(), options.receiver, options.monitoring_address)
    found = by_urgency(_watched(itertools.chain(examine(), receiver, look_at_inbox(_inbox(options)))))
    is_well = all(finding.status != "failed" for finding in found)
    if options.json:
        say_json({"ok": is_well, "findings": [finding.model_dump(mode="json") for finding in found]})
        return 0 if is_well else FAILED
    for finding in found:
        say(str(finding))
        if sys.stdout.isatty():  # who sends it into a log wants no addresses there
            for name in finding.names:
                say(f"{'':<9}  {printable(name)}")
    say(summary(found))
    return 0 if is_well else FAILED


def _watched(findings: Iterable["Finding"]) -> list["Finding"]:
    """All of them. What was looked at last stands on the terminal meanwhile, for it may take a minute."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not sys.stderr.isatty():
        return list(findings)
    found = []
    with Console(stderr=True).status("Looking at Prefect") as line:
        for finding in findings:
            found.append(finding)
            line.update(Text(bounded(f"Looked at {finding.about}")))
    return found


def _status(options: argparse.Namespace) -> int:
    from attachments.cli.status import look, shown  # noqa: PLC0415  Prefect takes seconds to import

    found = look(_inbox(options))
    if options.json:
        say_json(found.model_dump(mode="json"))
    else:
        say(*shown(found))
    return FAILED if found.problems else 0


def _inbox(options: argparse.Namespace) -> Path:
    inbox: Path = options.inbox or Path(os.environ.get("ATTACHMENTS_INBOX") or DEFAULT_INBOX)
    try:
        return inbox.expanduser()
    except RuntimeError:  # no home folder, or no such user
        raise CommandFailed(
            f"There is no home folder for the inbox {inbox}. Give ATTACHMENTS_INBOX or --inbox a whole path."
        ) from None


def _verify(options: argparse.Namespace) -> int:
    from attachments.cli.upkeep import UpkeepError, identity_of, store_of, verify_store  # noqa: PLC0415
    from attachments.storage import StoreError  # noqa: PLC0415

    try:
        verdict = verify_store(
            store_of(os.environ),
            options.message_id,
            unseal=identity_of(options.identity) if options.identity else None,
            at_once=options.at_once,
            clean=options.clean,
            older_than=options.older_than,
        )
    except (StoreError, UpkeepError) as error:
        return _fail(str(error))
    return FAILED if verdict.differences or not verdict.messages else 0


def _decrypt(options: argparse.Namespace) -> int:
    from attachments.cli.upkeep import UpkeepError, decrypt_message, identity_of, store_of  # noqa: PLC0415
    from attachments.storage import StoreError  # noqa: PLC0415

    try:
        count = decrypt_message(store_of(os.environ), options.message_id, identity_of(options.identity), options.to)
    except (StoreError, UpkeepError) as error:
        return _fail(str(error))
    if not count:
        return _fail("Nothing of this message was encrypted by us; `attachments locate` says where its files are.")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from attachments.demo.show import show  # noqa: PLC0415

    return show(options.folder.resolve(), keep=options.keep)


def _sandbox(arguments: list[str]) -> int:
    from attachments.sandbox.__main__ import main as run_sandbox  # noqa: PLC0415

    return run_sandbox(arguments)


def _secrets() -> list[str]:
    from attachments.receiver.secrets import VARIABLE, split_secrets  # noqa: PLC0415

    return split_secrets(os.environ.get(VARIABLE, ""))


def _fail(*lines: str) -> int:
    say(*lines, is_error=True)
    return FAILED
