"""`attachments setup` before there is a Prefect to talk to; with one, tests/e2e shows it."""

import asyncio
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pyrage
import pytest

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli.actions.block_settings import (
    describe_location,
    describe_removed_recipients,
    existing_block,
    store_block,
)
from attachments.cli.actions.provisioning import migrate_deployments
from attachments.cli.actions.schedule import ReportingProblem, switch_reconciliation
from attachments.cli.command_boundary import CommandFailed
from attachments.demo.processes import free_port, process_environment
from attachments.runs.deployment_spec import current_entrypoint, declared_deployments, declared_flow, load_flow
from attachments.worker.allowed_flows import check_allowed, is_named

ATTACHMENTS = str(Path(sys.executable).with_name("attachments"))


def _setup(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ATTACHMENTS, "setup"],
        env=process_environment({"PREFECT_HOME": str(home), **environment}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_no_prefect_url_is_said_with_how_to_get_one(tmp_path: Path) -> None:
    """Without PREFECT_API_URL nothing is started behind the user's back."""
    done = _setup(tmp_path)
    assert done.returncode == 1
    assert "PREFECT_API_URL is not set. Start a server with `prefect server start`" in done.stderr


def test_a_prefect_that_refuses_us_is_said_in_one_line(tmp_path: Path) -> None:
    """Its health needs no password, all else does."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("/health") else 401)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"true")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/api"
        done = _setup(tmp_path, PREFECT_API_URL=url, EMAILGISTICS_API_KEY="k" * 20, ATTACHMENTS_URL=tmp_path.as_uri())
        server.shutdown()
    assert done.returncode == 1
    assert (
        "Prefect refuses the password or key (401). Compare PREFECT_API_KEY or PREFECT_API_AUTH_STRING" in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.soak
def test_an_unreachable_prefect_is_said_in_one_line(tmp_path: Path) -> None:
    """A wrong address or a stopped server: after half a minute, in which one may start, and without a traceback."""
    done = _setup(tmp_path, PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 1
    assert "Prefect does not respond at http://127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_another_kind_of_store_are_left_behind() -> None:
    """Who moves from S3 to a disk need not know that S3's keys are in the block; who moves within S3 keeps them."""
    standing = AttachmentStore(url="s3://bucket/root", options={"key": "k", "secret": "s"})

    def options(**environment: str) -> dict[str, object]:
        return store_block(environment, standing).options.get_secret_value()

    assert options(ATTACHMENTS_URL="file:///srv/attachments") == {}
    for same in ({}, {"ATTACHMENTS_URL": "s3://other/root"}):
        assert options(**same) == {"key": "k", "secret": "s"}
    new = options(ATTACHMENTS_URL="sftp://host/root", ATTACHMENTS_STORAGE_OPTIONS='{"username": "u"}')
    assert new == {"username": "u"}


A, B = (str(pyrage.x25519.Identity.generate().to_public()) for _ in range(2))


@pytest.mark.parametrize(
    ("standing", "variable", "expected"),
    [
        (None, f"{A},{B}", [A, B]),
        (None, None, []),
        ([A], None, [A]),
        ([A], f"{A}\n{B}\n", [A, B]),
        ([A, B], B, [B]),
    ],
    ids=["made", "none", "kept", "added", "removed"],
)
def test_recipients_come_from_the_environment_or_stay(
    standing: list[str] | None, variable: str | None, expected: list[str]
) -> None:
    """Those of the block stay where the variable is not set, also when the store moves elsewhere."""
    block = AttachmentStore(url="s3://bucket/root", age_recipients=standing) if standing is not None else None
    environment = {"ATTACHMENTS_URL": "file:///srv/attachments"}
    if variable is not None:
        environment["ATTACHMENTS_AGE_RECIPIENTS"] = variable
    assert store_block(environment, block).age_recipients == expected


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("", "ATTACHMENTS_AGE_RECIPIENTS is set but empty."),
        (" \n", "ATTACHMENTS_AGE_RECIPIENTS is set but empty."),
        (",", "ATTACHMENTS_AGE_RECIPIENTS: age recipient 1 is blank"),
        (f"{A},,{B}", "ATTACHMENTS_AGE_RECIPIENTS: age recipient 2 is blank"),
        (f"{A},{B[:-1]}", "ATTACHMENTS_AGE_RECIPIENTS: age recipient 2 is mistyped or incomplete"),
    ],
    ids=["empty", "blank", "comma", "two commas", "mistyped"],
)
def test_recipients_that_got_lost_on_their_way_are_told(variable: str, said: str) -> None:
    """An empty variable is no wish to store unencrypted: nothing is made then, and no block is changed."""
    existing = AttachmentStore(url="s3://bucket/root", age_recipients=[A])
    with pytest.raises(CommandFailed) as caught:
        store_block({"ATTACHMENTS_AGE_RECIPIENTS": variable}, existing)
    assert str(caught.value).startswith(said)


