"""`attachments demo`: the whole product on this machine, and a comparison of every file with the mail it came in."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from attachments.demo.comparison import Row, compare
from attachments.demo.make_mail import write_all
from attachments.demo.originals import Original, read_originals
from attachments.demo.processes import FOREIGN, NotReady, Process, wait_for
from attachments.demo.screen import Screen
from attachments.demo.stack import Stack, make_stack, running
from attachments.demo.stopping import Stop, Stopped, stop_on_signals
from attachments.demo.workspace import NotOurs, fresh
from attachments.foundation.numerals import counted
from attachments.sandbox.process import Control, SandboxError, running_sandbox
from attachments.storage import message_key

FINE, FAILED, STOPPED = 0, 1, 130
START = 90.0  # seconds for the sandbox, which reads all mail first
RUNS = 120.0  # seconds for all runs to end
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Delivered:
    """A message whose webhook was delivered, with what the receiver said; `at` is monotonic."""

    id: str
    original: Original
    answer: str
    has_attachments: bool
    at: float

    @property
    def key(self) -> str:
        """Its key in the store."""
        return message_key(self.id)


def show(folder: Path, *, keep: bool) -> int:
    """Run the demo in this folder. 0 when every file is equal to what was in the mail, 1 if not, 130 when stopped.

    `keep` leaves all running until Ctrl-C or SIGTERM. Whatever happens, no process is left behind.
    """
    screen = Screen()
    with stop_on_signals("\nStopping: ending all processes ...\n") as stop:
        try:
            with fresh(folder):
                return _show(folder, screen, stop, keep=keep)
        except (Stopped, NotOurs, NotReady, SandboxError, httpx.HTTPError) as error:
            # A Ctrl-C at the terminal reaches the sandbox too, and what asks it fails.
            if stop.requested:
                screen.say("Stopped. Nothing is left running.")
                return STOPPED
            screen.say(f"The demo failed: {error or type(error).__name__}\nThe logs are in {folder}.")
            return FAILED


def _show(folder: Path, screen: Screen, stop: Stop, *, keep: bool) -> int:
    leave_out_settings()
    mail = folder / "mail"
    with ExitStack() as until_end:
        with screen.busy("Writing the mail …"):
            write_all(mail)
            screen.done(f"The mail is in {_short(mail)}")
        reading = until_end.enter_context(ThreadPoolExecutor(1)).submit(read_originals, mail)
        with screen.busy("Starting a stand-in Emailgistics …"):
            sandbox = until_end.enter_context(running_sandbox(mail=mail, start_seconds=START))
            screen.done("The sandbox runs: a stand-in Emailgistics that holds the mail")
        stop.check()

        stack = make_stack(folder, sandbox.base_url, sandbox.key)
        _announce(stack, screen, stop)
        with screen.busy("Starting Prefect, receiver and worker …"):
            until_end.enter_context(running(stack))
        with screen.busy("Delivering the webhooks …"):
            delivered = _deliver(sandbox.control, stack, {one.internet_message_id: one for one in reading.result()})
            for message in delivered:
                screen.done(f"Webhook for “{message.original.subject}”: {message.answer}")
        with screen.busy("The worker downloads …"):
            _watch_runs(stack, delivered, screen, stop)

        with screen.busy("Comparing with the mail …"):
            rows = [row for message in delivered for row in compare(message.original, stack.store, message.key)]
        screen.table(rows, _short(stack.store))
        verdict = _conclude(rows, delivered, screen, stack)
        if keep:
            _keep(stack, sandbox.base_url, screen, stop)
        with screen.busy("Ending everything …"):
            until_end.close()
    screen.done("All processes have ended. The files stay.")
    return verdict


def leave_out_settings() -> None:
    """Forget what this user has configured: the demo must not reach a real Prefect, database, key or store."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]


