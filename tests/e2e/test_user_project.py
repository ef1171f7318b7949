"""The product installed from a wheel into an environment where a user's project has its own `flows/` and `blocks/`."""

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attachments.demo.processes import Process, process_environment
from attachments.storage import message_key
from tests.e2e.installation import Installation

REPOSITORY = Path(__file__).parents[2]
POOL = "user-project"
OURS = "attachments.flows.download_attachments.download_attachments"
AS_IN_VERSION_0_1 = "flows.download_attachments.download_attachments"

INVOICES = """
from pathlib import Path

from prefect import flow

from blocks import FOLDER


@flow
def count_invoices(to: str) -> None:
    Path(to).write_text(f"counted in {FOLDER}")
"""

DECLARED = f"""
name: a-users-project
pull: []
deployments:
  - name: by-module
    entrypoint: flows.invoices.count_invoices
    work_pool: {{name: {POOL}}}
  - name: by-file
    entrypoint: flows/invoices.py:count_invoices
    pull:
      - prefect.deployments.steps.set_working_directory:
          directory: FOLDER
    work_pool: {{name: {POOL}}}
  - name: {POOL}
    entrypoint: {OURS}
    work_pool: {{name: {POOL}}}
"""


@dataclass(frozen=True)
class Project:
    """A user's folder, and the environment in which both projects are installed."""

    folder: Path
    python: Path
    environment: dict[str, str]

    def run(self, script: str, *arguments: str) -> str:
        """What a command of the environment prints in the user's folder; it must succeed, without a traceback."""
        done = subprocess.run(
            [self.python.with_name(script), *arguments],
            cwd=self.folder,
            env=process_environment(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def worker(self, flows: str) -> Iterator[None]:
        """A worker that serves the user's pool, started in the user's folder, and runs these flows besides ours."""
        script = f'cd "{self.folder}" && exec "{self.python.with_name("prefect")}" worker start --pool {POOL}'
        log = self.folder / "worker.log"
        environment = {**self.environment, "ATTACHMENTS_WORKER_FLOWS": flows}
        worker = Process("worker", ["sh", "-c", script], environment, log, lambda: "started!" in worker.output())
        try:
            worker.start()
            yield
        finally:
            worker.stop()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(REPOSITORY)], check=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment: our wheel, and what it depends on from this test's own environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", str(wheel))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True, timeout=120)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    prefect = folder / "bin" / "prefect"
    prefect.write_text(f"#!{python}\nfrom prefect.cli import app\n\napp()\n")
    prefect.chmod(0o755)
    return python


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.soak)], ids=["packages", "bare folders"])
def project(running: Installation, python: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Project]:
    folder = tmp_path / "a users project"
    (folder / "flows").mkdir(parents=True)
    (folder / "flows" / "invoices.py").write_text(INVOICES)
    (folder / "prefect.yaml").write_text(DECLARED.replace("FOLDER", str(folder)))
    if request.param:
        (folder / "flows" / "__init__.py").touch()
        (folder / "blocks").mkdir()
        (folder / "blocks" / "__init__.py").write_text(f"FOLDER = {str(folder)!r}\n")
    else:
        (folder / "blocks.py").write_text(f"FOLDER = {str(folder)!r}\n")
    running._post("work_pools/", {"name": POOL, "type": "warm", "base_job_template": {}})
    yield Project(folder, python, dict(running.stack.environment))
    running.remove(f"work_pools/{POOL}")
    for deployment in running.deployments():
        if deployment["work_pool_name"] in (None, POOL):
            running.remove(f"deployments/{deployment['id']}")


def test_the_wheel_installs_one_package(wheel: Path) -> None:
    """Nothing at the top of site-packages but `attachments` and the metadata, and all files in place of the links."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"attachments"}
    for folder in ("flows", "blocks"):
        ours = {f"attachments/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / folder).glob("*.py")}
        assert ours
        assert ours <= set(names)
    assert "attachments/prefect.yaml" in names


def test_a_users_flows_and_ours_deploy_and_run_side_by_side(running: Installation, project: Project) -> None:
    """From the user's own folder, also a deployment that version 0.1 made, which `attachments setup` then migrates."""
    where = project.run("python", "-c", "import attachments; print(attachments.__file__)")
    assert Path(where.strip()).is_relative_to(project.python.parents[1])

    project.run("prefect", "--no-prompt", "deploy", "--all")
    ours = running.deployment(f"download-attachments/{POOL}")
    assert ours["entrypoint"] == OURS
    fields = ("flow_id", "work_pool_name", "parameter_openapi_schema", "pull_steps")
    old = {field: ours[field] for field in fields} | {"name": "made-by-0.1", "entrypoint": AS_IN_VERSION_0_1}
    form = ours["parameter_openapi_schema"]
    known = {name: field for name, field in form["properties"].items() if name != "has_attachments"}
    old["parameter_openapi_schema"] = {**form, "properties": known}
    running._post("deployments/", old)

    def count(name: str) -> dict[str, Any]:
        return running.run_deployment(name, flow="count-invoices", to=str(project.folder / name))

    with project.worker("*"):
        assert count("by-file")["state_type"] == "COMPLETED"
        assert (project.folder / "by-file").read_text() == f"counted in {project.folder}"
    with project.worker("flows"):
        assert count("by-module")["state_type"] == "COMPLETED"
        assert (project.folder / "by-module").read_text() == f"counted in {project.folder}"
        assert "the deployment has pull steps" in count("by-file")["state"]["message"]
        for name in (POOL, "made-by-0.1"):
            message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": name}])
            run = running.run_deployment(name, message_id=message["id"])
            assert run["state_type"] == "COMPLETED", run["state"]
            assert [file.read_text() for file in running.files(message)] == [name], message_key(message["id"])

    assert "All set." in project.run("attachments", "setup", "--schedules-off")
    migrated = running.deployment("download-attachments/made-by-0.1")
    assert (migrated["entrypoint"], migrated["parameter_openapi_schema"]) == (OURS, form)
    again = project.run("attachments", "setup", "--schedules-off")
    assert "download-attachments/made-by-0.1" not in again  # nothing of it is left to change
