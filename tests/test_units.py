"""The systemd units: systemd understands them, each is restricted, and none gets a secret that it does not need."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from attachments.cli.secret_files import SECRETS
from attachments.demo import one_host, services
from attachments.receiver.limits import ReceiverLimits
from attachments.worker.timings import WorkerTimings
from tests.test_documentation import ROOT, UNITS, read_unit

FOLDER = ROOT / "deploy" / "systemd"
ANALYZE = shutil.which("systemd-analyze")


def analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None, "systemd-analyze is missing: make systemd"
    environment = {**os.environ, "LC_ALL": "C"}
    command = [ANALYZE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """Every key and value; the programs are looked for where they are."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/attachments", str(ROOT)))
    done = analyzed("verify", *(str(tmp_path / unit.name) for unit in UNITS))
    said = [line for line in done.stderr.splitlines() if any(unit.name in line for unit in UNITS)]
    assert said == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_the_units_are_as_restricted_as_the_document_says(unit: Path) -> None:
    """A newer systemd may count a little more."""
    score = re.search(r"level for \S+: ([\d.]+)", analyzed("security", "--offline=true", str(unit)).stdout)
    document = (ROOT / "docs" / "deploy.md").read_text()
    written = re.search(rf"^\| `{unit.stem}` \| ([\d.]+) OK \|", document, re.MULTILINE)
    assert score
    assert written
    assert float(score[1]) <= float(written[1]) + 0.5


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_no_service_gets_a_secret_that_it_does_not_need(unit: Path) -> None:
    """Prefect's password gets everywhere, the webhook's secret to the receiver; none stands in an environment."""
    text = unit.read_text()
    given = re.findall(r"^LoadCredential=([^:]+):/etc/attachments/secrets/(\S+)$", text, re.MULTILINE)
    expected = ["prefect.toml"] + ["EMAILGISTICS_WEBHOOK_SECRET"] * (unit.stem == "attachments-receiver")
    if unit.stem == "attachments":  # it makes Prefect's password itself, and runs the set-up, which needs the API key
        expected = ["EMAILGISTICS_API_KEY", "EMAILGISTICS_WEBHOOK_SECRET"]
    assert given == [(name, name) for name in expected]
    assert not re.search(rf"^Environment=({'|'.join(SECRETS)})=", text, re.MULTILINE)
    assert read_unit(unit)["Service"]["UMask"] == "0077"


def test_the_units_run_the_services_as_attachments_up_does() -> None:
    """The same commands, and for Prefect's server the same settings."""
    server = services.prefect_server({}, print, 4200).command
    commands = {
        "prefect-server": server,
        "attachments-worker": services.worker({}, print).command,
        "attachments-receiver": [services.script_path("attachments"), "receive"],
    }
    for stem, command in commands.items():
        program, *arguments = read_unit(FOLDER / f"{stem}.service")["Service"]["ExecStart"].split()
        assert [Path(program).name, *arguments] == [Path(command[0]).name, *command[1:]]
    text = (FOLDER / "prefect-server.service").read_text()
    given = dict(re.findall(r"^Environment=(PREFECT_SERVER_\w+)=(.*)$", text, re.MULTILINE))
    assert given == services.server_settings(4200)


def test_one_unit_for_one_host_gives_everything_the_time_to_stop() -> None:
    """The parts stop one after the other; no other unit runs the same services beside it."""
    service = read_unit(FOLDER / "attachments.service")
    worker = WorkerTimings()
    patience = ReceiverLimits().drain_timeout + worker.drain + worker.hand_back + one_host.SERVER_STOP_TIMEOUT
    assert float(service["Service"]["TimeoutStopSec"]) > patience + 20
    others = {unit.name for unit in UNITS} - {"attachments.service"}
    assert set(service["Unit"]["Conflicts"].split()) == others


def test_a_command_of_the_installation_gets_all_secrets_as_credentials(tmp_path: Path) -> None:
    """`as-attachments` names them in variables, and leaves the command's own arguments as they are."""
    secrets, credentials, programs = (tmp_path / name for name in ("secrets", "credentials", "programs"))
    for folder in (secrets, credentials, programs):
        folder.mkdir()
    for name in ("prefect.toml", "EMAILGISTICS_API_KEY", "EMAILGISTICS_WEBHOOK_SECRET"):
        (secrets / name).touch()
        (credentials / name).touch()
    # As systemd-run does: what begins with two dashes is its own, the rest is the command.
    stub = 'while case $1 in --*) ;; *) false;; esac; do echo "$1"; shift; done\nexec "$@"\n'
    for program, code in (("systemd-run", stub), ("show", 'env; printf "<%s>" "$@"\n')):
        (programs / program).write_text(f"#!/bin/sh\n{code}")
        (programs / program).chmod(0o755)
    script = (FOLDER / "as-attachments").read_text()
    script = script.replace("/etc/attachments/secrets", str(secrets)).replace(
        "/opt/attachments/.venv/bin", str(programs)
    )
    done = subprocess.run(
        ["sh", "-c", script, "as-attachments", "show", "a b", "$HOME", ""],
        env={"PATH": f"{programs}:/usr/bin:/bin", "CREDENTIALS_DIRECTORY": str(credentials)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    for name in ("prefect.toml", "EMAILGISTICS_API_KEY", "EMAILGISTICS_WEBHOOK_SECRET"):
        assert f"--property=LoadCredential={name}:{secrets / name}" in lines
    assert "--property=User=attachments" in lines
    assert f"PREFECT_PROFILES_PATH={credentials / 'prefect.toml'}" in lines
    assert f"EMAILGISTICS_API_KEY_FILE={credentials / 'EMAILGISTICS_API_KEY'}" in lines
    assert lines[-1].endswith("<a b><$HOME><>")
