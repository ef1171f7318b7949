"""`attachments up`: what it needs, its data folder, its log, how it restarts and stops its parts; and all of it."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from attachments.cli.actions.one_host_settings import make_settings, read_env_file, read_variables
from attachments.cli.command_boundary import CommandFailed
from attachments.cli.main import main
from attachments.demo.data_folder import LOCK, REAL, SANDBOX, FolderUnusable, data_folder
from attachments.demo.merged_log import MergedLog
from attachments.demo.one_host import CannotStart, OneHost, Settings
from attachments.demo.processes import Process, free_port, wait_for
from attachments.demo.services import SERVER_SETTINGS
from attachments.demo.stop_request import Stop
from attachments.demo.supervisor import Part, PartFailed, Supervisor, Timing
from tests.demo.test_demo import ATTACHMENTS, processes_of

PATIENCE = 1200.0  # seconds to be ready or to finish the work; on a busy machine, set-up alone takes minutes
GIVEN = {
    "EMAILGISTICS_API_KEY": "key",
    "EMAILGISTICS_WEBHOOK_SECRET": "a-secret-of-many-characters",
    "ATTACHMENTS_URL": "file:///srv/attachments",
}


# ---- what it needs ----


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    """The variables that are not set, a file that cannot be read, and a secret that could be guessed."""
    given = {"EMAILGISTICS_API_KEY_FILE": str(tmp_path / "nothing"), "EMAILGISTICS_WEBHOOK_SECRET": "short,shorter"}
    with pytest.raises(CommandFailed) as failed:
        read_variables(given, None)
    _, key, url, secret, advice = failed.value.args
    assert "EMAILGISTICS_API_KEY_FILE" in key
    assert "ATTACHMENTS_URL is not set." in url
    assert "fewer than 16 characters" in secret
    assert "--sandbox" in advice


def test_the_command_names_each_variable_in_a_line(tmp_path: Path) -> None:
    """It ends with 1 before it makes anything."""
    environment = {name: text for name, text in os.environ.items() if name not in GIVEN}
    command = [ATTACHMENTS, "up", "--data", tmp_path / "data"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("- ")] == list(GIVEN)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mail", "."], "needs --sandbox"),
        (["--sandbox", "--mail", "/none"], "There is no mail at /none"),
        (["--env-file", "/none"], "cannot be read (No such file or directory)"),
        (["--data", "~nobody-of-this-name/x"], "Give an absolute path with --data."),
    ],
)
def test_options_that_cannot_be_used_are_named(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, before anything is made."""
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    assert main(["up", *options]) == 1
    assert said in capsys.readouterr().err


def test_an_env_file_sets_what_the_environment_does_not(tmp_path: Path) -> None:
    """Comments, `export` and quotes are as a shell has them; nothing is expanded."""
    file = tmp_path / "settings.env"
    file.write_text("# ours\n\nexport EMAILGISTICS_API_KEY='a $b'\nATTACHMENTS_URL = \nAWS_REGION=\"eu\"\nX=a=b # c\n")
    with pytest.raises(CommandFailed, match="Line 4 of"):
        read_env_file(file)
    file.write_text(file.read_text().replace("ATTACHMENTS_URL = ", "ATTACHMENTS_URL=file:///from/the/file"))
    found = read_variables({**GIVEN, "EMAILGISTICS_API_KEY": ""} | {"ATTACHMENTS_URL": "file:///srv"}, file)
    assert found["EMAILGISTICS_API_KEY"] == "a $b"
    assert found["ATTACHMENTS_URL"] == "file:///srv"
    assert (found["AWS_REGION"], found["X"]) == ("eu", "a=b # c")


