"""The other ways to the same job: the command line, and an event."""

import dataclasses
import uuid
from pathlib import Path

import pyrage
import pytest

from attachments.demo.processes import free_port
from attachments.storage import message_key
from tests.e2e.installation import FAST, FINAL, Installation, until


def test_the_prefect_command_line_runs_the_job(running: Installation) -> None:
    """Must show 7: `prefect deployment run download-attachments/default -p message_id=…`."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    running.stack.run(
        "prefect", "deployment", "run", "download-attachments/default", "-p", f"message_id={message['id']}"
    )
    assert running.ended_run(message)["state_type"] == "COMPLETED"
    assert len(running.files(message)) == 1


def test_an_event_runs_the_job(running: Installation) -> None:
    """Must show 7: `emailgistics.message.received` starts the deployment, with what the payload holds and no more."""
    full = running.sandbox.control.add_message(mailbox="ap@example.com", attachments=[{"name": "a.txt", "text": "a"}])
    bare = running.sandbox.control.add_message(attachments=[{"name": "b.txt", "text": "b"}])
    fields = ("id", "mailbox", "received", "conversationId", "hasAttachments")
    payload = {field: full["webhook"][field] for field in fields}
    running.emit("emailgistics.message.received", f"emailgistics.webhook.{uuid.uuid4()}", payload)
    running.emit("emailgistics.message.received", f"emailgistics.webhook.{uuid.uuid4()}", {"id": bare["id"]})

    manifest = running.complete_manifest(full)
    assert manifest.mailbox == "ap@example.com"
    assert manifest.received is not None
    assert manifest.conversation_id == full["webhook"]["conversationId"]
    assert [run["parameters"]["has_attachments"] for run in running.runs(message_id=full["id"])] == [True]
    manifest = running.complete_manifest(bare)
    assert manifest.mailbox is None
    assert manifest.received is None
    assert [run["parameters"]["has_attachments"] for run in running.runs(message_id=bare["id"])] == [None]


def test_the_backfills_deployment_takes_turns_after_live_mail(running: Installation) -> None:
    """Its runs come from a queue of lower priority, and each of its calls holds a slot of the smaller limit too."""
    running._post("v2/concurrency_limits/", {"name": "turns", "limit": 100, "active": True})
    running.save_blocks(f"""
        EmailgisticsAccount(
            base_url={running.sandbox.base_url!r}, api_key={running.sandbox.key!r}, backlog_limit_name="turns"
        ).save("turns", overwrite=True)
    """)
    message = running.sandbox.control.add_message(attachments=[{"name": "old.txt", "text": "old"}])
    run = running.run_deployment("backfill", message_id=message["id"], account="turns")
    assert run["state_type"] == "COMPLETED"
    assert run["work_queue_name"] == "backfill"
    assert running._get("v2/concurrency_limits/turns")["active_slots"] == 2
    queues = {queue["name"]: queue for queue in running._post("work_pools/attachments/queues/filter", {})}
    assert queues["default"]["priority"] < queues["backfill"]["priority"]
    assert queues["backfill"]["concurrency_limit"] == 4


def test_setup_again_changes_nothing_and_says_so(running: Installation) -> None:
    """Idempotent: the second time all of it was there, and what a user has changed stays."""
    running.change("v2/concurrency_limits/emailgistics-backfill", {"limit": 42})
    deployment = running._get("deployments/name/download-attachments/default")
    changed = {
        "concurrency_limit": 7,
        "parameters": {"store": "default"},
        "description": "Ours.",
        "job_variables": {"env": {"TZ": "UTC"}},
    }
    running.change(f"deployments/{deployment['id']}", changed)
    (automation,) = running._post("automations/filter", {})
    running.change(f"automations/{automation['id']}", {"enabled": False})
    done = running.stack.run("attachments", "setup", "--schedules-off")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(("created", "updated"))] == []
    assert "unchanged block emailgistics-account/default" in lines
    assert "unchanged limit emailgistics-backfill: 42 calls in any 60 s" in lines
    assert "unchanged deployment download-attachments/default" in lines
    assert "unchanged automation download-attachments/default on emailgistics.message.received: switched off" in lines
    (replaced,) = running._post("automations/filter", {})
    assert replaced["enabled"] is False, "the trigger was replaced, not doubled, and stays off"
    after = running._get("deployments/name/download-attachments/default")
    assert after["global_concurrency_limit"]["limit"] == 7
    kept = ("parameters", "description", "job_variables")
    assert {field: after[field] for field in kept} == {field: changed[field] for field in kept}
    running.change(f"automations/{replaced['id']}", {"enabled": True})
    running.change("v2/concurrency_limits/emailgistics-backfill", {"limit": FAST})
    before = {field: deployment[field] for field in kept}
    running.change(f"deployments/{deployment['id']}", {**before, "concurrency_limit": None})


def test_setup_says_what_it_has_updated(running: Installation) -> None:
    """Of six deployments the one that another version had made, and an automation that was gone is made again."""
    deployment = running.deployment("doctor/default")
    running.change(f"deployments/{deployment['id']}", {"entrypoint": "flows.doctor.doctor"})
    (automation,) = running._post("automations/filter", {})
    running.remove(f"automations/{automation['id']}")
    lines = running.stack.run("attachments", "setup", "--schedules-off").stdout.splitlines()
    assert [line for line in lines if line.startswith(("created", "updated"))] == [
        "created   automation download-attachments/default on emailgistics.message.received",
        "updated   deployment doctor/default",
    ]
    assert running.deployment("doctor/default")["entrypoint"] == "attachments.flows.doctor.doctor"


def test_locate_says_where_the_files_are(running: Installation) -> None:
    """`attachments locate` prints the manifest's place and a line an attachment."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "abc"}])
    running.run_deployment(message_id=message["id"])
    done = running.stack.run("attachments", "locate", message["id"])
    assert f"{message_key(message['id'])}/manifest.json" in done.stdout
    assert "stored" in done.stdout


