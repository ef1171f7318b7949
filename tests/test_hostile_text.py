"""What others have written reaches no terminal, log or artifact as it is: planted in every source, for all output.

A store, a receiver, Prefect, Emailgistics and the file system are sources. A hostile text clears the screen, forges a
line, turns a line round, is invisible, and is long.
"""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyrage
import pytest
from markdown_it import MarkdownIt

import attachments.doctor as doctor_package
from attachments.cli.actions import message_preview, provisioning, status_report
from attachments.cli.actions.message_preview import StoredRecord, build_preview
from attachments.cli.actions.status_report import Calls, Reconciled, StatusReport
from attachments.cli.command_boundary import CommandFailed
from attachments.cli.main import main
from attachments.doctor.findings import failed, ok, summary, warning
from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.flows.doctor import report
from attachments.foundation.terminal_text import (
    MAX_LINE_LENGTH,
    LogFormatter,
    escaped,
    escaped_markdown,
    quoted,
    say,
    say_json,
)
from attachments.runs.artifacts import _plain_code
from attachments.storage import Encryption, Manifest, attachment_key, message_key, open_store
from attachments.storage.backends.base import Failure
from attachments.storage.errors import StoreUnavailable
from tests.storage.test_verification import record

FORGED = "Checked 1 object of 1 message, 1 byte: all as recorded."
HOSTILE = f"\x1b[2J\x1b]0;title\x07\r\n{FORGED}\n\x9b1A\x7f\x00\u202e\u2066\u200b\u2028\u3164\U000e0041\x08"
"""Without length; each source adds its own."""
LONG = HOSTILE + "x" * 100_000
OWNER = pyrage.x25519.Identity.generate()
MESSAGE_ID = "AAMkAGI1/xyz="
MESSAGE = message_key(MESSAGE_ID)


def is_harmless(text: str) -> bool:
    """One line is one line, nothing moves a cursor, and none is longer than any of ours."""
    lines = text.split("\n")
    return (
        all(line.isprintable() for line in lines)
        and "\u3164" not in text
        and not any(line.lstrip().startswith(FORGED) for line in lines)
        and all(len(line) < 12 * MAX_LINE_LENGTH for line in lines)
    )


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; what it printed has to be harmless, and to hold the escaped text where it was planted."""

    def run(*arguments: str, shows: str = "\\x1b") -> str:
        main(arguments)
        out, err = capsys.readouterr()
        assert is_harmless(out), out
        assert is_harmless(err), err
        assert "Internal error" not in err
        assert shows in out + err
        return out + err

    return run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTACHMENTS_URL", str(tmp_path / "root"))
    store = open_store(str(tmp_path / "root"), encryption=Encryption(age_recipients=(str(OWNER.to_public()),)))
    record(store, MESSAGE, "a.pdf")
    return tmp_path / "root"


def changed(root: Path, change: Any) -> None:
    """Rewrites the message's manifest, as anyone who can write to the store can."""
    path = root / MESSAGE / "manifest.json"
    document = json.loads(path.read_text())
    change(document, document["attachments"][0])
    path.write_text(json.dumps(document))


# ---- the one place ----


def test_a_line_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it holds, and on which stream; what is cut is told."""
    say(LONG, HOSTILE)
    say(LONG, is_error=True)
    out, err = capsys.readouterr()
    assert (out.count("\n"), err.count("\n")) == (2, 1)
    assert is_harmless(out + err)
    assert err.endswith(f"… ({len(LONG)} characters)\n")
    assert is_harmless(quoted(LONG))
    say_json({HOSTILE: HOSTILE})
    document = capsys.readouterr().out
    assert is_harmless(document)
    assert json.loads(document) == {HOSTILE: HOSTILE}


def test_it_takes_linear_time() -> None:
    """Of a text of a hundred megabytes, what is shown is looked at, and no more."""
    say_to = io.StringIO()
    huge = "\x1b" * 100_000_000
    assert len(quoted(huge)) < 1000
    print(escaped_markdown(huge)[:10], file=say_to)
    assert len(escaped("\x1b" * 100_000)) == 400_000


# ---- a store ----


@pytest.mark.parametrize("field", ["rule", "code", "name", "content_type", "id", "kind", "deployment"])
def test_a_manifests_entry_is_harmless(root: Path, said: Any, field: str, tmp_path: Path) -> None:
    """Each field that may hold any text, in each command that reads manifests."""
    changed(root, lambda _, entry: entry.update({field: LONG}))
    said("locate", MESSAGE_ID, shows="\\x1b" if field in {"rule", "code"} else "stored")
    said("locate", MESSAGE_ID, "--json", shows="\\u001b")
    said("verify", shows="all as recorded")
    identity = tmp_path / "identity"
    identity.write_text(str(OWNER))
    said("decrypt", MESSAGE_ID, "--identity", str(identity), "--to", str(tmp_path / "out"), shows="a.pdf")


@pytest.mark.parametrize("field", ["message_id", "mailbox", "deployment", "pending", "encryption", "more"])
def test_a_manifests_field_is_harmless(root: Path, said: Any, field: str) -> None:
    """`verify` prints the message's id in the command that fetches it again."""
    changed(root, lambda document, entry: (document.update({field: HOSTILE}), entry.update(sha256="0" * 64)))
    changed(root, lambda _, entry: entry.update(stored_sha256="0" * 64))
    said("locate", MESSAGE_ID, "--json", shows="\\u001b")
    said("verify", shows="its content differs from the manifest;")


