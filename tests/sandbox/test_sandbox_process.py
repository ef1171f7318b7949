"""The sandbox as a process: how it starts, says where it is, and ends."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import httpx
import pytest

from attachments.sandbox.__main__ import main
from attachments.sandbox.process import SandboxError, running_sandbox
from tests.sandbox.conftest import running_receiver

COMMAND = [sys.executable, "-m", "attachments.sandbox"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_ends_with_the_block_that_runs_it():
    """However the block ends, the process is gone."""
    with running_sandbox() as sandbox:
        assert alive(sandbox.pid)
    assert not alive(sandbox.pid)
    with pytest.raises(ZeroDivisionError), running_sandbox() as sandbox:
        1 / 0  # noqa: B018
    assert not alive(sandbox.pid)


def test_a_sandbox_that_cannot_start_says_why(tmp_path: Path):
    """The error carries what the process printed."""
    with pytest.raises(SandboxError, match="no-such-mail"), running_sandbox(mail=tmp_path / "no-such-mail"):
        pass


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]):
    """An error that a user can correct is one line, not a traceback."""
    with running_sandbox() as sandbox:
        port = sandbox.base_url.split(":")[2].split("/")[0]
        assert main(["--port", port]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"sandbox: cannot listen on 127.0.0.1, port {port}: choose others with --host and --port (Address already in "
        "use)\n"
    )


def test_only_the_option_that_is_wrong_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """With what it holds, and the reason."""
    assert main(["--mail", str(tmp_path / "no-such")]) == 1
    assert capsys.readouterr().err == f"sandbox: --mail: cannot read {tmp_path}/no-such (No such file or directory)\n"
    assert main(["--port-file", str(tmp_path / "no-such" / "port")]) == 1
    assert capsys.readouterr().err.startswith(f"sandbox: --port-file: cannot write {tmp_path}/no-such/port (")


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_cleanly_even_while_it_stalls(tmp_path: Path, ending: signal.Signals, status: int):
    """With a call hanging and a delivery under way: it exits soon, with nothing on stderr and one line on stdout."""
    port_file = tmp_path / "port"
    command = [*COMMAND, "--port-file", str(port_file), "--key", "k"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not port_file.exists():
            assert process.poll() is None
        address = f"http://127.0.0.1:{port_file.read_text().strip()}"
        with httpx.Client(base_url=address, trust_env=False) as client:
            stall = {"fault": {"kind": "delay", "seconds": 60}, "times": None}
            client.post("/_sandbox/faults", json=stall).raise_for_status()
            delivery = {"payload": {}, "url": f"{address}/api/v1/x", "secret": "k", "wait": False, "times": 3}
            client.post("/_sandbox/deliver", json=delivery).raise_for_status()
            while len(client.get("/_sandbox/requests").json()["requests"]) < 3:
                pass
        process.send_signal(ending)
        out, err = process.communicate(timeout=5)
    assert (process.returncode, err) == (status, "")
    assert out == f"Emailgistics sandbox: {address}/api/v1 (0 messages)\n"


def mail_folder(folder: Path, number: int) -> Path:
    for each in range(number):
        text = f"From: canary@x.example\nSubject: canary {each}\nContent-Type: image/gif; name=canary.gif\n\nGIF"
        (folder / f"canary{each}.eml").write_text(text)
    return folder


def answer(status: int, word: str) -> tuple[int, dict[str, str], bytes]:
    return status, {}, json.dumps({"status": word, "message": "canary"}).encode()


def delivered(arguments: list[str], until: str, **environment: str) -> list[str]:
    """What the sandbox prints up to and with the line that begins so; then it is ended."""
    clean = {name: value for name, value in os.environ.items() if "SECRET" not in name}
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=PIPE, stderr=STDOUT, text=True, env={**clean, **environment}
    ) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith(until):
                break
        process.terminate()
        rest = process.communicate(timeout=5)[0]
    assert (process.returncode, rest) == (0, "")
    return lines


def test_it_delivers_its_mail_once_at_the_start(tmp_path: Path):
    """Each message is delivered and told by its key; no name, address or subject is printed."""
    with running_receiver() as receiver:
        arguments = ["--mail", str(mail_folder(tmp_path, 3)), "--deliver-to", receiver.url]
        lines = delivered(arguments, until="delivered", EMAILGISTICS_WEBHOOK_SECRET="s3")
    assert "(3 messages)" in lines[0]
    assert all("success after 1 attempt, last response 200" in line for line in lines[1:4])
    assert lines[4:] == ["delivered 3 of 3 messages"]
    assert "canary" not in "".join(lines).lower()
    assert len({line.split()[1] for line in lines[1:4]}) == 3
    assert [headers["Authorization"] for headers, _, _ in receiver.posts] == ["Bearer s3"] * 3


def test_one_message_is_not_several(tmp_path: Path):
    """In what is printed."""
    with running_receiver() as receiver:
        arguments = ["--mail", str(mail_folder(tmp_path, 1)), "--deliver-to", receiver.url]
        lines = delivered(arguments, until="delivered")
    assert lines[0].endswith("(1 message)")
    assert lines[2:] == ["delivered 1 of 1 message"]


def test_only_what_was_accepted_counts_as_delivered(tmp_path: Path):
    """An answer of 200 may refuse a message too; each kind of failure is counted, and what to do is said."""
    script = [answer(401, "error"), answer(200, "error"), answer(200, "success"), answer(503, "error")]
    with running_receiver(*script) as receiver:
        arguments = ["--mail", str(mail_folder(tmp_path, 4)), "--deliver-to", receiver.url]
        lines = delivered(arguments, until="delivered")
    assert [line.partition(": ")[2] for line in lines[1:5]] == [
        "failed after 1 attempt, last response 401",
        "error after 1 attempt, last response 200",
        "success after 1 attempt, last response 200",
        "failed after 3 attempts, last response 503",
    ]
    assert lines[5].startswith("delivered 1 of 4 messages; 1 rejected (error), 2 failed.")
    assert "restart the sandbox" in lines[5]
    assert "EMAILGISTICS_WEBHOOK_SECRET" in lines[5]


def test_it_waits_for_the_receiver(tmp_path: Path):
    """It can be started first; nothing is posted, and nothing counts as failed, until the receiver listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/webhooks/default"
    command = [*COMMAND, "--mail", str(mail_folder(tmp_path, 2)), "--deliver-to", url]
    with subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True) as process:
        assert process.stdout
        assert "(2 messages)" in process.stdout.readline()
        assert process.stdout.readline() == f"waiting for the receiver at 127.0.0.1:{port}\n"
        with running_receiver(port=port):
            lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
    assert lines[2] == "delivered 2 of 2 messages\n"


