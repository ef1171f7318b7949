"""`attachments receive`, `trigger` and `locate`: what they say, and their exit status."""

import json
import os
import shlex
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyrage
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from attachments.cli.main import main
from attachments.receiver.inbox import Inbox
from attachments.receiver.secrets import split_secrets
from attachments.storage import Manifest, ManifestAttachment, attachment_key, message_key, open_store
from tests.servers.certificates import make_certificate

COMMAND = str(Path(sys.executable).with_name("attachments"))
SECRET = "cli-canary-secret"
MESSAGE = "AAMkAGI1/xyz="


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HOME": str(tmp_path),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml"),
        "EMAILGISTICS_WEBHOOK_SECRET": SECRET,
        "ATTACHMENTS_INBOX": str(tmp_path / "inbox.sqlite"),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


# ---- receive ----


def refused(found: subprocess.CompletedProcess[str]) -> str:
    """What it says on its last line; it must be the reason, not a traceback, and hold no secret."""
    assert found.returncode == 1, found.stderr
    assert "Traceback" not in found.stderr
    assert SECRET not in found.stderr + found.stdout
    return found.stderr.splitlines()[-1]


@pytest.fixture
def receive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `attachments receive` within this process, where it must refuse to start; what it said."""
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("ATTACHMENTS_INBOX", str(tmp_path / "inbox.sqlite"))

    def receive(*options: str, prefect: str | None = "http://127.0.0.1:9/api") -> str:
        with temporary_settings({PREFECT_API_URL: prefect}):
            code = main(["receive", *options])
        said = capsys.readouterr()
        return refused(subprocess.CompletedProcess([], code, said.out, said.err))

    return receive


@pytest.mark.parametrize("secret", [None, "", "  ", ",", " , ,"])
def test_receive_needs_a_secret(environment: dict[str, str], secret: str | None) -> None:
    """Commas and blanks are none. Nothing is opened before that is clear."""
    del environment["EMAILGISTICS_WEBHOOK_SECRET"]
    if secret is not None:
        environment["EMAILGISTICS_WEBHOOK_SECRET"] = secret
    said = refused(run(environment, "receive"))
    assert "EMAILGISTICS_WEBHOOK_SECRET" in said
    assert "--insecure" in said
    assert not Path(environment["ATTACHMENTS_INBOX"]).exists()


@pytest.mark.parametrize("url", [None, "not a url", "127.0.0.1:4200/api"])
def test_receive_needs_prefects_address(receive: Callable[..., str], url: str | None) -> None:
    """Without one Prefect would start a server of its own, unseen."""
    assert "PREFECT_API_URL" in receive("--port", "0", prefect=url)


def test_receive_tells_of_a_taken_port(environment: dict[str, str]) -> None:
    """Which one, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(run(environment, "receive", "--port", str(port)))
    assert f"port {port}" in said
    assert "in use" in said


@pytest.mark.parametrize(
    "options", [("--host", "no.such.host.invalid", "--port", "0"), ("--host", "192.0.2.1", "--port", "0")]
)
def test_receive_tells_where_it_cannot_listen(receive: Callable[..., str], options: tuple[str, ...]) -> None:
    """A name that nobody knows, or an address that this machine does not have."""
    assert "Cannot listen on" in receive(*options)


def _directory(inbox: Path) -> None:
    inbox.mkdir()


def _corrupt(inbox: Path) -> None:
    inbox.write_bytes(b"\x00garbage" * 1000)


def _anothers(inbox: Path) -> None:
    connection = sqlite3.connect(inbox)
    connection.execute("CREATE TABLE flow_run (x)")
    connection.close()


def _in_a_place_that_takes_no_files(inbox: Path) -> None:
    inbox.symlink_to("/proc/no-such-folder/inbox.sqlite")