@pytest.mark.parametrize("field", ["attachment_key", "key"])
@pytest.mark.parametrize("text", [HOSTILE, LONG, f"{MESSAGE}/{HOSTILE}/a", f"{MESSAGE}/{'0' * 32}/{HOSTILE}"])
def test_a_malformed_key_of_a_manifest_is_refused(root: Path, said: Any, field: str, text: str, tmp_path: Path) -> None:
    """No command repeats it."""
    changed(root, lambda _, entry: entry.update({field: text}))
    identity = tmp_path / "identity"
    identity.write_text(str(OWNER))
    for arguments in (
        ["locate", MESSAGE_ID],
        ["verify"],
        ["decrypt", MESSAGE_ID, "--identity", str(identity), "--to", str(tmp_path / "out")],
    ):
        assert FORGED not in said(*arguments, shows="damaged")


def test_left_overs_and_strange_objects_are_harmless(root: Path, said: Any) -> None:
    """A file on its way in and an object may have any name that the file system takes."""
    name = HOSTILE.replace("\x00", "").replace("/", "")
    place = root / MESSAGE / attachment_key("a.pdf")
    (root / ".incoming" / f"{name}.{name}.x").write_bytes(b"x")
    (place / f"z{name}").write_bytes(b"x")
    (root / MESSAGE / attachment_key("b") / name).mkdir(parents=True)
    told = said("verify", "--older-than", "0", shows="temporary file")
    assert "unknown place  temporary file" in told
    assert FORGED not in told.replace("\n", " ").partition("temporary file")[0]
    said("verify", "--older-than", "0", "--clean", shows="removed")


def test_a_services_word_for_its_error_is_plain_or_left_out() -> None:
    """It becomes part of an error, of a run's state and of a log."""
    for symbol in (HOSTILE, LONG, "403 <b>", "x" * 61, "a\n", ""):
        error = Failure(StoreUnavailable, symbol, "look at it").as_error("read attachment", MESSAGE)
        assert str(error) == f"could not read attachment {MESSAGE} (unknown): look at it"
    for symbol in ("KMS.Throttling-1_x", "403 forbidden"):
        assert f"({symbol})" in str(Failure(StoreUnavailable, symbol, "a").as_error("b", None))


# ---- the network ----


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Something that answers every connection alike, byte for byte."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/webhooks/default"
        listener.shutdown(socket.SHUT_RDWR)


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize("status", ["200 OK", "503 Full"])
@pytest.mark.parametrize("text", [HOSTILE, LONG], ids=["hostile", "long"])
def test_what_a_receiver_answers_is_harmless(
    said: Any, monkeypatch: pytest.MonkeyPatch, status: str, text: str
) -> None:
    """`trigger` prints its message; success or not."""
    monkeypatch.setenv("NO_PROXY", "*")
    for word in ("success", "error"):
        with answering(http(status, json.dumps({"status": word, "message": text}).encode())) as url:
            said("trigger", MESSAGE_ID, "--url", url)
    with answering(b"HTTP/1.1 200 \x1b[2J\r\n\x1b[2J\r\n\r\n") as url:
        said("trigger", MESSAGE_ID, "--url", url, shows="receiver")