def test_a_missing_block_is_said_in_one_sentence(running: Installation) -> None:
    """A run that names a block which does not exist fails at once and says how to make it."""
    message = running.sandbox.control.add_message(attachments=[])
    run = running.run_deployment(message_id=message["id"], account="nowhere")
    assert run["state_type"] == "FAILED"
    assert "There is no block emailgistics-account/nowhere." in run["state"]["message"]


@pytest.mark.parametrize("url", ["srv/attachments", "file://srv/attachments", "s3:/bucket"])
def test_a_block_with_a_relative_url_stores_nothing_and_says_what_to_write(running: Installation, url: str) -> None:
    """The Prefect UI saves it unchecked, and an older version stored below the worker's working directory."""
    running.save_blocks('AttachmentStore(url="file:///srv/attachments").save("relative", overwrite=True)')
    found = running._get("block_types/slug/attachment-store/block_documents/name/relative")
    running.change(f"block_documents/{found['id']}", {"data": {"url": url}, "merge_existing_data": True})
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    run = running.run_deployment(message_id=message["id"], store="relative")
    assert run["state_type"] == "FAILED"
    expected = "s3://bucket" if url.startswith("s3") else "file:///srv/attachments"
    assert f"write it as {expected}" in run["state"]["message"]
    assert running.calls(message) == []


def test_a_store_whose_recipients_are_lost_stores_no_plaintext(running: Installation, tmp_path: Path) -> None:
    """The run fails at once and stores nothing; the next one stores it once the recipients are back."""
    recipient = str(pyrage.x25519.Identity.generate().to_public())

    def save(recipients: list[str]) -> None:
        running.save_blocks(f"""
            AttachmentStore(url={tmp_path.as_uri()!r}, age_recipients={recipients!r}).save("aged", overwrite=True)
        """)

    first, second = (running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "abc"}]) for _ in "12")
    save([recipient])
    assert running.run_deployment(message_id=first["id"], store="aged")["state_type"] == "COMPLETED"
    save([])
    refused = running.run_deployment(message_id=second["id"], store="aged")
    assert refused["state_type"] == "FAILED"
    assert "Allow plaintext" in refused["state"]["message"]
    assert [path.name for path in tmp_path.rglob("a.txt*")] == ["a.txt.age"]
    save([recipient])
    assert running.run_deployment(message_id=second["id"], store="aged")["state_type"] == "COMPLETED"
    assert [path.name for path in tmp_path.rglob("a.txt*")] == ["a.txt.age"] * 2


@pytest.mark.parametrize("end", ["?a=b", "#b"])
def test_a_name_is_not_cut_off_where_a_url_would_be(running: Installation, end: str) -> None:
    """Else another store, account or deployment were taken than the one that was named."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    run = running.run_deployment(message_id=message["id"], store=f"default{end}")
    assert run["state_type"] == "FAILED"
    assert f"There is no block attachment-store/default{end}." in run["state"]["message"]
    assert running.files(message) == []
    told = running.stack.run("attachments", "preview", message["id"], "--deployment", f"default{end}", check=False)
    assert f"There is no deployment download-attachments/default{end}." in told.stderr


def test_a_message_key_names_a_run_s_message(running: Installation) -> None:
    """Once its manifest is there; else the run says that it needs the id. Blanks around either do not count."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    key = message_key(message["id"])
    lost = running.run_deployment(message_id=key)
    assert "looks like a message key" in lost["state"]["message"]
    assert running.run_deployment(message_id=f" {message['id']}\r\n")["state_type"] == "COMPLETED"
    again = running.run_deployment(message_id=f"{key.upper()}\n", force=True)
    assert again["state_type"] == "COMPLETED", again["state"]
    assert len(running.files(message)) == 1