def test_an_env_file_that_cannot_be_read_is_a_message(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(CommandFailed, match="No such file"):
        read_env_file(tmp_path / "missing")


def test_each_part_gets_only_the_secrets_that_it_needs(tmp_path: Path) -> None:
    """The API key goes to the set-up, the webhook's secret to the receiver; Prefect's password is in a file."""
    given = {**GIVEN, "PREFECT_API_AUTH_STRING": "me:secret-word", "PREFECT_SERVER_LOGGING_LEVEL": "INFO"}
    settings = make_settings(given, data=tmp_path)
    with data_folder(tmp_path, REAL) as folder:
        installation = OneHost(settings, folder, MergedLog())
        installation.write_files()
        environments = {part.name: part.process.environment for part in installation.parts()}
        profiles = folder.profiles.read_text()
    assert list(environments) == ["Prefect server", "setup", "worker", "receiver"]
    for name, environment in environments.items():
        held = {secret for secret in ("key", GIVEN["EMAILGISTICS_WEBHOOK_SECRET"]) if secret in environment.values()}
        expected = {"setup": {"key"}, "receiver": {GIVEN["EMAILGISTICS_WEBHOOK_SECRET"]}}
        assert held == expected.get(name, set())
        assert not any("secret-word" in text for text in environment.values())
        assert environment["PREFECT_SERVER_LOGGING_LEVEL"] == "INFO"
        assert SERVER_SETTINGS.items() <= environment.items()
    assert profiles.count("me:secret-word") == 2


def test_a_prefect_of_the_users_is_used(tmp_path: Path) -> None:
    """Then no server is started, and the password goes to every part as it is."""
    given = {**GIVEN, "PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_API_AUTH_STRING": "me:secret-word"}
    with data_folder(tmp_path, REAL) as folder:
        installation = OneHost(make_settings(given, data=tmp_path), folder, MergedLog())
        installation.write_files()
        parts = {part.name: part.process.environment for part in installation.parts()}
        assert not folder.profiles.exists()
    assert list(parts) == ["setup", "worker", "receiver"]
    for environment in parts.values():
        assert environment["PREFECT_API_URL"] == given["PREFECT_API_URL"]
        assert environment["PREFECT_API_AUTH_STRING"] == "me:secret-word"
        assert "PREFECT_HOME" not in environment


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    """With the option that changes it."""
    with data_folder(tmp_path, SANDBOX) as folder, listening() as port:
        settings = Settings(data=tmp_path, port=port, mail=tmp_path)
        with pytest.raises(CannotStart, match=rf"port {port} .*Choose another port with --port"):
            OneHost(settings, folder, MergedLog()).check_ports(patience=0)


@pytest.mark.parametrize(
    ("host", "said"),
    [("203.0.113.1", "assign requested address"), ("no.such.host.invalid", "Name"), ("a" * 64, "not a valid address")],
)
def test_an_address_that_is_not_this_machines_is_named_at_once(host: str, said: str, tmp_path: Path) -> None:
    """Waiting would not help: of a port that is taken alone, the program that has it may be about to end."""
    with data_folder(tmp_path, SANDBOX) as folder:
        settings = Settings(data=tmp_path, host=host, port=free_port(), mail=tmp_path)
        with pytest.raises(CannotStart, match=rf"{host} port .*{said}.*correct --host"):
            OneHost(settings, folder, MergedLog()).check_ports(patience=999)


@contextmanager
def listening() -> Iterator[int]:
    """A port on which something listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


# ---- the data folder ----


def test_the_password_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """So are the files that hold a copy of it; the folder is the owner's alone."""
    with data_folder(tmp_path / "data", REAL) as folder:
        password = folder.password()
        folder.write_profile("http://127.0.0.1:4200/api", password)
        folder.write_environment({"A": "b"})
        for file in (folder.password_file, folder.profiles, folder.environment_file):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert len(password) > 40
    with data_folder(tmp_path / "data", REAL) as folder:
        assert folder.password() == password


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second one refuses, and so does the sandbox in a folder of a real mailbox."""
    with (
        data_folder(tmp_path, REAL),
        pytest.raises(FolderUnusable, match="Another `attachments up` runs"),
        data_folder(tmp_path, REAL, patience=0),
    ):
        pass
    with pytest.raises(FolderUnusable, match="was made for a real mailbox"), data_folder(tmp_path, SANDBOX):
        pass
    assert (tmp_path / LOCK).read_text() == f"{REAL}\n"


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    """With the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(FolderUnusable, match="Not a directory"), data_folder(tmp_path / "file" / "data", REAL):
        pass


# ---- the log ----


def test_the_log_as_json_has_an_object_in_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With time, part, level and message; control characters are escapes, and blank lines are left out."""
    log = MergedLog("json")
    log.add("worker", "12:00:00.000 | WARNING | prefect - \x1b[2J late")
    log.add("worker", "   ")
    log.say("Everything is running.")
    log.close()
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["part"], first["level"]) == ("worker", "WARNING")
    assert "\x1b" not in first["message"]
    assert (second["part"], second["level"], second["message"]) == ("attachments up", "INFO", "Everything is running.")


def test_the_log_as_text_names_the_part(capsys: pytest.CaptureFixture[str]) -> None:
    """Before each line."""
    log = MergedLog()
    log.add("receiver", "Listening")
    log.close()
    assert re.fullmatch(r"receiver +\| Listening\n", capsys.readouterr().out)


# ---- the parts ----

QUICK = Timing(look=0.01, first_pause=0.05, longest_pause=0.1, stable=60.0)


def stand_in(name: str, code: str, log: Callable[[str], None], **options: bool) -> Part:
    """A part that runs this code."""
    process = Process(name, [sys.executable, "-c", code], {}, log, lambda: "ready" in process.output())
    process.dies_with_us = True
    return Part(process, **options)


def stays(name: str) -> str:
    """The code of a part that says when it is ready, and when it was stopped."""
    return (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (print('{name} stopped', flush=True), sys.exit()))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1)\n"
    )


def test_parts_start_in_order_and_stop_in_reverse(capsys: pytest.CaptureFixture[str]) -> None:
    """Each starts when what it needs is ready; the next one is stopped when the one before has ended."""
    printed: list[str] = []
    stop, log = Stop(), MergedLog()
    server = stand_in("server", stays("server"), printed.append)
    setup = stand_in("setup", "print('set up', flush=True)", printed.append, once=True)
    worker, receiver = (stand_in(name, stays(name), printed.append) for name in ("worker", "receiver"))
    setup.needs = (server,)
    worker.needs = receiver.needs = (setup,)
    supervisor = Supervisor([server, setup, worker, receiver], log, is_first_start=True, timing=QUICK)
    supervisor.run(stop, when_ready=stop.request)
    log.close()
    assert printed == ["ready", "set up", "ready", "ready", "receiver stopped", "worker stopped", "server stopped"]


def test_what_ends_is_restarted_and_waits_longer_each_time() -> None:
    """Up to the longest pause, and from the shortest again after it has run well."""
    part = stand_in("thing", "", lambda _: None)
    timing = Timing(first_pause=1.0, longest_pause=5.0, stable=60.0)
    part.started_at = time.monotonic()
    assert [part.schedule_restart(timing) for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    part.started_at = time.monotonic() - 61
    assert part.schedule_restart(timing) == 1.0


def test_a_part_that_was_killed_runs_again(capsys: pytest.CaptureFixture[str]) -> None:
    """And the log says how it ended."""
    stop, log = Stop(), MergedLog()
    part = stand_in("thing", stays("thing"), lambda _: None)
    killed: list[int] = []

    def kill_it_once() -> None:
        killed.append(part.process.pid)
        os.kill(part.process.pid, signal.SIGKILL)

    supervisor = Supervisor([part], log, is_first_start=False, timing=QUICK)
    wait = stop.wait

    def wait_and_look(seconds: float | None = None) -> None:
        wait(seconds)
        if killed and part.is_running and part.process.pid != killed[0] and part.process.is_ready():
            stop.request()

    stop.wait = wait_and_look  # type: ignore[method-assign]
    supervisor.run(stop, when_ready=kill_it_once)
    log.close()
    assert "The thing was killed by SIGKILL. It is restarted in" in capsys.readouterr().out


def test_a_part_that_fails_on_the_first_start_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """What is set up wrongly shows at once; what was started is stopped."""
    log = MergedLog()
    good = stand_in("good", stays("good"), lambda _: None)
    bad = stand_in("bad", "import sys; sys.exit(3)", lambda _: None)
    with pytest.raises(PartFailed, match="The bad ended with exit status 3 before everything was ready"):
        Supervisor([good, bad], log, is_first_start=True, timing=QUICK).run(Stop(), when_ready=lambda: None)
    log.close()
    assert good.process.code is not None


def test_a_second_request_does_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    """A part that takes long to stop is killed then."""
    deaf = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "time.sleep(9999)"
    )
    part = stand_in("deaf", deaf, lambda _: None)
    part.patience = 1000  # longer than this test may take
    stop, log = Stop(), MergedLog()

    def request_twice() -> None:
        stop.request()
        stop.request()

    Supervisor([part], log, is_first_start=True, timing=QUICK).run(stop, when_ready=request_twice)
    log.close()
    assert part.process.code == -signal.SIGKILL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux alone ends them")
def test_a_part_does_not_outlive_the_command(tmp_path: Path) -> None:
    """`kill -9` of the command ends it, and it holds the command's lock until then."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from attachments.demo.data_folder import REAL, data_folder\n"
        "from attachments.demo.processes import Process\n"
        "with data_folder(Path(sys.argv[1]), REAL) as folder:\n"
        "    part = Process('part', ['sleep', '999'], {}, print, lambda: True, True, (folder.lock,))\n"
        "    part.start()\n"
        "    print(part.pid, flush=True)\n"
        "    time.sleep(999)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        pid = int(command.stdout.readline())
        command.kill()
    with data_folder(tmp_path, REAL):  # waits until nothing holds the lock any more
        pass
    wait_for(lambda: not is_alive(pid), "the end of the part", 10)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that waits for its parent to take notice of its end does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# ---- all of it ----


@contextmanager
def running_up(folder: Path, *options: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, list[str | Path]]]:
    """`attachments up --sandbox` in this folder, all of it running; with its output and its command line."""
    output = folder / "output"
    command: list[str | Path] = [ATTACHMENTS, "up", "--sandbox", "--data", folder / "data", *options]
    with up_again(command, output) as process:
        yield process, output, command
    assert processes_of(folder) == []