def test_recipients_that_are_removed_are_told() -> None:
    """Their owners cannot decrypt what comes from now on; blanks around a key do not change it."""
    before = AttachmentStore(url="s3://bucket/root", age_recipients=[f" {A}", B])
    removed = [
        describe_removed_recipients(before, AttachmentStore(url="s3://bucket/root", age_recipients=after))
        for after in ([A, B], [A], [])
    ]
    assert [text and text.partition(" not listed")[0] for text in removed] == [
        None,
        "1 age recipient of the block was",
        "2 age recipients of the block were",
    ]
    assert all(A not in text and B not in text for text in removed if text)


def test_the_location_of_the_store_is_shown() -> None:
    """As the URL was parsed."""
    assert describe_location(AttachmentStore(url="file://localhost/srv/attachments/")) == ": file:///srv/attachments"
    sealed = AttachmentStore(url="file:///srv/attachments", age_recipients=[A, B])
    assert describe_location(sealed) == ": file:///srv/attachments, encrypted to 2 age recipients"


def test_the_declared_deployments_are_module_paths() -> None:
    """Every deployment of prefect.yaml runs from the installed package, on any pool, from any folder."""
    deployments = declared_deployments()
    found = [f"{deployment['entrypoint'].rpartition('.')[2]}/{deployment['name']}" for deployment in deployments]
    assert found == [
        "download_attachments/default",
        "download_attachments/backfill",
        "backfill_attachments/default",
        "purge_attachments/default",
        "reconcile_attachments/default",
        "doctor/default",
    ]
    assert all(deployment["entrypoint"].startswith("attachments.flows.") for deployment in deployments)


def test_deployments_of_one_name_can_be_told_apart() -> None:
    """Some lists of the Prefect UI show the name without the flow: those called default differ in their tags."""
    tags = [deployment.get("tags") for deployment in declared_deployments() if deployment["name"] == "default"]
    assert tags == [None, ["old-mail"], ["retention"], ["missed-mail"], ["health"]]


def test_the_descriptions_of_parameters_are_plain_text() -> None:
    """The run form of the Prefect UI shows them as they are, backticks as well."""
    for deployment in declared_deployments():
        for name, field in declared_flow(deployment).parameters.properties.items():
            assert field["description"], name
            assert "`" not in field["description"], f"{deployment['entrypoint']}: {name}"


