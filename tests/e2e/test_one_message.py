"""A webhook arrives, and the attachments are in storage: the main job, over real processes."""

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from attachments.storage import message_key
from tests.e2e.installation import Installation, until


def test_every_attachment_is_stored_whole_and_the_manifest_says_so(running: Installation) -> None:
    """A message with three parts: two files arrive byte for byte, a link is recorded as unsupported."""
    message = running.sandbox.control.add_message(
        mailbox="claims@example.com",
        attachments=[
            {"name": "invoice.pdf", "bytes": 1_000_000},
            {"name": "見積書.xlsx", "text": "rows"},
            {"name": "link", "type": "referenceAttachment", "bytes": 10},
        ],
    )
    running.send(message)
    run = running.ended_run(message)
    manifest = running.manifest(message)

    assert manifest is not None
    assert run["state"]["message"].startswith("Of 3 attachments 2 stored, 1 not downloadable")
    assert manifest.complete
    assert manifest.mailbox == "claims@example.com"
    assert manifest.deployment == "download-attachments/default"
    assert manifest.flow_run_id == run["id"]
    assert [entry.outcome for entry in manifest.attachments] == ["stored", "stored", "unsupported"]
    for entry, source in zip(manifest.attachments, message["attachments"][:2], strict=False):
        assert entry.key is not None
        content = (running.stack.store / entry.key).read_bytes()
        assert hashlib.sha256(content).hexdigest() == source["sha256"] == entry.sha256
        assert len(content) == entry.bytes


def test_what_is_stored_is_for_its_owner_alone(running: Installation) -> None:
    """Files have the mode 0600 and folders 0700, whatever the umask of the worker."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    running.send(message)
    running.complete_manifest(message)
    (file,) = running.files(message)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent, file.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_a_run_tells_by_event_and_artifact_without_names(running: Installation) -> None:
    """The event carries key, manifest URL, counts and bytes; the table a row an attachment; neither a file name."""
    message = running.sandbox.control.add_message(attachments=[{"name": "secret-plan.pdf", "bytes": 5000}])
    running.send(message)
    run = running.ended_run(message)
    key = message_key(message["id"])
    resource = f"emailgistics.message.{key}"
    until(lambda: bool(running.events("emailgistics.attachments.stored", resource)), "the event")

    (event,) = running.events("emailgistics.attachments.stored", resource)
    assert event["payload"] == {
        "message_key": key,
        "manifest_url": f"{running.stack.store.as_uri()}/{key}/manifest.json",
        "complete": True,
        "counts": {"stored": 1},
        "bytes": 5000,
    }
    (artifact,) = running.artifacts(run["id"])
    assert '"outcome": "stored"' in artifact["data"]
    assert "secret-plan" not in str(event) + str(artifact)


def test_redeliveries_cost_no_second_download_and_then_no_call(running: Installation) -> None:
    """Three deliveries at once and one after the run: each file is downloaded once, and the fourth asks nothing."""
    message = running.sandbox.control.add_message(attachments=[{"name": f"{n}.bin", "bytes": 20_000} for n in range(5)])
    running.send(message, times=3)
    run = running.ended_run(message)
    assert len(running.calls(message, "download")) == 5
    assert len(running.calls(message, "list")) == 1

    running.sandbox.control.clear_requests()
    running.send(message)
    until(running.is_idle, "the inbox to be empty")
    assert running.calls(message) == []
    assert len(running.files(message)) == 5

    again = running.run_deployment(message_id=message["id"])
    assert (
        again["state"]["message"]
        == "Nothing to do: everything is done according to the manifest. " + run["state"]["message"]
    )
    assert running.calls(message) == []


def test_a_redelivery_after_a_lost_manifest_gets_a_run_that_rebuilds_it(running: Installation) -> None:
    """However soon it comes. While the manifest settles all, its run asks Emailgistics nothing."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "content"}])
    running.send(message)
    first = running.ended_run(message)
    running.sandbox.control.clear_requests()
    running.send(message)
    again = running.ended_run(message, after=1)
    assert (
        again["state"]["message"]
        == "Nothing to do: everything is done according to the manifest. " + first["state"]["message"]
    )
    assert running.calls(message) == []

    (running.stack.store / message_key(message["id"]) / "manifest.json").unlink()
    running.stack.run("attachments", "trigger", message["id"], "--url", running.stack.webhook_url("default"))
    assert running.ended_run(message, after=2)["state"]["message"] == first["state"]["message"]
    assert running.manifest(message) is not None
    assert running.calls(message, "download") == []


def test_two_runs_of_one_message_at_once_leave_one_object_and_both_succeed(running: Installation) -> None:
    """Fault 17: both runs download, one commits, the other compares and is content."""
    message = running.sandbox.control.add_message(attachments=[{"name": "race.bin", "bytes": 300_000}])
    running.sandbox.control.fault(endpoint="download", message_id=message["id"], fault={"kind": "delay", "seconds": 3})
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: running.run_deployment(message_id=message["id"]), range(2)))
    assert [run["state_type"] for run in runs] == ["COMPLETED", "COMPLETED"]
    assert len(running.files(message)) == 1