@pytest.mark.parametrize("spoil", [_directory, _corrupt, _anothers, _in_a_place_that_takes_no_files])
def test_receive_tells_of_an_inbox_that_cannot_be_used(
    receive: Callable[..., str], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """A directory, a damaged file, another program's database, a place where nothing can be written."""
    inbox = tmp_path / "inbox.sqlite"
    spoil(inbox)
    said = receive("--port", "0")
    assert f"The inbox {inbox} cannot be opened" in said
    assert "ATTACHMENTS_INBOX" in said


def test_receive_tells_of_an_inbox_that_it_may_not_write(environment: dict[str, str], tmp_path: Path) -> None:
    """A file of another user's."""
    inbox = Path(environment["ATTACHMENTS_INBOX"])
    Inbox(inbox).close()
    inbox.chmod(0o444)
    tmp_path.chmod(0o555)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from attachments.receiver.inbox import Inbox, InboxUnavailable\n"
        "if os.getuid() == 0:\n"
        "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    Inbox(Path(sys.argv[1]))\n"
        "except InboxUnavailable as error:\n"
        "    sys.exit(str(error))\n"
    )
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)  # pytest's own folders are closed to other users
    command = [sys.executable, "-c", script, str(inbox)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    tmp_path.chmod(0o755)
    assert found.returncode == 1
    assert f"The inbox {inbox} cannot be opened (attempt to write a readonly database)" in found.stderr


def test_receive_tells_of_a_certificate_that_it_cannot_read(receive: Callable[..., str], tmp_path: Path) -> None:
    """No such file, no PEM, or a key alone."""
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    for options in (
        ("--tls-certificate", str(tmp_path / "none.pem"), "--tls-key", str(rubbish)),
        ("--tls-certificate", str(rubbish), "--tls-key", str(rubbish)),
        ("--tls-key", str(rubbish)),
    ):
        assert "certificate" in receive("--port", "0", *options)


def test_receive_tells_of_a_certificate_without_its_key(receive: Callable[..., str]) -> None:
    """It names the option that is missing."""
    assert "give its file with --tls-key" in receive("--tls-certificate", "cert.pem")


def listening(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The address of a receiver once it listens, and its log until then."""
    assert process.stderr is not None
    log = ""
    while "Listening on" not in log:
        line = process.stderr.readline()
        assert line, log
        log += line
    return log.split("Listening on ")[1].split()[0], log


def test_insecure_needs_to_be_said_and_is_told(environment: dict[str, str]) -> None:
    """With --insecure it starts without a secret, and the log warns; SIGTERM ends it with 0."""
    del environment["EMAILGISTICS_WEBHOOK_SECRET"]
    command = [COMMAND, "receive", "--port", "0", "--insecure"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        url, log = listening(process)
        assert run(environment, "trigger", MESSAGE, "--url", url).returncode == 0
        process.terminate()
        assert process.wait(15) == 0
    assert "insecure" in log


@pytest.mark.parametrize(
    ("value", "secrets"),
    [
        ("abc", ["abc"]),
        ("abc,def", ["abc,def", "abc", "def"]),
        ("abc,", ["abc,", "abc"]),
        (",abc", [",abc", "abc"]),
        (" , ", []),
        ("", []),
    ],
)
def test_a_value_with_a_comma_is_a_secret_as_a_whole_and_in_parts(value: str, secrets: list[str]) -> None:
    """Also where the comma is at an end."""
    assert split_secrets(value) == secrets


@pytest.mark.parametrize(
    ("secret", "is_told"), [("q7k-9", True), ("a-long-and-random-word,another-long-random-word", False)]
)
def test_a_secret_with_a_comma_is_valid_as_a_whole_and_a_short_one_is_told(
    environment: dict[str, str], secret: str, is_told: bool
) -> None:
    """`attachments trigger` sends the whole and is let in; the log warns of what can be guessed, unquoted."""
    environment["EMAILGISTICS_WEBHOOK_SECRET"] = secret
    with subprocess.Popen(
        [COMMAND, "receive", "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        url, log = listening(process)
        assert run(environment, "trigger", MESSAGE, "--url", url).returncode == 0
        process.terminate()
        process.wait(15)
    assert ("shorter than 16 characters" in log) is is_told
    assert secret not in log


@pytest.mark.parametrize(
    "secret",
    ["abc,def", "x,a-long-and-random-word", "a-long-and-random-word, fifteen-letters", "Xk29,fjw83jf83hfu2kdk"],
)
def test_receive_does_not_start_with_half_a_secret(
    secret: str, receive: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part opens the receiver by itself; the doctor says so too, and neither quotes it."""
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", secret)
    said = receive("--port", "0")
    assert "a comma-separated part of fewer than 16 characters" in said
    assert "replace it with one that contains none" in said
    assert secret not in said


# ---- trigger ----


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver that answers everything alike; the URL, and what was posted."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append({"headers": dict(self.headers), "document": json.loads(content)})
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing to print."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/webhooks/default", posted
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine's own reaches a command."""
    for name in ("EMAILGISTICS_WEBHOOK_SECRET", "ATTACHMENTS_URL", "ATTACHMENTS_STORAGE_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


REFUSED = b'{"status": "error", "message": "The secret is missing or wrong. Set the receiver\'s secret in Admin."}'


def test_trigger_posts_what_emailgistics_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented fields but `received` and `hasAttachments`; it prints what the receiver says.

    The secret goes as it is set. A comma may be part of it: half of it would show nothing of how Emailgistics fares.
    """
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", " neues-wört , old-one ")
    with answering(200, b'{"status": "success", "message": "Accepted."}') as (url, posted):
        assert main(["trigger", MESSAGE, "--url", url, "--mailbox", "shared@example.com"]) == 0
    assert capsys.readouterr().out == "Accepted.\n"
    (request,) = posted
    assert request["headers"]["Authorization"].encode("latin-1") == "Bearer neues-wört , old-one".encode()
    assert request["headers"]["Content-Type"] == "application/json"
    document = request["document"]
    assert datetime.fromisoformat(document.pop("timestamp")).tzinfo is not None
    assert document == {"id": MESSAGE, "event": "received", "mailbox": "shared@example.com"}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            401,
            REFUSED,
            "HTTP 401: The receiver requires a secret, and none was sent. Set EMAILGISTICS_WEBHOOK_SECRET here",
        ),
        (200, b'{"status": "error", "message": "No."}', "HTTP 200: No."),
        (503, b'{"status": "error", "message": "Full."}', "HTTP 503: Full."),
        (200, b"<html>", "not a receiver"),
        (200, b"[]", "not a receiver"),
        (200, b'{"status": "success"}', "not a receiver"),
        (200, b"[" * 100_000, "not a receiver"),
        (502, b"\xff\xfe", "HTTP 502"),
    ],
)
def test_trigger_fails_when_the_answer_is_no_success(
    capsys: pytest.CaptureFixture[str], status: int, body: bytes, said: str
) -> None:
    """Exit status 1, and the reason on stderr."""
    with answering(status, body) as (url, _):
        assert main(["trigger", MESSAGE, "--url", url]) == 1
    assert said in capsys.readouterr().err


def test_trigger_with_a_wrong_secret_says_where_to_set_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that it sends is its own environment's, not the one in Admin."""
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", "not-this-one")
    with answering(401, REFUSED) as (url, _):
        assert main(["trigger", MESSAGE, "--url", url]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "HTTP 401: The receiver refuses the secret that was sent. Set EMAILGISTICS_WEBHOOK_SECRET here"
    )
    assert "Admin" not in said
    assert "not-this-one" not in said


def test_trigger_says_that_the_secret_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line break inside of it fits into no header; nothing is sent, and the receiver is not blamed."""
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", "first-half\nsecond-half")
    with answering(200, b"{}") as (url, posted):
        assert main(["trigger", MESSAGE, "--url", url]) == 1
    said = capsys.readouterr().err
    assert said.startswith("EMAILGISTICS_WEBHOOK_SECRET contains a line break")
    assert "half" not in said
    assert posted == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x", "not a url", "http://[", "127.0.0.1:8080", "ftp://127.0.0.1/x", ""]
)
def test_trigger_fails_when_nobody_answers(capsys: pytest.CaptureFixture[str], url: str) -> None:
    """A closed port, or what is no URL."""
    assert main(["trigger", MESSAGE, "--url", url]) == 1
    said = capsys.readouterr().err
    assert "not a valid URL" in said or "No receiver responds" in said


@pytest.mark.parametrize("around", [" ", "\n", "\r\n", "\t\xa0", "\ufeff"])
def test_blanks_around_a_pasted_id_are_left_out(store: Path, capsys: pytest.CaptureFixture[str], around: str) -> None:
    """They come with copying, and would make another message of it."""
    with answering(200, b'{"status": "success", "message": "Accepted."}') as (url, posted):
        assert main(["trigger", f"{around}{MESSAGE}{around}", "--url", url]) == 0
    assert posted[0]["document"]["id"] == MESSAGE
    assert main(["locate", f"{around}{MESSAGE}{around}"]) == 0


@pytest.mark.parametrize("command", ["trigger", "locate", "verify", "preview", "decrypt"])
@pytest.mark.parametrize(
    ("message_id", "mistake"),
    [("AAMkAGI1\u2026", "not ASCII"), ("AAMk AGI1", "a blank"), ("AAMk\u200bAGI1", "a blank"), ("\udcff", "a blank")],
)
def test_an_id_that_was_badly_copied_is_a_wrong_call(
    capsys: pytest.CaptureFixture[str], command: str, message_id: str, mistake: str
) -> None:
    """Shortened with dots, or broken by a terminal: no message has it, and nothing is asked."""
    options = ["--identity", "x", "--to", "x"] if command == "decrypt" else []
    assert main([command, message_id, *options]) == 2
    said = capsys.readouterr().err
    assert "this is not a message id" in said
    assert mistake in said


@pytest.mark.parametrize(("trusted", "said"), [(False, "set SSL_CERT_FILE to a PEM file"), (True, "HTTP 501")])
def test_trigger_tells_of_a_certificate_that_it_does_not_trust(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trusted: bool,
    said: str,
) -> None:
    """And the way that it names helps."""
    certificate = make_certificate(tmp_path / "self-signed.pem")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HTTPServer(("127.0.0.1", 0), Silent) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            assert main(["trigger", MESSAGE, "--url", f"https://127.0.0.1:{server.server_port}/webhooks/default"]) == 1
        finally:
            server.shutdown()
            thread.join()
    told = capsys.readouterr().err
    assert said in told
    assert ("The server's certificate is not accepted here (self-signed certificate)" in told) is not trusted


class Silent(BaseHTTPRequestHandler):
    """Answers 501 to everything, and prints nothing."""

    def log_message(self, *_: Any) -> None:
        """Nothing to print."""


def test_trigger_tells_of_a_port_that_speaks_plain_http(capsys: pytest.CaptureFixture[str]) -> None:
    """No certificate helps there."""
    with answering(200, b"{}") as (url, _):
        assert main(["trigger", MESSAGE, "--url", url.replace("http:", "https:")]) == 1
    assert "if it uses plain HTTP, begin the URL with http://" in capsys.readouterr().err


# ---- locate ----


def _stored(root: Path) -> Path:
    """A store with one message's manifest; its root."""
    key, part = message_key(MESSAGE), attachment_key("part-1")
    entries = (
        ManifestAttachment(
            id="part-1",
            attachment_key=part,
            outcome="stored",
            key=f"{key}/{part}/Rechnung 日本.pdf",
            bytes=1234567,
            sha256="0" * 64,
        ),
        ManifestAttachment(id="part-2", attachment_key=attachment_key("part-2"), outcome="filtered", rule="image/*"),
        ManifestAttachment(id="part-3", attachment_key=attachment_key("part-3"), outcome="failed", code="server-error"),
    )
    manifest = Manifest(
        message_id=MESSAGE, message_key=key, updated=datetime(2026, 11, 22, tzinfo=UTC), attachments=entries
    )
    open_store(root.as_uri()).update_manifest(key, lambda _: manifest)
    return root


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTACHMENTS_URL", (tmp_path / "store").as_uri())
    return _stored(tmp_path / "store")


def test_locate_tells_where_a_messages_files_are(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest's address, then each attachment with its outcome, size and place, or why there is none."""
    assert main(["locate", MESSAGE]) == 0
    address, first, second, third = capsys.readouterr().out.splitlines()
    assert shlex.split(address) == [str(store / message_key(MESSAGE) / "manifest.json")]
    path = store / message_key(MESSAGE) / attachment_key("part-1") / "Rechnung 日本.pdf"
    assert shlex.split(first) == ["stored", "1,234,567", str(path)]
    assert second.split() == ["filtered", "0", attachment_key("part-2"), "image/*"]
    assert third.split() == ["failed", "0", attachment_key("part-3"), "server-error"]


@pytest.mark.parametrize("written", [str.lower, str.upper, " {}\n".format])
def test_a_key_names_a_message_as_its_id_does(
    store: Path, capsys: pytest.CaptureFixture[str], written: Callable[[str], str]
) -> None:
    """Logs, run names and events show the key; a webhook gets the id, which the manifest knows."""
    key = written(message_key(MESSAGE))
    said = []
    for named in (MESSAGE, key):
        assert main(["locate", named]) == 0
        assert main(["verify", named]) == 1  # the manifest alone is there
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    with answering(200, b'{"status": "success", "message": "Accepted."}') as (url, posted):
        assert main(["trigger", key, "--url", url]) == 0
    assert posted[0]["document"]["id"] == MESSAGE


@pytest.mark.parametrize("named", [[], [MESSAGE], [message_key(MESSAGE)]])
def test_verify_prints_a_command_that_can_be_pasted(
    store: Path, capsys: pytest.CaptureFixture[str], named: list[str]
) -> None:
    """It runs the download again, with the id, which the manifest knows; without either it says what is needed."""
    assert main(["verify", *named]) == 1
    command = shlex.split(capsys.readouterr().out.splitlines()[1])
    assert command[:4] == ["prefect", "deployment", "run", "download-attachments/default"]
    assert command[4:] == ["--param", f'message_id="{MESSAGE}"', "--param", "force=true"]
    (store / message_key(MESSAGE) / "manifest.json").write_text("{")
    assert main(["verify", *named]) == 1
    assert ("again needs the message's id," in capsys.readouterr().out) == (named != [MESSAGE])


def test_a_key_without_a_manifest_is_told_to_need_the_id(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is sent."""
    key = message_key("never seen")
    with answering(200, b"{}") as (url, posted):
        assert main(["trigger", key, "--url", url]) == 1
    assert posted == []
    assert f"{key} has the form of a message key, and the store has no manifest" in capsys.readouterr().err
    assert main(["locate", key]) == 1
    assert f"There is no manifest of message {key} in {store.as_uri()}: the message" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["{store}/{key}/manifest.json", "emailgistics.message.{key}"])
def test_what_a_command_or_prefect_shows_names_its_message(
    store: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """The path that `locate` prints, and the resource of an event; `trigger` then posts the message's id."""
    named = form.format(store=store, key=message_key(MESSAGE))
    assert main(["locate", named]) == 0
    place = shlex.split(capsys.readouterr().out.splitlines()[0])
    assert main(["locate", *place]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[0]) == place
    with answering(200, b'{"status": "success", "message": "Accepted"}') as (url, posted):
        assert main(["trigger", named, "--url", url]) == 0
    assert posted[0]["document"]["id"] == MESSAGE


@pytest.mark.parametrize("command", ["locate", "verify", "decrypt", "trigger"])
def test_the_name_of_a_run_is_told_to_be_a_short_key(
    store: Path, capsys: pytest.CaptureFixture[str], command: str, tmp_path: Path
) -> None:
    """It is the beginning of the key, and is not taken for an id of which nothing is stored."""
    identity = tmp_path / "identity"
    identity.write_text(str(pyrage.x25519.Identity.generate()))
    short = message_key(MESSAGE)[:12]
    with answering(200, b"{}") as (url, posted):
        more = {"decrypt": ["--identity", str(identity), "--to", str(tmp_path)], "trigger": ["--url", url]}
        assert main([command, short, *more.get(command, [])]) == 1
    assert posted == []
    assert capsys.readouterr().err == (
        f"{short} is the beginning of a message key, as a run's name has it; give the whole key of 32 hex digits, or "
        "the message's id: in the Prefect UI the run's parameters have the id, and its artifact and event the key\n"
    )


def test_a_short_key_may_be_an_id(store: Path) -> None:
    """Ids are opaque: what has a manifest as an id is one."""
    odd = "0123456789ab"
    manifest = Manifest(message_id=odd, message_key=message_key(odd), updated=datetime(2026, 11, 22, tzinfo=UTC))
    opened = open_store(store.as_uri())
    opened.update_manifest(message_key(odd), lambda _: manifest)
    assert main(["locate", odd]) == 0
    assert opened.message_id(odd) == odd


def test_an_id_that_looks_like_a_key_is_an_id(store: Path) -> None:
    """Ids are opaque: what has no manifest under it as a key is looked for as an id."""
    odd = "0123456789abcdef" * 2
    manifest = Manifest(message_id=odd, message_key=message_key(odd), updated=datetime(2026, 11, 22, tzinfo=UTC))
    open_store(store.as_uri()).update_manifest(message_key(odd), lambda _: manifest)
    assert main(["locate", odd]) == 0


def test_locate_says_what_was_purged_and_when(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was there; its record is."""
    moment = datetime(2027, 12, 1, 23, 30, tzinfo=UTC)

    def purged(known: Manifest | None) -> Manifest:
        assert known is not None
        return known.model_copy(
            update={"attachments": tuple(entry.as_purged(moment) for entry in known.attachments[:1])}
        )

    open_store(store.as_uri()).update_manifest(message_key(MESSAGE), purged)
    assert main(["locate", MESSAGE]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert (line[0], line[1], line[-1]) == ("purged", "1,234,567", "2027-12-01")


def test_locate_prints_the_manifest_as_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a program to read."""
    assert main(["locate", MESSAGE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["message_id"] == MESSAGE


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_locate_lets_no_sender_move_the_cursor(
    store: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """Nor turn a line round: a manifest keeps a name as it was sent."""

    def renamed(known: Manifest | None) -> Manifest:
        assert known is not None
        hostile = {"name": "\x9b2Jfdp.\u202eexe", "rule": "a\x1b[2J\u202e\nstored"}
        return known.model_copy(update={"attachments": (known.attachments[0].model_copy(update=hostile),)})

    open_store(store.as_uri()).update_manifest(message_key(MESSAGE), renamed)
    assert main(["locate", MESSAGE, *options]) == 0
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "u202e" in shown


def test_locate_prints_on_any_terminal(store: Path, environment: dict[str, str]) -> None:
    """A file name that the terminal cannot show is escaped, not an error."""
    url = {"ATTACHMENTS_URL": store.as_uri(), "PYTHONIOENCODING": "ascii"}
    found = run({**environment, **url}, "locate", MESSAGE)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Rechnung \\u65e5\\u672c.pdf" in found.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ATTACHMENTS_URL": ""}, "ATTACHMENTS_URL is not set"),
        ({"ATTACHMENTS_URL": "gopher://x"}, "gopher"),
        ({"ATTACHMENTS_STORAGE_OPTIONS": "{"}, "ATTACHMENTS_STORAGE_OPTIONS"),
        ({"ATTACHMENTS_STORAGE_OPTIONS": "[]"}, "ATTACHMENTS_STORAGE_OPTIONS"),
        ({"ATTACHMENTS_STORAGE_OPTIONS": '{"no-such": 1}'}, "no-such"),
    ],
)
def test_locate_fails_when_it_is_not_set_up(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, str], said: str
) -> None:
    """Exit status 1, and which variable to correct."""
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert main(["locate", MESSAGE]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["locate", "trigger"])
def test_an_empty_id_is_a_wrong_call(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """A shell variable that is not set must not look like a message that is not known."""
    assert main([command, ""]) == 2
    assert "id is empty" in capsys.readouterr().err


@pytest.mark.parametrize("message_id", ["never-seen", "x" * 5000])
def test_locate_fails_for_a_message_that_it_does_not_know(
    store: Path, capsys: pytest.CaptureFixture[str], message_id: str
) -> None:
    """Exit status 1; the message is told by its key."""
    assert main(["locate", message_id]) == 1
    assert message_key(message_id) in capsys.readouterr().err


def test_locate_fails_when_the_manifest_is_damaged(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 and a line that says so, not a traceback."""
    (store / message_key(MESSAGE) / "manifest.json").write_text("{")
    assert main(["locate", MESSAGE]) == 1
    assert "manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["locate"],
        ["locate", ""],
        ["trigger", " "],
        ["receive", "--port", "x"],
        ["receive", "--port", "99999"],
        ["receive", "--port", "80.5"],
        ["verify", "--cl"],
        ["status", "--js"],
    ],
)
def test_a_wrong_call_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It names the help. Options have no short forms: they might mean another one tomorrow."""
    assert main(arguments) == 2
    assert " --help`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "--older-than", "24h"], "such as 24 or 0.5"),
        (["verify", "--older-than", "abc"], "such as 24 or 0.5"),
        (["verify", "--at-once", "x"], "a whole number from 1 to 64"),
        (["receive", "--port", "http"], "a number from 0 to 65535"),
        (["receive", "--wait", "long"], "write 0 to 95 seconds, because"),
    ],
)
def test_an_option_that_is_no_number_is_told_what_to_write(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """In words, not as the name of a type."""
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_the_sandbox_reads_its_own_options(environment: dict[str, str]) -> None:
    """`attachments sandbox --help` shows the sandbox's options, and an unknown one is a wrong call."""
    shown = run(environment, "sandbox", "--help")
    assert shown.returncode == 0
    assert "--mail PATH" in shown.stdout
    assert run(environment, "sandbox", "--no-such-option").returncode == 2
