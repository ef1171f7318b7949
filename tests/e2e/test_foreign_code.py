"""Anyone who reaches Prefect's API can create a deployment; the worker does not run the code that it names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attachments.storage import message_key
from tests.e2e.installation import FINAL, Installation, until

CODE = "from pathlib import Path\n\nfrom prefect import flow\n\nPath({done!r}).touch()\n\n\n@flow\ndef evil(): ...\n"
DOWNLOAD = "attachments.flows.download_attachments.download_attachments"


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The file that the foreign code makes when it runs."""
    return tmp_path / "done"


@pytest.fixture
def deployments(running: Installation) -> Iterator[set[str]]:
    """Ids of deployments, which are gone after the test."""
    made: set[str] = set()
    yield made
    for deployment in made:
        running.remove(f"deployments/{deployment}")


def ended(running: Installation, deployments: set[str], parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The run of a deployment that somebody has made by way of the API, ended."""
    flow = running._post("flows/", {"name": "download-attachments"})
    body = {"name": "evil", "flow_id": flow["id"], "work_pool_name": "attachments", **fields}
    deployment = str(running._post("deployments/", body)["id"])
    deployments.add(deployment)
    (run,) = running.create_runs(deployment, [parameters])
    until(lambda: running.run(run)["state_type"] in FINAL, "the run to end")
    return running.run(run)


@pytest.mark.parametrize("entrypoint", [DOWNLOAD, "flows/evil.py:evil"])
def test_a_shell_step_is_not_run(entrypoint: str, running: Installation, deployments: set[str], done: Path) -> None:
    """Whichever flow it stands before. The run's state says what to do where the deployment is the user's own."""
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {done}"}}
    message = running.sandbox.control.add_message(attachments=[])
    run = ended(running, deployments, {"message_id": message["id"]}, entrypoint=entrypoint, pull_steps=[step])
    assert not done.exists()
    assert run["state_type"] == "CRASHED"
    assert "the deployment has pull steps" in run["state"]["message"]
    assert "set ATTACHMENTS_WORKER_FLOWS=* for the worker" in run["state"]["message"]


def test_a_file_is_not_run(running: Installation, deployments: set[str], done: Path, tmp_path: Path) -> None:
    """Neither one of the worker's host nor one that would be copied there first."""
    (tmp_path / "evil.py").write_text(CODE.format(done=str(done)))
    for where in ({"entrypoint": f"{tmp_path}/evil.py:evil"}, {"entrypoint": "evil.py:evil", "path": str(tmp_path)}):
        run = ended(running, deployments, {}, **where)
        assert not done.exists()
        assert run["state_type"] == "CRASHED"
        assert "the deployment's code is a file" in run["state"]["message"]


def test_an_attachment_is_not_run(running: Installation, deployments: set[str], done: Path) -> None:
    """Python takes folders for packages, and Prefect imports from the worker's working directory, which is `/`."""
    text = CODE.format(done=str(done))
    message = running.sandbox.control.add_message(attachments=[{"name": "evil.py", "text": text}])
    running.run_deployment(message_id=message["id"])
    (file,) = running.files(message)
    entrypoint = ".".join([*file.with_suffix("").parts[1:], "evil"])
    assert message_key(message["id"]) in entrypoint
    run = ended(running, deployments, {}, entrypoint=entrypoint)
    assert not done.exists()
    assert run["state_type"] == "CRASHED"
    assert "add the name of its package to ATTACHMENTS_WORKER_FLOWS" in run["state"]["message"]


def test_a_run_of_no_deployment_is_not_run(running: Installation) -> None:
    """Prefect gives a work pool's worker such runs as well, with a command for an interpreter of their own."""
    flow = running._post("flows/", {"name": "download-attachments"})
    body = {"flow_id": flow["id"], "work_pool_name": "attachments", "state": {"type": "SCHEDULED"}}
    run = running._post("flow_runs/", body)["id"]
    until(lambda: running.run(run)["state_type"] in FINAL, "the run to end")
    assert running.run(run)["state_type"] == "CRASHED"
    assert "the run belongs to no deployment" in running.run(run)["state"]["message"]