def test_setup_with_a_key_that_is_rejected_fails(running: Installation) -> None:
    """All is made in Prefect, but nothing would work: it says so, and exits with 1."""
    environment = {**running.stack.environment, "EMAILGISTICS_API_KEY": "a-key-that-nobody-knows"}
    refused = dataclasses.replace(running.stack, environment=environment).run(
        "attachments", "setup", "--schedules-off", check=False
    )
    assert refused.returncode == 1
    assert "All set." not in refused.stdout
    assert "no call to Emailgistics will succeed: " in refused.stderr
    assert "All set." in running.stack.run("attachments", "setup", "--schedules-off").stdout


def test_a_missing_limit_is_an_error_not_an_unpaced_call(running: Installation) -> None:
    """Prefect grants slots of a limit that does not exist; we refuse to call."""
    running.save_blocks(f"""
        EmailgisticsAccount(
            base_url={running.sandbox.base_url!r}, api_key={running.sandbox.key!r}, limit_name="no-such-limit"
        ).save("unpaced", overwrite=True)
    """)
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    run = running.run_deployment(message_id=message["id"], account="unpaced")
    assert run["state_type"] == "FAILED"
    assert "no global concurrency limit no-such-limit" in run["state"]["message"]
    assert running.calls(message) == []


def test_a_wrong_key_is_said_plainly_and_not_retried(running: Installation) -> None:
    """401 concerns every run: one call, and a state that says what to change."""
    running.save_blocks(f"""
        EmailgisticsAccount(base_url={running.sandbox.base_url!r}, api_key="wrong").save("wrong", overwrite=True)
    """)
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    run = running.run_deployment(message_id=message["id"], account="wrong")
    assert run["state_type"] == "FAILED"
    assert "HTTP 401" in run["state"]["message"]
    assert len(running.sandbox.control.requests("list")) > 0


@pytest.mark.parametrize("variable", ["EMAILGISTICS_API_KEY", pytest.param("ATTACHMENTS_URL", marks=pytest.mark.soak)])
def test_setup_names_the_variable_that_is_missing_and_makes_nothing(running: Installation, variable: str) -> None:
    """On an installation without blocks, each missing variable is named with what to put there."""
    document = {"EMAILGISTICS_API_KEY": "emailgistics-account", "ATTACHMENTS_URL": "attachment-store"}[variable]
    found = running._get(f"block_types/slug/{document}/block_documents/name/default")
    running.remove(f"block_documents/{found['id']}")
    environment = {name: value for name, value in running.stack.environment.items() if name != variable}
    refused = dataclasses.replace(running.stack, environment=environment).run("attachments", "setup", check=False)
    assert refused.returncode == 1
    assert f"{variable} is not set." in refused.stderr
    assert refused.stdout == ""
    assert f"created   block {document}/default" in running.stack.run("attachments", "setup", "--schedules-off").stdout


def test_prefect_deploy_makes_the_same_deployment(running: Installation) -> None:
    """`prefect deploy --all` with our prefect.yaml: same entry point, one trigger, the same schedule and limit."""
    project = Path(__file__).parents[2]
    before = running._get("deployments/name/download-attachments/default")
    running.stack.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(project / "prefect.yaml"))
    after = running._get("deployments/name/download-attachments/default")
    fields = ("id", "entrypoint", "work_pool_name", "parameters", "pull_steps")
    assert {field: after[field] or None for field in fields} == {field: before[field] or None for field in fields}
    assert len(running._post("automations/filter", {})) == 1
    reconcile = running.deployment("reconcile-attachments/default")
    assert [(known["slug"], known["active"]) for known in reconcile["schedules"]] == [("hourly", False)]
    assert reconcile["global_concurrency_limit"]["limit"] == 1
    assert reconcile["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


@pytest.mark.soak
def test_an_outage_that_outlasts_the_retries_is_followed_by_a_later_attempt(running: Installation) -> None:
    """The run fails, and a run of its own with the same parameters stands in the queue, some minutes ahead."""
    running.save_blocks(f"""
        EmailgisticsAccount(
            base_url="http://127.0.0.1:{free_port()}/api/v1", api_key={running.sandbox.key!r}
        ).save("away", overwrite=True)
    """)
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    body = {"parameters": {"message_id": message["id"], "account": "away"}, "work_queue_name": "backfill"}
    default = running.deployment("download-attachments/default")
    made = running._post(f"deployments/{default['id']}/create_flow_run", body)
    until(lambda: running.run(made["id"])["state_type"] in FINAL, "the run to end", 240)
    run = running.run(made["id"])
    assert run["state_type"] == "FAILED"
    assert "Attempt 2 of 9 follows automatically in 5 minutes." in run["state"]["message"]
    later = [other for other in running.runs(message_id=message["id"]) if other["id"] != run["id"]]
    assert [(other["state_type"], other["tags"]) for other in later] == [("SCHEDULED", ["attempt-2"])]
    assert later[0]["parameters"] == run["parameters"]
    assert later[0]["work_queue_name"] == "backfill", "old mail keeps waiting behind live mail"
    running.remove(f"flow_runs/{later[0]['id']}")