@contextmanager
def up_again(command: list[str | Path], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The same command, once everything is running; SIGTERM ends it."""
    with output.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            wait_for(lambda: "Everything is running." in output.read_text(), "everything", PATIENCE, 1)
            yield process
        finally:
            process.terminate()
            process.wait(120)


def ports() -> list[str]:
    """Options for ports that are free."""
    return ["--port", str(free_port()), "--prefect-port", str(free_port())]


def manifests(folder: Path) -> list[dict[str, object]]:
    """Those in the store of the sandbox's data folder."""
    return [json.loads(path.read_bytes()) for path in (folder / "data" / "attachments").glob("*/manifest.json")]


def are_stored(folder: Path, messages: int) -> bool:
    """Whether so many messages are complete in the store."""
    return [manifest["complete"] for manifest in manifests(folder)] == [True] * messages


def pid_of(folder: Path, name: str) -> int:
    """The id of the process of this installation whose command line holds this text."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
            if str(folder).encode() in environment and name in command.replace(b"\0", b" ").decode():
                return int(process.name)
    raise AssertionError(f"{name} does not run")


PARTS = {
    "Prefect server": "server start",
    "worker": "worker start",
    "receiver": "attachments receive",
    "sandbox": "attachments.sandbox",
}
SHIPPED_WITH_FILES = 5  # messages of the demo's mail


@pytest.mark.soak
@pytest.mark.timeout(6000)
def test_one_command_stores_the_attachments_and_survives_kills(tmp_path: Path) -> None:
    """From an empty folder; then `kill -9` of each part, which runs again, and of the command, which leaves nothing."""
    with running_up(tmp_path, *ports()) as (process, output, command):
        wait_for(lambda: are_stored(tmp_path, SHIPPED_WITH_FILES), "all messages in the store", PATIENCE, 1)
        for name, text in PARTS.items():
            killed = pid_of(tmp_path, text)
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda name=name: f"The {name} was killed by SIGKILL" in output.read_text(), "its end", 60)
            wait_for(lambda text=text, killed=killed: has_restarted(tmp_path, text, killed), "its restart", 60)
        process.kill()
        process.wait()
        wait_for(lambda: processes_of(tmp_path) == [], "the end of all parts", 10)
        (tmp_path / "mail").mkdir()
        new = "From: a@example.com\nSubject: new\nMIME-Version: 1.0\nContent-Type: application/pdf; name=a.pdf\n\n%PDF"
        (tmp_path / "mail" / "new.eml").write_text(new)
        with up_again([*command, "--mail", tmp_path / "mail"], output):
            wait_for(lambda: are_stored(tmp_path, SHIPPED_WITH_FILES + 1), "the new message", PATIENCE, 1)


def has_restarted(folder: Path, text: str, killed: int) -> bool:
    """Whether another process than the one that was killed runs."""
    with suppress(AssertionError):
        return pid_of(folder, text) != killed
    return False


@pytest.mark.soak
@pytest.mark.timeout(6000)
def test_sigterm_during_a_download_loses_nothing(tmp_path: Path) -> None:
    """The parts stop in order with status 0, nothing half-done is in the store, and the next start completes it."""
    mail = tmp_path / "mail"
    mail.mkdir()
    head = "From: a@example.com\nSubject: large\nMIME-Version: 1.0\nContent-Type: application/pdf; name=a.pdf\n\n"
    (mail / "large.eml").write_text(head + "x" * 70 + ("\n" + "x" * 70) * 100_000)
    output = tmp_path / "output"
    command: list[str | Path] = [ATTACHMENTS, "up", "--sandbox", "--data", tmp_path / "data", "--mail", mail, *ports()]
    with output.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            with httpx.Client(base_url=sandbox_of(output), trust_env=False, timeout=60) as control:
                slow = {"kind": "slow", "bytes_per_second": 20_000}  # six minutes; the worker drains for 20 s
                control.post("faults", json={"endpoint": "download", "fault": slow}).raise_for_status()
                wait_for(lambda: has_begun(control), "the download", PATIENCE)
        finally:
            process.terminate()
            assert process.wait(200) == 0
    assert processes_of(tmp_path) == []
    assert re.findall(r"Stopping the (.*)\.", output.read_text()) == ["receiver", "worker", "Prefect server", "sandbox"]
    assert not [file for file in (tmp_path / "data" / "attachments").rglob("*.pdf") if ".incoming" not in file.parts]
    with up_again(command, output):
        wait_for(lambda: are_stored(tmp_path, 1), "the message", PATIENCE, 1)


def sandbox_of(output: Path) -> str:
    """The address of the control API of the sandbox that has just started."""
    address = re.compile(r"(http://127\.0\.0\.1:\d+)/api/v1")
    wait_for(lambda: address.search(output.read_text()) is not None, "the sandbox", PATIENCE)
    found = address.search(output.read_text())
    assert found
    return f"{found[1]}/_sandbox/"


def has_begun(control: httpx.Client) -> bool:
    """Whether a download has begun."""
    return any(request["endpoint"] == "download" for request in control.get("requests").json()["requests"])
