"""Promise 4: customer data is in the store, and nowhere else."""

import pytest

from attachments.storage import message_key
from tests.e2e.installation import Installation, until

CANARY = "canary-7f3a91c2"


def test_a_canary_is_found_in_the_store_alone(running: Installation) -> None:
    """Must show 4: names, subject, sender and contents hold a string that shows up in no log, table or answer.

    It goes through success, 403, 404, 500, a full disk and a store that may not be written.
    """
    control = running.sandbox.control
    running.save_blocks(f"""
        AttachmentStore(url="file://{running.stack.folder}/small").save("small", overwrite=True)
        AttachmentStore(url="file://{running.stack.folder}/readonly/store").save("readonly", overwrite=True)
    """)

    def message(**fault: object) -> dict[str, object]:
        made = control.add_message(
            subject=f"subject {CANARY}",
            sender=f"{CANARY}@example.com",
            body_text=f"body {CANARY}",
            attachments=[
                {
                    "name": f"{CANARY}.pdf",
                    "content_type": f'application/pdf; name="{CANARY}"',
                    "text": f"content {CANARY}",
                },
                {"name": f"{CANARY}.bin", "content_type": f"application/{CANARY}", "bytes": 3_000_000},
            ],
        )
        assert CANARY in str(made["webhook"])
        if fault:
            control.fault(
                message_id=made["id"],
                fault={"body": f'{{"error": {{"message": "{CANARY}"}}}}', **fault["fault"]},
                **{k: v for k, v in fault.items() if k != "fault"},
            )  # type: ignore[dict-item,arg-type]
        return made

    answers = []
    stored = message()
    forbidden = message(endpoint="download", times=None, fault={"kind": "status", "status": 403})
    gone = message(endpoint="download", times=None, fault={"kind": "status", "status": 404})
    broken = message(endpoint="download", times=2, fault={"kind": "status", "status": 500})
    for made in (stored, forbidden, gone, broken):
        answers += running.send(made)
    ends = [running.ended_run(made)["state_type"] for made in (stored, forbidden, gone, broken)]
    assert ends == ["COMPLETED", "FAILED", "FAILED", "COMPLETED"]
    full = running.run_deployment(message_id=message()["id"], store="small")
    denied = running.run_deployment(message_id=message()["id"], store="readonly")
    assert full["state_type"] == denied["state_type"] == "FAILED"
    assert "out-of-space" in str(running.artifacts(full["id"]))

    (file, _) = running.files(stored)
    assert CANARY in file.name
    assert CANARY.encode() in (running.stack.store / message_key(str(stored["id"])) / "manifest.json").read_bytes()
    assert CANARY not in str(answers)
    until(running.is_idle, "the inbox to be empty")
    for path in running.stack.folder.glob("inbox.sqlite*"):
        assert CANARY.encode() not in path.read_bytes()
    leaks = {place for place, content in running.everything_kept() if CANARY.encode() in content}
    assert leaks == set()


def test_no_key_or_secret_is_kept_in_the_clear(running: Installation) -> None:
    """Neither the API key nor the webhook's secret is in a log or a table; blocks keep the key encrypted."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    running.send(message)
    running.complete_manifest(message)
    secrets = (running.sandbox.key.encode(), running.stack.secret.encode())
    leaks = {place for place, content in running.everything_kept() for secret in secrets if secret in content}
    assert leaks == set()


@pytest.mark.parametrize(
    ("store", "code", "remedy"),
    [("small", "out-of-space", "free space"), ("readonly", "access-denied", "")],
)
def test_a_store_that_fails_is_a_typed_error_and_a_retry_finishes(
    running: Installation, store: str, code: str, remedy: str
) -> None:
    """Fault 21: what was stored stays; the error is named by key; once the store is well, a retry does the rest."""
    running.save_blocks(f"""
        AttachmentStore(url="file://{running.stack.folder}/small").save("small", overwrite=True)
        AttachmentStore(url="file://{running.stack.folder}/readonly/store").save("readonly", overwrite=True)
    """)
    message = running.sandbox.control.add_message(
        attachments=[{"name": "small.bin", "bytes": 1000}, {"name": "large.bin", "bytes": 2_000_000}]
    )
    run = running.run_deployment(message_id=message["id"], store=store)
    assert run["state_type"] == "FAILED"
    assert remedy in run["state"]["message"]
    assert code in str(running.artifacts(run["id"])) or store == "readonly"
    if store == "small":
        root = running.stack.folder / "small"
        seen_by_worker = f"/proc/{running.stack.worker.pid}/root{root}"
        manifest = running.manifest(message, root=type(root)(seen_by_worker))
        assert manifest is not None
        assert [entry.outcome for entry in manifest.attachments] == ["stored", "failed"]
    again = running.run_deployment(message_id=message["id"])
    assert again["state_type"] == "COMPLETED"
    assert len(running.files(message)) == 2
