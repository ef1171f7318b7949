"""No command shows a traceback, whatever its environment holds; Ctrl-C and a reader that leaves end it quietly."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from attachments.cli.actions import provisioning
from attachments.cli.actions.store_access import call_store
from attachments.cli.command_boundary import CommandFailed
from attachments.cli.main import main
from attachments.demo.processes import free_port, process_environment
from tests.demo.test_demo import processes_of

ATTACHMENTS = str(Path(sys.executable).with_name("attachments"))
MESSAGE = "AAMkAGI1/xyz="
NOT_OURS = "203.0.113.1"
"""An address that no machine has (RFC 5737)."""
DEPLOYMENTS = Path(__file__).parents[2] / "attachments" / "prefect.yaml"
ODD = ("", "\udcff日本\n\x1b[2J", "http://[", "{")
"""Values that suit no variable."""
PREFECT = {"PREFECT_API_URL", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}
STORE = {"ATTACHMENTS_URL", "ATTACHMENTS_STORAGE_OPTIONS", "ATTACHMENTS_STORAGE_OPTIONS_FILE"}
ACCOUNT = {"EMAILGISTICS_API_KEY", "EMAILGISTICS_BASE_URL", "EMAILGISTICS_API_KEY_FILE"}
SECRET = {"EMAILGISTICS_WEBHOOK_SECRET", "EMAILGISTICS_WEBHOOK_SECRET_FILE"}
READ: dict[str, set[str]] = {
    "up": {*PREFECT, *STORE, *ACCOUNT, *SECRET, "ATTACHMENTS_INBOX", "ATTACHMENTS_AGE_RECIPIENTS"},
    "setup": {*PREFECT, *STORE, *ACCOUNT, "ATTACHMENTS_AGE_RECIPIENTS"},
    "receive": {"PREFECT_API_URL", *SECRET, "ATTACHMENTS_INBOX"},
    "trigger": {*SECRET, "HTTP_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"},
    "locate": STORE,
    "preview": PREFECT,
    "verify": {*STORE, "TERM", "COLUMNS"},
    "decrypt": STORE,
    "doctor": {*PREFECT, *SECRET, "ATTACHMENTS_INBOX", "HOME"},
    "status": {*PREFECT, "ATTACHMENTS_INBOX", "HOME"},
    "check": set(),
    "demo": {"TERM", "COLUMNS"},
    "sandbox": SECRET,
}
"""What each command reads. Each of these is tried by itself, and all the others at once."""
SETTINGS_READ = ("setup", "receive", "preview", "doctor", "status", "check")
"""The commands that import Prefect, which reads its settings then."""
VARIABLES = {
    "EMAILGISTICS_API_KEY": (),
    "EMAILGISTICS_WEBHOOK_SECRET": (",",),
    "EMAILGISTICS_BASE_URL": ("ftp://x", "https://x", "https://x:abc/api/v1"),
    "ATTACHMENTS_URL": (
        "gopher://x",
        "s3://",
        "sftp://[",
        "file:///dev/null",
        "~nobody-of-this-name/x",
        "::",
        "hdfs://x",
    ),
    "ATTACHMENTS_STORAGE_OPTIONS": ("[]", "null", "1", '{"no-such": 1}', "[" * 10_000),
    "ATTACHMENTS_INBOX": ("/", ".", "/dev/null", "/dev/null/x", "/proc/none/x", "~nobody-of-this-name/x"),
    "ATTACHMENTS_AGE_RECIPIENTS": (",", "age1nonsense", "# none"),
    "EMAILGISTICS_API_KEY_FILE": ("/", "/none"),
    "EMAILGISTICS_WEBHOOK_SECRET_FILE": ("/", "/none"),
    "ATTACHMENTS_STORAGE_OPTIONS_FILE": ("/", "/none"),
    "PREFECT_API_URL": ("ftp://x", "127.0.0.1:4200/api", "http://x:abc/api", "http://127.0.0.1:99999/api"),
    "HOME": ("/proc/none",),
    "HTTP_PROXY": ("socks5://x", "http://x:abc", "nonsense://x"),
    "ALL_PROXY": ("nonsense://x", "http://x:abc"),
    "NO_PROXY": ("[", "*"),
    "SSL_CERT_FILE": ("/", "/none", __file__),
    "SSL_CERT_DIR": ("/none", __file__),
    "TERM": (),
    "COLUMNS": ("-1",),
}


@pytest.fixture(scope="module")
def prefect() -> Iterator[str]:
    """A Prefect without any of our things, which lets nobody make them."""

    class Refuses(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(200, b"true") if self.path.endswith("/health") else self.answer(404, b"{}")

        def do_POST(self) -> None:
            self.answer(401, b"{}")

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.fixture(scope="module")
def taken() -> Iterator[str]:
    """A port that cannot be listened on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


