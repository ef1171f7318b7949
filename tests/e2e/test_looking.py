"""`attachments doctor`, `status` and `preview`, and the doctor's flow: all is well, then one thing is broken."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import temporary_settings

from attachments.blocks import AttachmentStore
from attachments.cli.actions.status_report import read_status
from attachments.cli.main import main
from attachments.doctor import Finding, run_checks, schedules
from attachments.doctor.deployments import check_deployments, read_deployments
from attachments.doctor.probe import prefect_client
from attachments.doctor.schedules import check_schedules
from attachments.doctor.workers import check_pool, check_queues, check_workers
from attachments.runs.deployment_spec import LIMITS
from attachments.runs.watermarks import Watermarks
from attachments.storage import message_key
from tests.e2e.installation import FAST, FINAL, Installation, until

CANARY = "canary-1ook1ng"
Seen = Callable[[Callable[[SyncPrefectClient], Any]], dict[str, Finding]]
API = "v2/concurrency_limits/emailgistics-api"


@pytest.fixture
def well(running: Installation) -> Iterator[Installation]:
    """The installation with the limits that a user has, and the vendor's mailboxes and keys as they were."""
    limits = {name: running._get(f"v2/concurrency_limits/{name}")["limit"] for name in LIMITS}
    keys = running.sandbox.control.settings()["keys"]
    for name, size in LIMITS.items():
        running.change(f"v2/concurrency_limits/{name}", {"limit": size})
    running.sandbox.control.add_message(mailbox=f"{CANARY}@example.com", attachments=[{"name": f"{CANARY}.pdf"}])
    running.stack.store.mkdir(exist_ok=True)
    with temporary_settings(running.prefect_settings):
        yield running
    running.sandbox.control.settings(keys=keys)
    for name, size in limits.items():
        running.change(f"v2/concurrency_limits/{name}", {"limit": size})


@pytest.fixture
def seen(well: Installation) -> Iterator[Seen]:
    """What a family of checks finds, by what it is about."""
    with prefect_client() as client:
        yield lambda look: {finding.about: finding for finding in look(client)}


@contextmanager
def changed(running: Installation, path: str, **fields: Any) -> Iterator[None]:
    """Something in Prefect is otherwise for a while."""
    before = running._get(path)
    running.change(path, fields)
    try:
        yield
    finally:
        running.change(path, {name: before[name] for name in fields})


@contextmanager
def another(running: Installation, name: str, **parameters: Any) -> Iterator[None]:
    """Another deployment of the download for a while, of which the receiver need not know."""
    default = running._get("deployments/name/download-attachments/default")
    fields = ("flow_id", "entrypoint", "work_pool_name", "parameter_openapi_schema", "pull_steps")
    body = {field: default[field] for field in fields}
    made = running._post("deployments/", {**body, "name": name, "parameters": parameters})
    try:
        yield
    finally:
        running.remove(f"deployments/{made['id']}")


def test_all_is_well_and_nothing_is_left_behind(well: Installation) -> None:
    """Status 0; three calls, each with a slot; the store as it was; the addresses are not in what goes elsewhere."""
    well.sandbox.control.clear_requests()
    before = sorted(well.stack.store.rglob("*"))
    done = well.stack.run("attachments", "doctor", "--json", "--receiver", well.stack.receiver_url, check=False)
    document = json.loads(done.stdout)
    bad = [finding for finding in document["findings"] if finding["status"] == "failed"]
    assert (done.returncode, document["ok"], bad) == (0, True, []), done.stderr
    # Its schedule is off in tests. All deployments are current, wherever `setup` was run.
    assert {finding["check"] for finding in document["findings"] if finding["status"] == "warning"} == {
        "reconciliation"
    }
    known = {finding["check"] for finding in document["findings"]}
    assert known >= {"password", "origins"}
    assert known >= {"prefect", "leases", "work-pool", "worker", "queue", "deployment", "block", "limit", "api-key"}
    assert known >= {"scope", "mailboxes", "store", "reconciliation", "receiver", "ready", "inbox"}
    assert [call["endpoint"] for call in well.sandbox.control.requests()] == ["mailboxes", "list", "download"]
    assert well._get(API)["active_slots"] >= 3
    assert sorted(well.stack.store.rglob("*")) == before
    for secret in (CANARY, well.sandbox.key, well.stack.secret):
        assert secret not in done.stdout + done.stderr


