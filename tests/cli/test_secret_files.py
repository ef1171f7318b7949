"""Secrets that stand in files: what `<name>_FILE` names is used as if the variable had been set."""

import os
import subprocess
from pathlib import Path

import pytest

from attachments.cli.command_boundary import CommandFailed
from attachments.cli.main import main
from attachments.cli.secret_files import MAX_SIZE, SECRETS, read_secret_files
from tests.cli.test_commands import COMMAND, MESSAGE, listening, run


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_read_from_its_file(name: str, tmp_path: Path) -> None:
    """Without the line's end that an editor leaves. Where the variable is empty, the file counts."""
    file = tmp_path / "secret"
    file.write_text("a secret, with a comma\n")
    environment = {name: "", f"{name}_FILE": str(file), "HOME": "/"}
    read_secret_files(environment)
    assert environment == {name: "a secret, with a comma", "HOME": "/"}
    read_secret_files(environment)
    assert environment[name] == "a secret, with a comma"


@pytest.mark.parametrize("unset", [{}, {"EMAILGISTICS_API_KEY_FILE": ""}, {"EMAILGISTICS_API_KEY_FILE": " "}])
def test_without_a_file_the_environment_stays_as_it_is(unset: dict[str, str]) -> None:
    """An empty variable is as good as none."""
    environment = {"EMAILGISTICS_API_KEY": "key", **unset}
    read_secret_files(environment)
    assert environment == {"EMAILGISTICS_API_KEY": "key", **unset}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read (No such file or directory). Correct the path"),
        (b"", "is empty. Write the secret into it"),
        (b" \n", "is empty. Write the secret into it"),
        (b"\xff\xfe", "is too long or not text, so it is not a secret."),
        (b"a\0b", "is too long or not text, so it is not a secret."),
        (b"x" * (MAX_SIZE + 1), "is too long or not text, so it is not a secret."),
    ],
)
def test_a_file_that_holds_no_secret_is_told(content: bytes | None, text: str, tmp_path: Path) -> None:
    """By the variable, and without what stands in the file."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandFailed) as caught:
        read_secret_files({"EMAILGISTICS_API_KEY_FILE": str(file)})
    assert str(caught.value).startswith("The file that EMAILGISTICS_API_KEY_FILE names ")
    assert text in str(caught.value)


@pytest.mark.parametrize("path", ["/", "\udcff", "a\0b", "x" * 5000])
def test_a_path_that_names_no_file_is_told(path: str) -> None:
    """Whatever the variable holds."""
    with pytest.raises(CommandFailed, match="cannot be read"):
        read_secret_files({"EMAILGISTICS_API_KEY_FILE": path})


def test_a_secret_that_is_said_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which of the two counts would be a guess."""
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", "one")
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET_FILE", str(tmp_path / "another"))
    assert main(["trigger", MESSAGE]) == 1
    expected = "EMAILGISTICS_WEBHOOK_SECRET and EMAILGISTICS_WEBHOOK_SECRET_FILE are both set. Keep one of the two.\n"
    assert capsys.readouterr().err == expected


def test_receiver_and_trigger_read_their_secrets_from_files(tmp_path: Path) -> None:
    """Nothing of them is in the receiver's environment, where every process of its user could read it."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "ATTACHMENTS_INBOX": str(tmp_path / "inbox.sqlite"),
    }
    for name, secret in (
        ("EMAILGISTICS_WEBHOOK_SECRET", "a-long-enough-secret"),
        ("PREFECT_API_AUTH_STRING", "u:long"),
    ):
        (tmp_path / name).write_text(f"{secret}\n")
        environment[f"{name}_FILE"] = str(tmp_path / name)
    with subprocess.Popen(
        [COMMAND, "receive", "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        url, log = listening(process)
        held = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"_FILE=" in held
        assert b"long" not in held.replace(str(tmp_path).encode(), b"")
        assert run(environment, "trigger", MESSAGE, "--url", url).returncode == 0
        (tmp_path / "EMAILGISTICS_WEBHOOK_SECRET").write_text("another-long-secret")
        refused = run(environment, "trigger", MESSAGE, "--url", url)
        process.terminate()
        process.wait(15)
    assert "refuses the secret" in refused.stderr
    assert "long" not in log
