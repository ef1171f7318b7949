"""The command line itself: help, version, completion, colours, wrong calls."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from attachments.cli.main import COMMANDS, app, main
from attachments.demo.processes import process_environment

NAMES = sorted(command.__name__ for commands in COMMANDS.values() for command in commands)
HEAVY = ("prefect", "pydantic", "httpx", "fsspec", "aiohttp", "starlette")


def test_the_help_lists_every_command_below_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    """With one line of what it does."""
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for title in COMMANDS:
        assert f"─ {title} ─" in shown
    for name in NAMES:
        assert re.search(rf"^│ {name} +[A-Z]", shown, re.MULTILINE), name


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_has_examples_that_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each example is read without a mistake, and each argument is explained."""
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "None" not in shown
    arguments = app[name].assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True)
    assert all(argument.parameter.help for argument in arguments)
    text = app[name].help.replace("\\\n", " ")
    examples = re.findall(rf"^ +attachments ({name}\b.*)$", text, re.MULTILINE)
    assert 1 <= len(examples) <= 3
    for example in examples:
        app.parse_args(example.replace("$MESSAGE_ID", "AAMkAGI1"))


def test_help_loads_nothing_that_takes_long() -> None:
    """Neither Prefect nor a store, whichever command it is of, and whatever the environment holds."""
    code = (
        "import sys; from attachments.cli.main import main\n"
        f"for name in {NAMES}: assert main([name, '--help']) == 0\n"
        f"print(set({HEAVY}) & sys.modules.keys(), file=sys.stderr)"
    )
    odd = {"PREFECT_API_URL": "http://[", "EMAILGISTICS_API_KEY_FILE": "/none", "TERM": "none", "COLUMNS": "-1"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=process_environment(odd),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stderr == "set()\n"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """Also behind a command."""
    for arguments in (["--version"], ["status", "--version"]):
        assert main(arguments) == 0
        assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_no_command_is_a_wrong_call_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, for a pipe wants the output of a command."""
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "setup" in err


@pytest.mark.parametrize(
    ("arguments", "said", "see"),
    [
        (["statsu"], 'Did you mean "status"?', "attachments"),
        (["verify", "--claen"], "Did you mean --clean?", "attachments verify"),
        (["doctor", "--receiver", "http://x", "--no-receiver"], "--receiver, --no-receiver", "attachments doctor"),
        (["decrypt", "AAMk", "--to", "x"], "--identity", "attachments decrypt"),
        (["locate", "AAMk", "x"], "'x'", "attachments locate"),
        (["sandbox", "--port", "x"], "0 to 65535", "attachments sandbox"),
        (["up", "--port", "x"], "0 to 65535", "attachments up"),
        (["up", "--log-format", "xml"], "xml", "attachments up"),
        (["up", "--mial", "x"], "Did you mean --mail?", "attachments up"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_names_the_help(
    arguments: list[str], said: str, see: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two lines on standard error."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    what, where = err.splitlines()
    assert said in what
    assert where == f"`{see} --help` shows its options."


def test_the_last_value_of_a_repeated_option_counts() -> None:
    """As for every command of the system, so that an alias can be overridden."""
    _, bound, _ = app.parse_args(["receive", "--port", "1", "--port", "2"])
    assert bound.kwargs["port"] == 2


@pytest.mark.parametrize(("more", "is_colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_honoured(
    more: dict[str, str], is_colored: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As https://no-color.org says: no colours; bold is none."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", **more}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "console", None)
    monkeypatch.setattr(app, "_fallback_console", None)
    assert main(["--help"]) == 0
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", capsys.readouterr().out)) is is_colored


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows the commands and their options."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ZSH", raising=False)
    assert main(["--install-completion", "--shell", shell]) == 0
    script = Path(capsys.readouterr().out.split()[1].removesuffix("."))
    assert script.is_relative_to(tmp_path)
    text = script.read_text()
    for known in (*NAMES, "schedules-off", "deliver-to"):
        assert known in text


def test_completion_that_cannot_be_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the option that helps."""
    (tmp_path / "file").touch()
    assert main(["--install-completion", "--shell", "bash", "--output", str(tmp_path / "file" / "x")]) == 1
    assert "--output" in capsys.readouterr().err
    monkeypatch.setenv("HOME", "/proc/none")
    assert main(["--install-completion", "--shell", "bash"]) == 1
    assert "--output" in capsys.readouterr().err