def _announce(stack: Stack, screen: Screen, stop: Stop) -> None:
    """Have a line shown when each process is ready, and the waiting ended when the demo is to stop."""

    def announced(process: Process) -> Callable[[], bool]:
        is_ready = process.is_ready

        def ready() -> bool:
            stop.check()
            if not is_ready():
                return False
            screen.done(f"The {process.name} runs")
            return True

        return ready

    for process in stack.processes:
        process.is_ready = announced(process)


def _deliver(control: Control, stack: Stack, originals: Mapping[str, Original]) -> list[Delivered]:
    """Have the sandbox post the webhook of every message, as Emailgistics would when mail comes in."""
    delivered = []
    for message in control.get("messages?sha256=no").raise_for_status().json()["messages"]:
        (delivery,) = control.deliver(message_id=message["id"], url=stack.webhook_url(), secret=stack.secret)
        if delivery["outcome"] != "success":
            raise NotReady(f"the receiver did not take a webhook: {delivery['attempts'][-1]}")
        webhook = message["webhook"]
        delivered.append(
            Delivered(
                message["id"],
                originals[webhook["internetMessageId"]],
                httpx.Response(200, text=delivery["attempts"][-1]["body"]).json()["message"],
                webhook["hasAttachments"],
                time.monotonic(),
            )
        )
    return delivered


def _watch_runs(stack: Stack, delivered: Sequence[Delivered], screen: Screen, stop: Stop) -> None:
    """Tell of each run that has ended, until all have. Raises `NotReady` when one takes too long."""
    waiting = {message.id: message for message in delivered if message.has_attachments}
    auth = stack.prefect_password
    with httpx.Client(base_url=f"{stack.api_url}/", auth=auth, trust_env=False, timeout=30) as prefect:

        def all_ended() -> bool:
            stop.check()
            for run in _runs(prefect):
                message = waiting.get(run["parameters"].get("message_id"))
                if message is not None and run["state_type"] in FINAL:
                    del waiting[message.id]
                    seconds = time.monotonic() - message.at
                    told = f"{run['state_name']} {seconds:.1f} s after its webhook. {run['state']['message'] or ''}"
                    screen.done(f"“{message.original.subject}”: {told}")
            time.sleep(0.2)
            return not waiting

        wait_for(all_ended, "the flow runs did not all end", RUNS)


def _runs(prefect: httpx.Client) -> list[dict[str, Any]]:
    answer = prefect.post("flow_runs/filter", json={"limit": 200})
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # SQLite is busy with the runs themselves
        return []
    runs: list[dict[str, Any]] = answer.raise_for_status().json()
    return runs


def _conclude(rows: Sequence[Row], delivered: Sequence[Delivered], screen: Screen, stack: Stack) -> int:
    wrong = [row for row in rows if not row.verdict.is_fine]
    files = [row for row in rows if row.outcome == "stored"]
    if wrong:
        screen.say(f"{len(wrong)} of {counted(len(rows), 'attachment')} not as in the mail. The logs: {stack.folder}")
        return FAILED
    screen.say(
        f"{counted(len(delivered), 'message')}, {counted(len(files), 'file')}, "
        f"{counted(sum(row.bytes or 0 for row in files), 'byte')}: "
        "every file in the store is equal to what was in the mail."
    )
    return FINE


def _keep(stack: Stack, base_url: str, screen: Screen, stop: Stop) -> None:
    prefect = stack.api_url.removesuffix("/api")
    settings = "\n".join(
        f"  export {name}={value}" for name, value in stack.environment.items() if name.startswith(FOREIGN)
    )
    screen.say(
        f"\nEverything is still running:\n"
        f"  Prefect UI  {prefect}   (it asks for {':'.join(stack.prefect_password)})\n"
        f"  receiver    {stack.receiver_url}   (/health, /ready, /metrics; webhooks go to /webhooks/default)\n"
        f"  sandbox     {base_url}\n"
        f"To try commands against it, set in another terminal:\n{settings}\n"
        "Ctrl-C ends it all."
    )
    stop.wait()


def _short(path: Path) -> str:
    """The path from where the user is, when it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