COMMANDS: dict[str, Callable[[Path, str], list[str]]] = {
    "up": lambda folder, port: ["up", "--data", str(folder), "--host", NOT_OURS, "--port", port],
    "setup": lambda _folder, _port: ["setup"],
    "receive": lambda _folder, port: ["receive", "--port", port],
    "trigger": lambda _folder, _port: ["trigger", MESSAGE, "--url", "http://127.0.0.1:9/webhooks/default"],
    "locate": lambda _folder, _port: ["locate", MESSAGE],
    "preview": lambda _folder, _port: ["preview", MESSAGE],
    "verify": lambda _folder, _port: ["verify"],
    "decrypt": lambda folder, _port: ["decrypt", MESSAGE, "--identity", str(folder / "none"), "--to", str(folder)],
    "doctor": lambda _folder, _port: ["doctor"],
    "status": lambda _folder, _port: ["status", "--json"],
    "check": lambda _folder, _port: ["check", str(DEPLOYMENTS)],
    "demo": lambda folder, _port: ["demo", "--folder", str(folder)],
    "sandbox": lambda _folder, port: ["sandbox", "--port", port],
}


def said(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """What a command has printed; no traceback, and no error that nobody foresaw."""
    out, err = capsys.readouterr()
    assert code in {0, 1, 2}
    assert "Traceback" not in out + err
    assert "Internal error" not in err
    return out + err


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["some", "every"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_a_traceback_whatever_a_variable_holds(
    command: str,
    every: bool,
    prefect: str,
    taken: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All variables; each command says something or does its work, and exits with 0, 1 or 2.

    Each variable meets the values that suit it badly, and one of those that suit none, another in each command. That
    every variable meets every value in every command takes a minute, and is left to the long tests.
    """
    monkeypatch.setattr(provisioning, "set_up", partial(provisioning.set_up, start_timeout=0))
    foreign = tmp_path / "not the demo's"
    foreign.mkdir()
    (foreign / "mine.txt").touch()
    good = {
        "EMAILGISTICS_API_KEY": "k" * 20,
        "EMAILGISTICS_WEBHOOK_SECRET": "s" * 20,
        "EMAILGISTICS_BASE_URL": "http://127.0.0.1:9/api/v1",
        "ATTACHMENTS_URL": (tmp_path / "store").as_uri(),
        "ATTACHMENTS_INBOX": str(tmp_path / "inbox.sqlite"),
        "NO_PROXY": "127.0.0.1",
    }
    unread = VARIABLES.keys() - READ[command]
    turn = list(COMMANDS).index(command)
    cases: list[dict[str, str]] = []
    for number, variable in enumerate(sorted(READ[command]), turn):
        odd = ODD if every else [ODD[number % len(ODD)]]
        cases += ({variable: value} for value in (*odd, *VARIABLES[variable]))
    cases += (dict.fromkeys(unread, value) for value in (ODD if every else [ODD[turn % len(ODD)]]))
    for case in cases:
        address = case.get("PREFECT_API_URL", prefect)
        if address == "http://[":
            address = prefect  # it fails while Prefect is imported; see below
        with monkeypatch.context() as patch, temporary_settings({PREFECT_API_URL: address}):
            for name, value in {**good, **case}.items():
                patch.setenv(name, value)
            code = main(COMMANDS[command](foreign, taken))
        assert said(capsys, code) or command == "trigger", case


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [ATTACHMENTS, *arguments]
    ours = process_environment({"PREFECT_API_URL": "http://127.0.0.1:9/api", **environment})
    return subprocess.run(command, env=ours, capture_output=True, text=True, check=False, timeout=120)


URL_TOLD = "PREFECT_API_URL (it looks like http://127.0.0.1:4200/api) is not valid."
PORT_TOLD = "PREFECT_SERVER_API_PORT is not valid."


@pytest.mark.parametrize(
    ("command", "name", "value", "told"),
    [
        ("status", "PREFECT_API_URL", "http://[", URL_TOLD),
        ("check", "PREFECT_API_URL", "http://[", URL_TOLD),
        (
            "status",
            "PREFECT_PROFILES_PATH",
            "broken.toml",
            "Prefect cannot be loaded with its settings (TOMLDecodeError).",
        ),
        *((command, "PREFECT_SERVER_API_PORT", "canary", PORT_TOLD) for command in SETTINGS_READ),
    ],
)
def test_a_setting_that_prefect_does_not_accept_is_told_by_its_name(
    command: str, name: str, value: str, told: str, tmp_path: Path, taken: str
) -> None:
    """Prefect fails while it is imported; its own traceback and the value are not shown."""
    if value == "broken.toml":
        value = str(tmp_path / value)
        Path(value).write_text("[[[")
    secret = {"EMAILGISTICS_WEBHOOK_SECRET": "s" * 20}  # without one the receiver says so, and looks no further
    found = run(*COMMANDS[command](tmp_path, taken), **{**secret, name: value})
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith(told)
    assert len(found.stderr.splitlines()) == 1
    assert "canary" not in found.stderr


@pytest.mark.parametrize("status", [404, 405])
def test_an_address_without_api_is_told(
    status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What Prefect's server answers beside its API, at once and by every command that asks it."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    monkeypatch.setenv("EMAILGISTICS_API_KEY", "k" * 20)
    monkeypatch.setenv("ATTACHMENTS_URL", tmp_path.as_uri())
    monkeypatch.setenv("NO_PROXY", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}"}):
            for command in (["setup"], ["doctor"], ["status"], ["preview", MESSAGE]):
                assert main(command) == 1
                told = "".join(capsys.readouterr())
                assert f"PREFECT_API_URL is not the address of Prefect's API ({status})." in told, command
                assert "Correct it: a server's ends with /api, such as http://127.0.0.1:4200/api." in told, command
        server.shutdown()


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("status", "SSL_CERT_FILE", "/none"),
        ("setup", "ALL_PROXY", "nonsense://canary"),
        *(
            pytest.param(command, name, value, marks=pytest.mark.soak)
            for command in ("setup", "status", "doctor", "preview", "trigger")
            for name, value in (
                ("SSL_CERT_FILE", "/none"),
                ("SSL_CERT_FILE", __file__),
                ("HTTP_PROXY", "http://canary:abc"),
                ("ALL_PROXY", "nonsense://canary"),
            )
        ),
    ],
)
def test_proxies_and_certificates_that_cannot_be_used_are_told_as_that(
    command: str, name: str, value: str, tmp_path: Path, taken: str
) -> None:
    """In a process of its own, since importing Prefect reads them already; it is no fault of what was to answer.

    Prefect's address is another host's: no proxy is used for this one.
    """
    account = {
        "PREFECT_API_URL": "http://prefect.invalid:4200/api",
        "EMAILGISTICS_API_KEY": "k" * 20,
        "ATTACHMENTS_URL": tmp_path.as_uri(),
        "HOME": str(tmp_path),
    }
    found = run(*COMMANDS[command](tmp_path, taken), **{**account, name: value})
    told = found.stdout + found.stderr
    assert found.returncode == 1
    assert "The proxy or the certificates that the environment names cannot be used (" in told
    assert "Traceback" not in told
    assert "Internal error" not in told
    assert "PREFECT_API_URL is not" not in told
    assert "is not the address of Prefect's API" not in told
    assert "canary" not in told


def test_an_error_that_nobody_foresaw_is_one_line_without_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text may quote a customer's data; where it struck is what a report needs."""

    def fail(*_: object) -> int:
        raise RuntimeError("canary")

    monkeypatch.setenv("ATTACHMENTS_URL", "file:///srv/attachments")
    monkeypatch.setattr("attachments.cli.actions.store_access.open_store", fail)
    assert main(["locate", MESSAGE]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Internal error in the command (RuntimeError at test_command_boundary.py:")
    assert "canary" not in line


def test_a_store_that_does_not_respond_is_not_waited_for() -> None:
    """Its library might retry for minutes."""
    with pytest.raises(CommandFailed, match="The store did not respond within"):
        call_store(threading.Event().wait, timeout=0.1)


@pytest.mark.soak
@pytest.mark.parametrize("command", [["locate", MESSAGE], ["verify"], ["verify", MESSAGE]], ids=" ".join)
def test_a_store_that_does_not_respond_is_an_error(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The endpoint accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = {"endpoint_url": f"http://127.0.0.1:{listener.getsockname()[1]}", "key": "a", "secret": "b"}
        monkeypatch.setenv("ATTACHMENTS_URL", "s3://bucket/folder")
        monkeypatch.setenv("ATTACHMENTS_STORAGE_OPTIONS", json.dumps(options))
        assert main(command) == 1
    assert "The store did not respond within 20 s." in capsys.readouterr().err


# ---- Ctrl-C and readers that leave ----


@contextmanager
def silent(connected: Callable[[], None]) -> Iterator[str]:
    """A server that accepts connections and never responds; it reports the first one."""

    def accept() -> None:
        with suppress(OSError):
            kept.append(listener.accept()[0])
            connected()

    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    for connection in kept:
        connection.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # as left
@pytest.mark.parametrize("command", ["setup", "status", "doctor", "preview", "locate", "trigger", "verify"])
def test_ctrl_c_ends_a_command_with_130_and_without_a_traceback(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it waits for Prefect, the store or the receiver, which do not answer."""
    monkeypatch.setenv("EMAILGISTICS_API_KEY", "k" * 20)
    monkeypatch.setenv("ATTACHMENTS_URL", "s3://bucket/folder")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = signal.getsignal(signal.SIGINT)
    with silent(lambda: os.kill(os.getpid(), signal.SIGINT)) as url:
        options = {"endpoint_url": url, "key": "a", "secret": "b"}
        monkeypatch.setenv("ATTACHMENTS_STORAGE_OPTIONS", json.dumps(options))
        arguments = {"preview": [MESSAGE], "locate": [MESSAGE], "trigger": [MESSAGE, "--url", url]}
        try:
            with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
                assert main([command, *arguments.get(command, [])]) == 130
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a second Ctrl-C would not end it at once"
        finally:
            signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_ctrl_c_in_the_first_moments_ends_the_process_without_a_word() -> None:
    """While modules are imported, from the first of ours on, as the shell knows it: by the signal."""
    code = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[0]:
            os.kill(os.getpid(), signal.SIGINT)
from attachments.cli import console
sys.meta_path.insert(0, Interrupts())
sys.exit(console.main())
"""
    for module in (
        "attachments.cli.main",
        "attachments.cli.command_boundary",
        "attachments.foundation.terminal_text",
        "cyclopts",
    ):
        command = [sys.executable, "-c", f"import sys; sys.argv[:] = [{module!r}, '--help']{code}"]
        found = subprocess.run(
            command, env=process_environment({}), capture_output=True, text=True, check=False, timeout=60
        )
        assert (found.returncode, found.stderr) == (-signal.SIGINT, ""), module


def test_the_command_starts_where_ctrl_c_is_quiet() -> None:
    """Before anything else is imported; and what is imported until the command runs takes no second."""
    (script,) = entry_points(group="console_scripts", name="attachments")
    assert script.value == "attachments.cli.console:main"
    code = "import sys, attachments.cli.main; print(*{'pydantic', 'prefect', 'httpx', 'fsspec'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "\n"


def test_ctrl_c_ends_the_process_at_once() -> None:
    """Whatever its threads wait for."""
    connected = threading.Event()
    with silent(connected.set) as url:
        options = {"endpoint_url": url, "key": "a", "secret": "b"}
        environment = {"ATTACHMENTS_URL": "s3://bucket/x", "ATTACHMENTS_STORAGE_OPTIONS": json.dumps(options)}
        command = [ATTACHMENTS, "verify"]
        with subprocess.Popen(
            command, env=process_environment(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert connected.wait(120)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("is_read", [True, False])
def test_ctrl_c_stops_up_and_what_it_has_started(is_read: bool, tmp_path: Path) -> None:
    """While its set-up waits for Prefect; also when nobody has read its output since it started. The status is 130."""
    connected = threading.Event()
    with silent(connected.set) as url:
        environment = {
            "PREFECT_API_URL": f"{url}/api",
            "EMAILGISTICS_API_KEY": "k" * 20,
            "EMAILGISTICS_WEBHOOK_SECRET": "s" * 20,
            "ATTACHMENTS_URL": (tmp_path / "store").as_uri(),
            "NO_PROXY": "127.0.0.1",
        }
        command = [ATTACHMENTS, "up", "--data", str(tmp_path / "data"), "--port", str(free_port())]
        output = tmp_path / "output"
        with (
            output.open("wb") if is_read else open(unread(), "wb") as out,
            subprocess.Popen(
                command, env=process_environment(environment), stdout=out, stderr=subprocess.PIPE
            ) as process,
        ):
            assert connected.wait(200)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, b"")
    assert processes_of(tmp_path) == []
    if is_read:
        assert "Stopping the setup." in output.read_text()
        assert "Traceback" not in output.read_text()


def unread() -> int:
    """The end for writing of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 141, ""),
        (["status", "--json"], 141, ""),
        (["locate", MESSAGE], 1, "ATTACHMENTS_URL is not set."),
        (["up"], 1, "`attachments up` needs variables"),
    ],
)
def test_a_reader_that_has_left_ends_a_command_silently(arguments: list[str], status: int, said: str) -> None:
    """As `| head -1` leaves; neither standard output nor standard error is read."""
    environment = process_environment({"PREFECT_API_URL": "http://127.0.0.1:9/api", "PYTHONUNBUFFERED": "1"})
    writing = unread()
    with subprocess.Popen(
        [ATTACHMENTS, *arguments], env=environment, stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        _, err = process.communicate(timeout=120)
    assert err.decode().startswith(said)
    assert bool(err) is bool(said)
    assert process.returncode == status


@pytest.mark.parametrize("finishes", [True, False])
def test_output_that_a_full_disk_does_not_take_is_a_failure(finishes: bool, tmp_path: Path) -> None:
    """Also of a command that goes on, such as `setup > file`: without its output nobody knows what it did."""
    done = tmp_path / "done"
    code = (
        "import pathlib, sys; from attachments.cli.command_boundary import run_command\n"
        f"def command(): print('a'); pathlib.Path({str(done)!r}).touch(); return 0\n"
        f"sys.exit(run_command(command, finishes={finishes}))"
    )
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )
    assert ended.returncode == 1
    said = "The output cannot be written (No space left on device)."
    assert ended.stderr == (f"{said} The command completed its work nevertheless.\n" if finishes else f"{said}\n")
    assert done.exists() is finishes