def test_without_a_limit_no_call_is_made(well: Installation) -> None:
    """It is said what is missing, and why the key was not looked at."""
    well.sandbox.control.clear_requests()
    limit = well._get(API)
    well.remove(API)
    try:
        found = {finding.about: finding for finding in run_checks()}
    finally:
        well._post("v2/concurrency_limits/", {name: limit[name] for name in ("name", "limit", "active")})
    assert "It does not exist, so nothing would keep" in str(found["limit emailgistics-api"])
    assert str(found["api-key default"]).startswith("warning  api-key default: Not checked: nothing would keep")
    assert "scope messages:read (default)" not in found
    assert well.sandbox.control.requests() == []


def test_limits_that_are_not_safe_and_keys_that_lack_a_scope_are_found(well: Installation) -> None:
    """Several things at once: each has its line, and the rest is well."""
    control = well.sandbox.control
    control.settings(keys=[{"key": well.sandbox.key, "scopes": ["messages:read"], "mailboxes": []}])
    with (
        changed(well, API, limit=120),
        changed(well, "v2/concurrency_limits/emailgistics-backfill", slot_decay_per_second=1.0),
    ):
        found = {finding.about: finding for finding in run_checks()}
    bad = {about for about, finding in found.items() if finding.status == "failed"}
    assert bad == {
        "limit emailgistics-api",
        "limit emailgistics-backfill",
        "scope messages:content (default)",
    }
    assert found["scope reporting (default)"].status == "warning"
    control.settings(keys=[{"key": "another"}])
    found = {finding.about: finding for finding in run_checks()}
    assert "Emailgistics refuses it (HTTP 401)" in str(found["api-key default"])
    assert "scope messages:read (default)" not in found


def test_a_deployment_that_is_gone_or_outdated_is_found(well: Installation, seen: Seen) -> None:
    """One that is as `attachments setup` made it is current."""

    def line() -> str:
        found = seen(lambda client: check_deployments(read_deployments(client)))
        return str(found["deployment purge-attachments/default"])

    made = well._get("deployments/name/purge-attachments/default")
    with changed(well, f"deployments/{made['id']}", parameter_openapi_schema={"type": "object", "properties": {}}):
        assert "Its parameters are those of another version. Stop the workers on all hosts" in line()
    well.remove(f"deployments/{made['id']}")
    assert "It does not exist. Run `attachments setup`." in line()
    kept = ("name", "flow_id", "version", "entrypoint", "parameter_openapi_schema", "work_pool_name", "work_queue_name")
    well._post("deployments/", {**{field: made[field] for field in kept}, "pull_steps": []})
    assert line() == "ok       deployment purge-attachments/default: It is up to date."