def test_a_filter_leaves_out_and_another_deployment_adds(running: Installation) -> None:
    """Two deployments share a store: the second takes what the first left out, and forgets nothing."""
    running.deploy("pdf-only", filter={"include": [{"content_types": ["application/pdf"]}]})
    message = running.sandbox.control.add_message(
        attachments=[
            {"name": "a.pdf", "content_type": "application/pdf", "text": "pdf"},
            {"name": "logo.png", "content_type": "image/png", "text": "png"},
        ]
    )
    running.send(message, "pdf-only")
    running.ended_run(message)
    manifest = running.manifest(message)
    assert manifest is not None
    assert [entry.outcome for entry in manifest.attachments] == ["stored", "filtered"]
    assert manifest.attachments[1].rule == "include: no rule matches"
    assert manifest.complete

    running.send(message)
    running.ended_run(message, after=1)
    manifest = running.manifest(message)
    assert manifest is not None
    assert [entry.outcome for entry in manifest.attachments] == ["stored", "stored"]
    assert len(running.calls(message, "download")) == 2


def test_force_does_a_finished_message_again_and_restores_what_is_gone(running: Installation) -> None:
    """A file deleted by hand stays gone for redeliveries, and comes back with `force`."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "content"}])
    running.run_deployment(message_id=message["id"])
    (file,) = running.files(message)
    file.unlink()
    running.run_deployment(message_id=message["id"])
    assert not file.exists()
    run = running.run_deployment(message_id=message["id"], force=True)
    assert run["state_type"] == "COMPLETED"
    assert file.read_text() == "content"


def test_a_lost_manifest_is_rebuilt_without_a_download(running: Installation) -> None:
    """The files carry proof that they are ours and whole, so that one listing is enough."""
    message = running.sandbox.control.add_message(attachments=[{"name": f"{n}.bin", "bytes": 1000} for n in range(3)])
    running.run_deployment(message_id=message["id"])
    before = running.manifest(message)
    assert before is not None
    (running.stack.store / message_key(message["id"]) / "manifest.json").unlink()
    running.sandbox.control.clear_requests()
    running.run_deployment(message_id=message["id"])
    after = running.manifest(message)
    assert after is not None
    assert [entry.sha256 for entry in after.attachments] == [entry.sha256 for entry in before.attachments]
    assert running.calls(message, "download") == []


def test_a_fresh_message_is_not_given_up_for_a_404(running: Installation) -> None:
    """A message that becomes visible after some seconds is fetched by the same run."""
    message = running.sandbox.control.add_message(visible_after=5, attachments=[{"name": "a.txt", "text": "late"}])
    running.send(message)
    run = running.ended_run(message)
    assert run["state_type"] == "COMPLETED"
    assert len(running.calls(message, "list")) > 1


def test_a_fresh_part_is_not_given_up_for_a_404(running: Installation) -> None:
    """Exchange may list a part before it hands it out: the same run fetches it."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "late"}])
    gone = {"kind": "status", "status": 404}
    running.sandbox.control.fault(endpoint="download", message_id=message["id"], times=2, fault=gone)
    running.send(message)
    assert running.ended_run(message)["state_type"] == "COMPLETED"
    assert [file.read_text() for file in running.files(message)] == ["late"]


def test_a_list_that_contradicts_the_webhook_is_read_again_at_once(running: Installation) -> None:
    """Empty although the webhook names attachments: Exchange or a scanner is not ready, for some seconds."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "late"}])
    unfinished = {"kind": "unfinished_list"}
    running.sandbox.control.fault(endpoint="list", message_id=message["id"], times=2, fault=unfinished)
    running.send(message)
    assert running.ended_run(message)["state_type"] == "COMPLETED"
    assert [file.read_text() for file in running.files(message)] == ["late"]


@pytest.mark.parametrize(
    ("fault", "code", "stored"),
    [
        ({}, "not-listed", 0),
        ({"placeholder": "Safe Attachments Scan In Progress"}, "scan-in-progress", 0),
        ({"placeholder": "Safe Attachments Scan In Progress.eml", "keep": 1}, "scan-in-progress", 1),
        ({"placeholder": "ATP Scan In Progress", "attachment_type": "fileAttachment"}, "scan-in-progress", 0),
    ],
)
def test_a_list_that_is_not_final_settles_nothing(
    running: Installation, fault: dict[str, Any], code: str, stored: int
) -> None:
    """What is there is stored, the manifest is not complete, an attempt follows; a run that knows less does no harm.

    In a backfill, which does not wait for half a minute. Once the list is whole, any run completes the message.
    """
    names = ["a.txt", "b.txt"]
    message = running.sandbox.control.add_message(attachments=[{"name": name, "text": name} for name in names])
    order = running.sandbox.control.fault(
        endpoint="list", message_id=message["id"], times=None, fault={"kind": "unfinished_list", **fault}
    )
    for known in ({"has_attachments": True}, {}):
        run = running.run_deployment("backfill", message_id=message["id"], **known)
        assert (run["state_type"], run["state"]["name"]) == ("FAILED", "FailedForNow")
        assert run["state"]["message"].endswith(f" [code={code}, next_attempt=2]")
        manifest = running.manifest(message)
        assert manifest is not None
        assert (manifest.complete, manifest.pending, len(manifest.attachments)) == (False, code, stored)
        assert [file.read_text() for file in running.files(message)] == names[:stored]

    running.sandbox.control.delete(f"faults/{order}")
    assert running.run_deployment("backfill", message_id=message["id"])["state_type"] == "COMPLETED"
    assert running.complete_manifest(message).pending is None
    assert sorted(file.read_text() for file in running.files(message)) == names
    running.forget_unfinished_runs()


def test_a_message_without_attachments_is_done_with_a_manifest(running: Installation) -> None:
    """Nothing on it: a manifest without entries, so that nobody asks again."""
    message = running.sandbox.control.add_message(attachments=[])
    run = running.run_deployment(message_id=message["id"])
    manifest = running.manifest(message)
    assert run["state"]["message"] == "The message has no attachments."
    assert manifest is not None
    assert manifest.complete
    assert manifest.attachments == ()
