"""Real mail comes out of the whole product byte for byte as Python's `email` decodes it."""

import email
import email.policy
import hashlib
import shutil
from email.message import EmailMessage
from pathlib import Path

import pytest
import test.test_email

from attachments.sandbox.process import running_sandbox
from tests.e2e.installation import Installation, until

STANDARD_LIBRARY = Path(test.test_email.__file__).parent / "data"
FIXTURE_MAIL = Path(__file__).parents[2] / "attachments" / "demo" / "mail"


def _decoded(path: Path) -> list[str]:
    """The SHA-256 of every part that `email` decodes, nested messages left whole, sorted."""
    mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    digests = []

    def walk(part: object) -> None:
        assert isinstance(part, EmailMessage)
        if part.get_content_type() == "message/rfc822":
            return
        if part.is_multipart():
            for child in part.iter_parts():
                walk(child)
            return
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        digests.append(hashlib.sha256(content).hexdigest())

    walk(mail)
    return digests


@pytest.mark.parametrize("source", [pytest.param("standard library", marks=pytest.mark.soak), "our own"])
def test_real_mail_comes_out_as_email_decodes_it(running: Installation, tmp_path: Path, source: str) -> None:
    """Must show 9: each file in the store equals a part as `email` decodes it, for every message of the folder."""
    folder = tmp_path / "mail"
    folder.mkdir()
    paths = (
        sorted(STANDARD_LIBRARY.glob("msg_*.txt"))
        if source == "standard library"
        else sorted(FIXTURE_MAIL.glob("*.eml"))
    )
    assert len(paths) >= 5
    for path in paths:
        shutil.copy(path, folder / f"{path.stem}.eml")
    with running_sandbox(mail=folder, limit=None) as other:
        name = source.split(maxsplit=1)[0]
        running.save_blocks(f"""
            EmailgisticsAccount(base_url={other.base_url!r}, api_key={other.key!r}).save({name!r}, overwrite=True)
        """)
        running.deploy(name, account=name)
        answer = other.control.get("messages").json()
        messages = answer["messages"] if isinstance(answer, dict) else answer
        assert messages
        decodable = {digest for path in paths for digest in _decoded(path)}
        for message in messages:
            other.control.deliver(
                message_id=message["id"], url=running.stack.webhook_url(name), secret=running.stack.secret
            )
        with_attachments = [message for message in messages if message["webhook"]["hasAttachments"]]
        until(lambda: all(map(running.manifest, with_attachments)), "all manifests", patience=240)
        stored = 0
        for message in with_attachments:
            manifest = running.complete_manifest(message)
            for entry, part in zip(manifest.attachments, message["attachments"], strict=True):
                if part["type"] != "fileAttachment":
                    assert entry.outcome == "unsupported"
                    continue
                assert entry.key is not None
                digest = hashlib.sha256((running.stack.store / entry.key).read_bytes()).hexdigest()
                assert digest == part["sha256"]
                assert digest in decodable
                stored += 1
        print(f"{source}: {len(messages)} messages, {stored} files equal to what `email` decodes")
        assert stored >= 5