def test_a_schedule_that_is_switched_on_starts_runs_and_one_that_has_ended_is_found(
    well: Installation, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next whole minute. One that has ended plans nothing, and one that is due in months nothing yet."""
    made = well.deployment("purge-attachments/default")
    path = f"deployments/{made['id']}/schedules"

    def line() -> str:
        found = seen(lambda client: check_schedules(client, read_deployments(client), recheck_delay=0.1))
        return str(found.get("schedule purge-attachments/default", ""))

    def by_schedule() -> list[dict[str, Any]]:
        filters = {"deployment_id": {"any_": [made["id"]]}, "tags": {"all_": [schedules.SCHEDULED_TAG]}}
        return [run for run in well._flow_runs(filters, "ID_DESC") if run["state_type"] in FINAL]

    assert line() == ""
    fields = {"active": True, "parameters": {"older_than_days": 30_000}}
    over = {"rrule": "DTSTART:20200101T000000\nRRULE:FREQ=DAILY;COUNT=3"}
    (ended,) = well._post(path, [{"schedule": over, **fields}])
    try:
        assert line().startswith("warning  schedule purge-attachments/default: Its schedule has ended, so")
    finally:
        well.remove(f"{path}/{ended['id']}")
    far = datetime.now(UTC) + timedelta(days=150)
    yearly = {"interval": 365 * 86_400, "anchor_date": far.isoformat()}
    (made_yearly,) = well._post(path, [{"schedule": yearly, **fields}])
    try:
        told = f"Its next run is due on {far:%Y-%m-%d}; Prefect plans runs 100 days ahead."
        assert line() == f"ok       schedule purge-attachments/default: {told}"
    finally:
        well.remove(f"{path}/{made_yearly['id']}")
    (minutely,) = well._post(path, [{"schedule": {"cron": "* * * * *"}, **fields}])
    well.change(f"deployments/{made['id']}", {"paused": False})  # a change to a deployment is seen to within seconds
    try:
        until(lambda: bool(by_schedule()), "a run by the schedule", patience=200)
        assert line() == "ok       schedule purge-attachments/default: Its next run is planned."
    finally:
        well.remove(f"{path}/{minutely['id']}")
    assert {run["state_type"] for run in by_schedule()} == {"COMPLETED"}


def test_a_pool_or_queue_that_is_paused_and_a_worker_that_is_gone_are_found(well: Installation, seen: Seen) -> None:
    """In a pool of the test's own, so that the tests' worker goes on. A worker that was stopped is gone in seconds."""
    pool = f"pool-{os.getpid()}"
    in_pool = partial(check_pool, pool_name=pool)
    in_queues = partial(check_queues, pool_name=pool)
    in_workers = partial(check_workers, pool_name=pool, recheck_delay=0.1)
    assert "It does not exist." in str(seen(in_pool)[f"work-pool {pool}"])
    assert seen(in_queues) == {}
    assert "None is alive" in str(seen(in_workers)["worker"])
    well._post("work_pools/", {"name": pool, "type": "process"})
    assert "Its type is process" in str(seen(in_pool)[f"work-pool {pool}"])
    assert "It does not exist. Run `attachments setup`" in str(seen(in_queues)[f"queue {pool}/backfill"])
    well._asked("POST", f"work_pools/{pool}/workers/heartbeat", {"name": "w", "heartbeat_interval_seconds": 1})
    assert str(seen(in_workers)["worker"]) == "ok       worker: One is alive."
    until(lambda: seen(in_workers)["worker"].status == "failed", "the silent worker to be gone")
    well.change(f"work_pools/{pool}", {"is_paused": True})
    assert "It is paused, so no run starts." in str(seen(in_pool)[f"work-pool {pool}"])
    well.change(f"work_pools/{pool}/queues/default", {"is_paused": True})
    assert "It is paused, so none of its runs start." in str(seen(in_queues)[f"queue {pool}/default"])
    well.remove(f"work_pools/{pool}")


def test_the_doctors_flow_fails_by_name_and_leaks_nothing(well: Installation) -> None:
    """So that an automation can tell of it. Its schedule is there, and off."""
    deployment = well._get("deployments/name/doctor/default")
    assert deployment["work_queue_name"] == "upkeep"
    assert [(each["active"], each["schedule"]["cron"]) for each in deployment["schedules"]] == [(False, "47 * * * *")]
    good = well.run_deployment(flow="doctor")
    assert good["state_type"] == "COMPLETED", good["state"]["message"]
    assert good["state"]["message"].startswith("Nothing failed in ")
    # A mount that the worker alone sees, and that may not be written.
    AttachmentStore(url=f"file://{well.stack.folder}/readonly/store").save("doctors-readonly", overwrite=True)
    with another(well, "unwritable", store="doctors-readonly"), changed(well, API, limit=FAST):
        bad = well.run_deployment(flow="doctor")
    assert bad["state_type"] == "FAILED"
    assert "checks failed" in bad["state"]["message"]
    assert "limit emailgistics-api, store doctors-readonly." in bad["state"]["message"]
    assert "limit emailgistics-api: " in bad["state"]["message"].partition("doctors-readonly.")[2], "with its remedy"
    (shown,) = well.artifacts(bad["id"])
    assert shown["data"].startswith("**FAILED limit emailgistics-api**\n\n- ")
    urgent, _, fine = shown["data"].partition("Passed:")
    assert "**FAILED store doctors-readonly**" in urgent
    assert "EACCES" in urgent
    assert "- mailboxes default: " in fine
    leaks = {place for place, content in well.everything_kept() if CANARY.encode() in content}
    assert leaks == set()


def test_status_counts_what_there_is(well: Installation) -> None:
    """Runs of our deployments alone, by state; late ones; calls; how far each mailbox is; and no name of any."""
    inbox = well.stack.inbox
    before = read_status(inbox, seconds=20).runs
    default = well._get("deployments/name/download-attachments/default")
    fields = ("flow_id", "entrypoint", "parameter_openapi_schema")
    # Without a work pool nobody takes its runs.
    made = well._post("deployments/", {**{field: default[field] for field in fields}, "name": "counted"})
    late = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2026-01-01T00:00:00Z"}}
    others = well._post("flows/", {"name": "another-projects"})["id"]
    runs = []
    for state in (late, {"type": "SCHEDULED"}, {"type": "PENDING"}, {"type": "FAILED"}):
        body = {"parameters": {"message_id": "x"}, "state": state}
        runs.append(well._post(f"deployments/{made['id']}/create_flow_run", body))
        runs.append(well._post("flow_runs/", {"flow_id": others, "state": state}))
    after = read_status(inbox, seconds=20).runs
    for run in runs:  # other tests wait until nothing is under way
        well.remove(f"flow_runs/{run['id']}")
    well.remove(f"deployments/{made['id']}")
    assert before is not None
    assert after is not None
    more = {name: after[name] - before[name] for name in after}
    assert {name: count for name, count in more.items() if count} == {
        "scheduled": 2,
        "late": 1,
        "pending": 1,
        "failed": 1,
    }

    with prefect_client() as client:
        marks = Watermarks(client, "default", "download-attachments/default")
        marks.advance("0" * 32, datetime(2026, 1, 2, 3, tzinfo=UTC))
    done = well.stack.run("attachments", "status", "--json", check=False)
    assert CANARY not in done.stdout + done.stderr
    found = json.loads(done.stdout)
    # Within its few seconds a busy machine may not tell all; what it tells is right, and the rest is named.
    assert (done.returncode == 0) == (found["problems"] == [])
    assert found["inbox"] == {"entries": 0, "oldest_seconds": 0.0}
    status = read_status(inbox, seconds=20)
    assert status.problems == ()
    assert status.workers == 1
    assert set(status.calls or ()) == {"emailgistics-api", "emailgistics-backfill"}
    assert status.calls
    assert status.calls["emailgistics-api"].limit == 100
    assert status.reconciliation
    assert status.reconciliation[0].mailbox_key == "0" * 32
    well.remove(f"variables/name/{marks._name('0' * 32)}")


def test_preview_shows_what_a_deployment_would_take(well: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    """By its filter, and by what the manifest has; one call, no download, and the name is kept nowhere."""
    message = well.sandbox.control.add_message(
        attachments=[
            {"name": f"{CANARY}.pdf", "text": "a"},
            {"name": f"{CANARY}.png", "content_type": "image/png", "bytes": 300},
        ]
    )
    with another(well, "previewed", filter={"include": [{"content_types": ["application/pdf"]}]}):
        well.sandbox.control.clear_requests()
        run = well.stack.run("attachments", "preview", message["id"], "--deployment", "previewed")
        lines = run.stdout.splitlines()
        assert lines[0].endswith("as download-attachments/previewed sees it; manifest: none.")
        assert [line.split()[0] for line in lines[1:3]] == ["take", "drop"]
        assert lines[2].endswith(f'[include: no rule matches]  "{CANARY}.png"')
        assert [call["endpoint"] for call in well.calls(message)] == ["list"]

        assert well.run_deployment("previewed", message_id=message["id"])["state_type"] == "COMPLETED"
        assert main(["preview", message["id"], "--deployment", "previewed", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["manifest"], document["nothing_to_do"]) == ("complete", True)
    assert [one["action"] for one in document["attachments"]] == ["stored", "drop"]

    (well.stack.store / document["message_key"] / "manifest.json").unlink()
    pdfs = {"include": [{"content_types": ["application/pdf"]}]}
    for name, force, actions in (("exists", False, ["stored", "drop"]), ("forced", "true", ["take", "drop"])):
        with another(well, name, filter=pdfs, force=force):
            assert main(["preview", message["id"], "--deployment", name, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["manifest"], document["force"]) == ("none", name == "forced")
        assert [one["action"] for one in document["attachments"]] == actions
    with another(well, "mistyped", filter={"include": [{"content_types": ["pdf"]}]}):
        assert main(["preview", message["id"], "--deployment", "mistyped"]) == 1
    assert "filter.include[0].content_types: 'pdf' is not a content type" in capsys.readouterr().err
    leaks = {place for place, content in well.everything_kept() if CANARY.encode() in content}
    assert leaks == set()


def test_preview_says_in_a_line_why_it_cannot(well: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    """404 with both causes, 403, 401, no such deployment, no limit: status 1, and no traceback."""

    def line(message_id: str = "AAMk-unknown", *options: str) -> str:
        assert main(["preview", message_id, *options]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        (said,) = told.err.splitlines()
        return said

    said = line()
    assert said.startswith(f"Message {message_key('AAMk-unknown')}: ")
    assert "is gone (deleted or expired), or the mailbox is outside the API key's allowlist" in said
    assert "There is no deployment download-attachments/nowhere" in line("x", "--deployment", "nowhere")
    control = well.sandbox.control
    control.settings(keys=[{"key": well.sandbox.key, "scopes": ["reporting"]}])
    assert "(HTTP 403)" in line()
    control.settings(keys=[{"key": "another"}])
    assert "(HTTP 401)" in line()