@pytest.mark.parametrize(
    ("environment", "arguments", "sent"),
    [
        ({"EMAILGISTICS_WEBHOOK_SECRET": " a,b "}, [], "Bearer a,b"),
        ({"EMAILGISTICS_WEBHOOK_SECRET_FILE": "{file}"}, [], "Bearer from-file"),
        ({"EMAILGISTICS_WEBHOOK_SECRET": " "}, [], None),
        ({}, [], None),
    ],
    ids=["variable", "file", "blank", "none"],
)
def test_the_secret_comes_from_the_environment(
    tmp_path: Path, environment: dict[str, str], arguments: list[str], sent: str | None
):
    """So that it shows in no list of processes; the variable is sent whole, for a secret may have a comma in it."""
    secret = tmp_path / "secret"
    secret.write_text("from-file\n")
    with running_receiver() as receiver:
        arguments = [*arguments, "--mail", str(mail_folder(tmp_path, 1)), "--deliver-to", receiver.url]
        given = {name: value.format(file=secret) for name, value in environment.items()}
        delivered(arguments, until="delivered", **given)
    assert [headers.get("Authorization") for headers, _, _ in receiver.posts] == [sent]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--deliver-to", "127.0.0.1:8080"], "http://127.0.0.1:8080/webhooks/default"),
        (["--deliver-to", "http://[::1/"], "http://127.0.0.1:8080/webhooks/default"),
        (["--deliver-to", "http://x:99999/"], "http://127.0.0.1:8080/webhooks/default"),
        (["--deliver-to", "http://a..b/"], "http://127.0.0.1:8080/webhooks/default"),
        (["--port", "70000"], "0 to 65535"),
        (["--limit", "many"], "give a number of calls"),
        (["--window", "long"], "give a number of seconds"),
        (["--secret", "s3"], "Unknown option"),  # a list of processes would show it
    ],
)
def test_a_wrong_option_is_told_at_once(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str):
    """With what to write instead."""
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"a\nb", b"\xff"], ids=["missing", "two lines", "no text"])
def test_a_secret_file_that_cannot_be_used_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
):
    """Before anything is delivered without it."""
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    monkeypatch.delenv("EMAILGISTICS_WEBHOOK_SECRET", raising=False)
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET_FILE", str(tmp_path / "secret"))
    assert main(["--deliver-to", "http://127.0.0.1:1/"]) == 1
    assert "EMAILGISTICS_WEBHOOK_SECRET_FILE" in capsys.readouterr().err


def test_a_place_without_mail_is_told(tmp_path: Path):
    """With what the sandbox can read."""
    (tmp_path / "a.msg").write_bytes(b"\xd0\xcf\x11\xe0")
    lines = delivered(["--mail", str(tmp_path)], until="Emailgistics")
    assert lines[0] == (
        f"no mail found in {tmp_path}; the sandbox reads .eml and .emlx files, mbox files, Maildir and MH folders"
    )
    assert "(0 messages)" in lines[1]


def test_the_printed_key_is_the_one_of_the_store(tmp_path: Path):
    """A message is named by the first 32 hex digits of the SHA-256 of its id."""
    mail_folder(tmp_path, 1)
    with running_receiver(answer(404, "error")) as receiver, running_sandbox(mail=tmp_path) as sandbox:
        (message,) = sandbox.control.get("messages").json()["messages"]
        lines = delivered(["--mail", str(tmp_path), "--deliver-to", receiver.url], until="delivered")
    key = hashlib.sha256(message["id"].encode()).hexdigest()[:32]
    assert lines[1].startswith(f"message {key}: failed after 1 attempt")


def test_it_loads_nothing_of_the_product():
    """Neither Prefect nor any other part of this project is imported: a misreading cannot hide in both."""
    code = (
        "import sys, attachments.sandbox.__main__, attachments.sandbox.process\n"
        "own = [m for m in sys.modules if m.partition('.')[0] in ('attachments', 'blocks', 'flows', 'prefect')]\n"
        "print([m for m in own if m != 'attachments' and not m.startswith('attachments.sandbox')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