def test_entrypoints_of_an_older_version_are_known() -> None:
    """Version 0.1 installed a top-level package `flows`. What is not ours is left alone."""
    assert current_entrypoint("flows.doctor.doctor") == "attachments.flows.doctor.doctor"
    for other in ("flows.invoices.extract", "flows/doctor.py:doctor", "attachments.flows.doctor.doctor"):
        assert current_entrypoint(other) == other


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (None, "attachments.flows.doctor"),
        ("", "attachments.flows.doctor"),
        ("from prefect import flow\n\n@flow\ndef doctor() -> None: ...\n", "flows.doctor"),
        ("import no_such_dependency\n", ModuleNotFoundError),
        ("raise ValueError\n", ValueError),
    ],
    ids=["no module", "another flow's module", "a user's flow", "a user's flow without its dependency", "a broken one"],
)
def test_a_users_flow_that_is_called_as_ours_was_stays_the_users(
    code: str | None, outcome: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host allows it: ours is taken only where the entrypoint leads nowhere, as that of version 0.1 does."""
    (tmp_path / "flows").mkdir()
    if code is not None:
        (tmp_path / "flows" / "doctor.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    checkout = Path(__file__).parents[2]
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() != checkout])
    for name in ("flows", "flows.doctor"):  # set first: what the test imports is gone after it
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    if isinstance(outcome, str):
        assert load_flow("flows.doctor.doctor", is_named=True).fn.__module__ == outcome
    else:
        with pytest.raises(outcome):
            load_flow("flows.doctor.doctor", is_named=True)


@pytest.mark.parametrize("allowed", ["", "invoices", "flows.invoices"])
def test_a_module_that_is_called_as_ours_was_is_not_imported_unless_the_host_allows_it(
    allowed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie in the worker's working directory, and nobody has allowed it: the old name leads to our flow."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "doctor.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ImportError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("flows", "flows.doctor"):
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    old = "flows.doctor.doctor"
    check_allowed(old, has_pull_steps=False, allowed=allowed)
    assert load_flow(old, is_named=is_named(old, allowed)).fn.__module__ == "attachments.flows.doctor"
    assert not (tmp_path / "ran").exists()


def test_filters_that_no_run_takes_are_told() -> None:
    """As version 0.1 accepted them. Of downloads alone, and without the patterns, which may hold a customer's name."""
    flow = declared_flow(declared_deployments()[0])
    downloads, other = uuid4(), uuid4()

    def deployment(name: str, flow_id: UUID, filter_: object) -> Any:
        return SimpleNamespace(
            id=uuid4(),
            name=name,
            flow_id=flow_id,
            entrypoint="mine.flow",
            parameter_openapi_schema={},
            parameters={"filter": filter_},
        )

    bad = {"include": [{"names": ["canary/*"]}]}
    standing = [
        deployment("invoices", downloads, bad),
        deployment("right", downloads, {"include": [{"names": ["*.pdf"]}]}),
        deployment("none", downloads, None),
        deployment("elsewhere", other, bad),
    ]

    async def read_flow_by_name(name: str) -> Any:
        assert name == flow.name
        return SimpleNamespace(id=downloads)

    async def read_deployments(*, offset: int, **_: Any) -> Any:
        return standing[offset:]

    told: list[tuple[str, str]] = []
    client = SimpleNamespace(read_flow_by_name=read_flow_by_name, read_deployments=read_deployments)
    asyncio.run(migrate_deployments(cast("Any", client), lambda result, subject: told.append((result, subject))))
    ((result, subject),) = told
    assert result == "INVALID"
    assert subject == (
        "filter download-attachments/invoices: Its filter is not valid, so each of its runs fails. Correct it in the "
        "Prefect UI or in its prefect.yaml; `attachments check` names each mistake."
    )


def test_a_block_that_cannot_be_used_is_named_with_what_to_do() -> None:
    """The Prefect UI saves it unchecked; there is no traceback, and none of its values."""

    async def there(*_: object) -> object:
        return SimpleNamespace(data={"base_url": "http://c1.example.com", "api_key": "secret-canary"})

    client = cast("Any", SimpleNamespace(read_block_document_by_name=there))
    with pytest.raises(CommandFailed, match="The block emailgistics-account/default cannot be used") as caught:
        asyncio.run(existing_block(EmailgisticsAccount, client))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("is_active", [True, False])
def test_why_a_key_does_not_work_is_told_once(is_active: bool) -> None:
    """`setup` ends with it; the line about the schedule leaves it out."""
    told: list[str] = []
    schedule = SimpleNamespace(slug="hourly", active=is_active)

    async def deployment(_: str) -> Any:
        return SimpleNamespace(schedules=[schedule])

    async def none(_: str) -> None:
        return None

    client = cast("Any", SimpleNamespace(read_deployment_by_name=deployment, read_variable_by_name=none))
    for problem in (ReportingProblem("The key is wrong.", is_permanent=True), ReportingProblem("It was not reached.")):
        asyncio.run(switch_reconciliation(problem, client, lambda _, subject: told.append(subject)))
    assert told == [f"schedule of reconcile-attachments/default: {'every hour' if is_active else 'off'}."] * 2


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_next_commands_are_named_on_a_terminal_alone(is_terminal: bool) -> None:
    """`attachments up` starts these programs itself, and its log has the last line of the set-up."""
    code = (
        "import sys\n"
        "from attachments.cli.actions import provisioning\n"
        "from attachments.cli.main import main\n"
        "async def nothing(*_, **__): return None\n"
        "provisioning.set_up = nothing\n"
        "sys.exit(main(['setup']))"
    )
    reading, writing = os.openpty() if is_terminal else os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=process_environment({}),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=200,
    )
    os.close(writing)
    with open(reading, "rb", buffering=0) as output:  # noqa: PTH123  a descriptor
        shown = output.read(10_000)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown.startswith(b"All set.")
    assert (b"Next: " in shown) is is_terminal