def test_what_a_receiver_answers_is_harmless_to_the_sandbox(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the error of its client, which may quote what it met."""
    from attachments.sandbox.output import say as sandbox_say

    sandbox_say(LONG.replace("\u3164", ""))
    assert is_harmless(capsys.readouterr().out)


# ---- Prefect ----


def test_what_a_preview_shows_is_harmless(monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    """Emailgistics lists any name, type and kind."""
    listed = [
        Attachment.model_validate({"id": text, "name": text, "contentType": text, "attachmentType": text})
        for text in (HOSTILE, HOSTILE * 20)
    ]
    shown = build_preview(MESSAGE_ID, f"download-attachments/{HOSTILE}", listed, StoredRecord(), Filter())
    monkeypatch.setattr(message_preview, "preview_message", lambda *_: shown)
    said("preview", MESSAGE_ID)
    said("preview", MESSAGE_ID, "--json", shows="\\u001b")

    def refused(*_: object) -> None:
        raise CommandFailed(LONG)

    monkeypatch.setattr(message_preview, "preview_message", refused)
    said("preview", MESSAGE_ID)


def test_what_a_status_shows_is_harmless(monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    """Names of limits, accounts and deployments come from Prefect."""
    shown = StatusReport(
        calls={HOSTILE: Calls(last_minute=1, limit=2)},
        reconciliation=(Reconciled(mailbox_key=HOSTILE, account=LONG, deployment=HOSTILE, until=datetime.now(UTC)),),
        problems=(LONG,),
    )
    monkeypatch.setattr(status_report, "read_status", lambda *_: shown)
    said("status")
    said("status", "--json", shows="\\u001b")


FINDINGS = [
    failed(HOSTILE, LONG, HOSTILE, subject=LONG, names=[LONG]),
    warning("limit", HOSTILE, HOSTILE, subject=HOSTILE),
    ok("store", HOSTILE, subject=HOSTILE, names=[HOSTILE]),
]


def test_what_the_doctor_shows_is_harmless(monkeypatch: pytest.MonkeyPatch, said: Any, tmp_path: Path) -> None:
    """Names of blocks, limits and pools come from Prefect, versions from its server, addresses from Emailgistics."""
    monkeypatch.setattr(doctor_package, "run_checks", lambda: iter(FINDINGS))
    for more in ([], ["--json"]):
        said("doctor", "--no-receiver", "--inbox", str(tmp_path / "none"), *more, shows="1b[2J")


def test_what_setup_shows_is_harmless(monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    """Names of deployments and automations come from Prefect."""

    async def set_up(_: object, tell: Any, **__: object) -> str:
        tell("unchanged", LONG)
        return HOSTILE

    async def refused(*_: object, **__: object) -> None:
        raise CommandFailed(LONG)

    for outcome in (set_up, refused):
        monkeypatch.setattr(provisioning, "set_up", outcome)
        said("setup")


def test_what_check_shows_is_harmless(tmp_path: Path, said: Any) -> None:
    """A prefect.yaml may come from anybody."""
    deployment = {"name": HOSTILE, "entrypoint": "f.py:download_attachments", "filter": {}, "parameters": {HOSTILE: 1}}
    (tmp_path / "prefect.yaml").write_text(json.dumps({"deployments": [deployment]}))
    said("check", str(tmp_path / "prefect.yaml"))
    said("check", "--filter", json.dumps({"include": [{"names": [1], HOSTILE: HOSTILE}]}), shows="")


def test_a_wrong_call_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """What was pasted is quoted."""
    assert main(["locate", MESSAGE_ID, LONG]) == 2
    said = capsys.readouterr().err
    assert "\\x1b" in said
    assert is_harmless(said)


# ---- logs and artifacts ----


def test_a_record_of_a_log_cannot_be_forged() -> None:
    """What a text says after a line break is indented, so it is no record; the receiver's log is written so."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)-8s %(name)s  %(message)s"))
    logger = logging.Logger("attachments")
    logger.addHandler(handler)
    for text in (HOSTILE, LONG):
        logger.warning("Message %s waits for %s.", text, text)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("A defect.")
    lines = stream.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    starts = [line for line in lines if line and not line.startswith("    ")]
    assert len(starts) == 3
    assert all(" WARNING  " in line or " ERROR  " in line for line in starts)


MARKUP = [
    "![x](https://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "&lt;b&gt;",
    "https://evil.example",
    "www.evil.example",
    "mailto:a@evil.example",
    "a@evil.example",
    "# heading",
    "| a | b |\n| --- | --- |",
    "```\ncode",
    "`x` ``y`<img src=x>`` `",
    "a\n\n![x](y)",
    "*x* __x__ ~~x~~",
    "\\![x](y)\\<b>",
    "[x]: https://evil.example\n[x]",
]


@pytest.mark.parametrize("text", [*MARKUP, HOSTILE, "".join(MARKUP)])
def test_no_text_becomes_markup_in_an_artifact(text: str) -> None:
    """Nobody who names a block or a limit, or answers as Prefect's server, writes a link, image or HTML into the UI."""
    findings = [
        failed("a", text, text, subject=text),
        warning("b", text, text, subject=text),
        ok("c", text, subject=text),
    ]
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for shown in (report(findings), escaped_markdown(summary(findings)), escaped_markdown(text)):
        kinds = {child.type for token in reader.parse(shown) for child in (token, *(token.children or ()))}
        assert not kinds & {"link_open", "image", "html_inline", "html_block", "fence", "table_open", "heading_open"}
        assert "://" not in shown.replace("\\://", "")
        assert "www.e" not in shown
        assert "a@e" not in shown


def test_our_own_commands_stay_code_in_an_artifact() -> None:
    """A command is to be copied as it is."""
    shown = report([failed("queue", "Its *limit* is 0.", "Remove it: `prefect work-queue set x_y --pool a`.")])
    assert "- What to do: Remove it: `prefect work-queue set x_y --pool a`." in shown
    assert "- Its \\*limit\\* is 0." in shown


def test_a_code_of_another_is_not_shown_in_a_runs_table() -> None:
    """An earlier manifest may hold any text there."""
    assert [_plain_code(code) for code in (None, "not-found", HOSTILE, "<b>", "a b", "x" * 41)] == [
        None,
        "not-found",
        *("other",) * 4,
    ]


def test_a_manifest_that_is_refused_is_not_repeated() -> None:
    """Its error becomes the state of a run."""
    with pytest.raises(Exception, match="damaged") as caught:
        Manifest.from_bytes(json.dumps({"schema": 1, "message_key": HOSTILE}).encode(), message_key=MESSAGE)
    assert str(caught.value).isprintable()
