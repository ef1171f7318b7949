"""The sandbox as a process: how it starts, says where it is, and ends."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from attachments.sandbox.__main__ import main
from attachments.sandbox.process import SandboxError, running_sandbox

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
    """An error that a user can mend is one line, not a traceback."""
    with running_sandbox() as sandbox:
        port = sandbox.base_url.split(":")[2].split("/")[0]
        assert main(["--port", port]) == 1
    assert "Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_even_while_it_stalls(tmp_path: Path, ending: signal.Signals):
    """With a call hanging and a delivery under way: exit status 0 soon, nothing on stderr, one line on stdout."""
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
    assert (process.returncode, err) == (0, "")
    assert out == f"Emailgistics sandbox: {address}/api/v1 (0 messages)\n"


def test_it_delivers_its_mail_once_at_the_start(tmp_path: Path):
    """Each message is delivered and told by its key; no name, address or subject is printed."""
    for number in range(3):
        text = f"From: canary@x.example\nSubject: canary {number}\nContent-Type: image/gif; name=canary.gif\n\nGIF"
        (tmp_path / f"canary{number}.eml").write_text(text)
    with running_sandbox(limit=None) as target:
        url = f"{target.base_url}/hook"
        command = [*COMMAND, "--mail", str(tmp_path), "--deliver-to", url, "--secret", target.key]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            lines = [process.stdout.readline() for _ in range(5)]
            process.terminate()
            rest = process.communicate(timeout=5)[0]
        got = target.control.requests()
    assert (process.returncode, rest) == (0, "")
    assert "(3 messages)" in lines[0]
    assert all("failed after 1 attempts, last answer 404" in line for line in lines[1:4])
    assert "delivered 3 messages" in lines[4]
    assert "canary" not in "".join(lines).lower()
    assert len({line.split()[1] for line in lines[1:4]}) == 3
    assert [row["method"] for row in got] == ["POST"] * 3


def test_the_printed_key_is_the_one_of_the_store(tmp_path: Path):
    """A message is named by the first 32 hex digits of the SHA-256 of its id."""
    (tmp_path / "a.eml").write_text("Subject: x\n\ny")
    command = [*COMMAND, "--mail", str(tmp_path), "--deliver-to", "http://127.0.0.1:1/"]
    with (
        running_sandbox(mail=tmp_path) as sandbox,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        (message,) = sandbox.control.get("messages").json()["messages"]
        lines = [process.stdout.readline() for _ in range(2)]
        process.terminate()
    key = hashlib.sha256(message["id"].encode()).hexdigest()[:32]
    assert lines[1].startswith(f"message {key}: failed after 3 attempts")


def test_it_loads_nothing_of_the_product():
    """Neither Prefect nor any other part of this project is imported: a misreading cannot hide in both."""
    code = (
        "import sys, attachments.sandbox.__main__, attachments.sandbox.process\n"
        "own = [m for m in sys.modules if m.partition('.')[0] in ('attachments', 'blocks', 'flows', 'prefect')]\n"
        "print([m for m in own if m != 'attachments' and not m.startswith('attachments.sandbox')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
