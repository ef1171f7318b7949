"""`attachments demo`: runs the whole product on this machine, and compares every stored file with its mail."""

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
from attachments.demo.processes import USER_SETTING_PREFIXES, NotReady, Process, wait_for
from attachments.demo.screen import Screen
from attachments.demo.stack import Stack, make_stack, running
from attachments.demo.stop_request import Stop, Stopped, stop_on_signals
from attachments.demo.workspace import FolderInUse, clean_folder
from attachments.foundation.numerals import counted
from attachments.sandbox.process import Control, SandboxError, running_sandbox
from attachments.storage import message_key

FINE, FAILED, STOPPED = 0, 1, 130
SANDBOX_START_TIMEOUT = 90.0  # seconds for the sandbox, which reads all mail first
RUNS_TIMEOUT = 120.0  # seconds for all runs to end
FINAL_STATES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Delivered:
    """A message whose webhook was delivered, with the receiver's message; `at` is a monotonic time."""

    id: str
    original: Original
    answer: str
    has_attachments: bool
    at: float

    @property
    def key(self) -> str:
        """Its key in the store."""
        return message_key(self.id)


def run_demo(folder: Path, *, keep: bool) -> int:
    """Run the demo in this folder. Returns 0 if every stored file is equal to the mail's, otherwise 1; 130 when
    stopped.

    `keep` leaves everything running until Ctrl-C or SIGTERM. It always stops all processes.
    """
    screen = Screen()
    with stop_on_signals("\nStopping: ending all processes ...\n") as stop:
        try:
            with clean_folder(folder):
                return _run(folder, screen, stop, keep=keep)
        except (Stopped, FolderInUse, NotReady, SandboxError, httpx.HTTPError) as error:
            # Ctrl-C at the terminal reaches the sandbox too, so requests to it fail.
            if stop.requested:
                screen.say("Stopped. Nothing is left running.")
                return STOPPED
            screen.say(f"The demo failed: {error or type(error).__name__}\nThe logs are in {folder}.")
            return FAILED


def _run(folder: Path, screen: Screen, stop: Stop, *, keep: bool) -> int:
    leave_out_settings()
    mail = folder / "mail"
    with ExitStack() as until_end:
        with screen.busy("Writing the mail …"):
            write_all(mail)
            screen.done(f"The mail is in {_relative_path(mail)}")
        reading = until_end.enter_context(ThreadPoolExecutor(1)).submit(read_originals, mail)
        with screen.busy("Starting a stand-in Emailgistics …"):
            sandbox = until_end.enter_context(running_sandbox(mail=mail, start_seconds=SANDBOX_START_TIMEOUT))
            screen.done("The sandbox runs: a stand-in Emailgistics with the mail")
        stop.check()

        stack = make_stack(folder, sandbox.base_url, sandbox.key)
        _report_when_ready(stack, screen, stop)
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
        screen.table(rows, _relative_path(stack.store))
        verdict = _print_verdict(rows, delivered, screen, stack)
        if keep:
            _keep_running(stack, sandbox.base_url, screen, stop)
        with screen.busy("Ending everything …"):
            until_end.close()
    screen.done("All processes have ended. The files stay.")
    return verdict


def leave_out_settings() -> None:
    """Remove this user's settings: the demo must not reach a real Prefect, database, key or store."""
    for name in [name for name in os.environ if name.startswith(USER_SETTING_PREFIXES)]:
        del os.environ[name]


def _report_when_ready(stack: Stack, screen: Screen, stop: Stop) -> None:
    """Print a line when each process is ready, and stop waiting when the demo is stopped."""

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
    """Let the sandbox post the webhook of every message, as Emailgistics does for incoming mail."""
    delivered = []
    for message in control.get("messages?sha256=no").raise_for_status().json()["messages"]:
        (delivery,) = control.deliver(message_id=message["id"], url=stack.webhook_url(), secret=stack.secret)
        if delivery["outcome"] != "success":
            raise NotReady(f"the receiver did not accept a webhook: {delivery['attempts'][-1]}")
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
    """Report each run that ends, until all have ended. Raises `NotReady` if one takes too long."""
    waiting = {message.id: message for message in delivered if message.has_attachments}
    auth = stack.prefect_password
    with httpx.Client(base_url=f"{stack.api_url}/", auth=auth, trust_env=False, timeout=30) as prefect:

        def all_ended() -> bool:
            stop.check()
            for run in _runs(prefect):
                message = waiting.get(run["parameters"].get("message_id"))
                if message is not None and run["state_type"] in FINAL_STATES:
                    del waiting[message.id]
                    seconds = time.monotonic() - message.at
                    report = f"{run['state_name']} {seconds:.1f} s after its webhook. {run['state']['message'] or ''}"
                    screen.done(f"“{message.original.subject}”: {report}")
            time.sleep(0.2)
            return not waiting

        wait_for(all_ended, "the flow runs did not all end", RUNS_TIMEOUT)


def _runs(prefect: httpx.Client) -> list[dict[str, Any]]:
    answer = prefect.post("flow_runs/filter", json={"limit": 200})
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # SQLite is busy with the runs themselves
        return []
    runs: list[dict[str, Any]] = answer.raise_for_status().json()
    return runs


def _print_verdict(rows: Sequence[Row], delivered: Sequence[Delivered], screen: Screen, stack: Stack) -> int:
    wrong = [row for row in rows if not row.verdict.is_fine]
    files = [row for row in rows if row.outcome == "stored"]
    if wrong:
        screen.say(f"{len(wrong)} of {counted(len(rows), 'attachment')} not as in the mail. The logs: {stack.folder}")
        return FAILED
    screen.say(
        f"{counted(len(delivered), 'message')}, {counted(len(files), 'file')}, "
        f"{counted(sum(row.bytes or 0 for row in files), 'byte')}: "
        "every stored file is equal to the mail's."
    )
    return FINE


def _keep_running(stack: Stack, base_url: str, screen: Screen, stop: Stop) -> None:
    prefect = stack.api_url.removesuffix("/api")
    settings = "\n".join(
        f"  export {name}={value}"
        for name, value in stack.environment.items()
        if name.startswith(USER_SETTING_PREFIXES)
    )
    screen.say(
        f"\nEverything is still running:\n"
        f"  Prefect UI  {prefect}   (it asks for {':'.join(stack.prefect_password)})\n"
        f"  receiver    {stack.receiver_url}   (/health, /ready, /metrics; webhooks go to /webhooks/default)\n"
        f"  sandbox     {base_url}\n"
        f"To try commands against it, set in another terminal:\n{settings}\n"
        "Ctrl-C ends everything."
    )
    stop.wait()


def _relative_path(path: Path) -> str:
    """The path relative to the current folder if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
