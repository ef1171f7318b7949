"""`attachments verify` and `attachments decrypt`: what they say, what they write, and their exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pyrage
import pytest

from attachments.cli.main import main
from attachments.storage import Encryption, attachment_key, message_key, open_store
from tests.storage.samples import CONTENT
from tests.storage.test_verification import record

OWNER = pyrage.x25519.Identity.generate()
MESSAGE_ID = "AAMkAGI1/xyz="
MESSAGE = message_key(MESSAGE_ID)
OTHER = message_key("another message")
NAME = "-".join(("Kanarienvogel", "Gehalt")) + ".pdf"
PLACE = f"{MESSAGE}/{attachment_key(NAME)}"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTACHMENTS_URL", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def filled(root: Path) -> Path:
    record(open_store(str(root)), MESSAGE, NAME)
    return root


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    path = tmp_path / "identity.txt"
    path.write_text(f"# created: 2026-11-25\n{OWNER}\n")
    return path


@pytest.fixture
def sealed(root: Path) -> Path:
    record(open_store(str(root), encryption=Encryption(age_recipients=(str(OWNER.to_public()),))), MESSAGE, NAME)
    return root


@pytest.mark.parametrize("arguments", [[], [MESSAGE_ID], ["--at-once", "1"]])
def test_verify_says_how_much_it_has_read(
    arguments: list[str], filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All messages, or one; status 0 when all is as recorded."""
    assert main(["verify", *arguments]) == 0
    assert capsys.readouterr().out == f"Checked 1 object of 1 message, {len(CONTENT):,} bytes: all as recorded.\n"


def test_verify_names_what_differs_by_key(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, the key and what to do; no file name."""
    (filled / PLACE / NAME).write_bytes(b"x" * len(CONTENT))
    assert main(["verify"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith(f"{PLACE}  its content differs from the manifest; ")
    assert "1 differs, see above." in told.out
    assert NAME not in told.out + told.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["verify", "other"],
        ["locate", "other"],
        ["decrypt", "other", "--identity", "IDENTITY", "--to", "out"],
    ],
)
def test_a_store_that_is_not_there_is_told_with_its_url(
    arguments: list[str], root: Path, identity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped URL, or a disk that is not mounted, is taken neither for a store in order nor for an unknown id."""
    assert main([str(identity) if argument == "IDENTITY" else argument for argument in arguments]) == 1
    assert "".join(capsys.readouterr()) == (
        f"No message is stored in {root.as_uri()}. If there should be, check ATTACHMENTS_URL, and that the "
        "disk is mounted.\n"
    )
    assert not root.exists()


@pytest.mark.parametrize("command", ["verify", "locate"])
def test_a_message_that_a_store_does_not_have_is_told_with_its_url(
    command: str, filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Perhaps it is in another one."""
    assert main([command, "other"]) == 1
    said = capsys.readouterr().err
    assert f"of message {message_key('other')} in {filled.as_uri()}: the message has not been stored yet." in said


def test_a_message_without_a_manifest_is_not_said_to_be_unknown(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its attachments are there while its run is under way, or after a kill."""
    (filled / MESSAGE / "manifest.json").unlink()
    assert main(["locate", MESSAGE_ID]) == 1
    said = capsys.readouterr().err
    assert f"Message {MESSAGE} has attachments in {filled.as_uri()}, but no manifest" in said


def changed_manifest(root: Path, change: dict[str, object], entry: dict[str, object]) -> None:
    path = root / MESSAGE / "manifest.json"
    manifest = json.loads(path.read_text()) | change
    manifest["attachments"][0] |= entry
    path.write_text(json.dumps(manifest))


def repairs(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What verify prints below a message's differences, without its margin."""
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize(
    ("manifest", "entry", "deployment"),
    [
        (None, None, "download-attachments/default"),
        ("download-attachments/invoices", None, "download-attachments/invoices"),
        ("download-attachments/default", "download-attachments/invoices", "download-attachments/invoices"),
        (None, "download-attachments/our invoices; rm x", "'download-attachments/our invoices; rm x'"),
    ],
)
def test_verify_names_the_deployment_that_recorded_what_differs(
    filled: Path, capsys: pytest.CaptureFixture[str], manifest: str | None, entry: str | None, deployment: str
) -> None:
    """Another one stores elsewhere, and takes something else of the message."""
    changed_manifest(filled, {"deployment": manifest}, {"deployment": entry})
    (filled / PLACE / NAME).unlink()
    assert main(["verify", MESSAGE_ID]) == 1
    assert repairs(capsys) == [
        f"prefect deployment run {deployment} --param 'message_id=\"{MESSAGE_ID}\"' --param force=true"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "default",
        "a/b/c",
        "/default",
        "-p/x",
        "a/--x",
        "a/\x1b[2J",
        "a/b\nrm x",
        "a/\u202ex",
        "a/<x>",
        f"a/{'x' * 500}",
    ],
)
def test_verify_prints_no_command_with_what_cannot_be_a_deployment(
    filled: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Others may write to the store, and what is printed is pasted. An empty name is none."""
    changed_manifest(filled, {}, {"deployment": name})
    (filled / PLACE / NAME).unlink()
    assert main(["verify", MESSAGE_ID]) == 1
    (line,) = repairs(capsys)
    if name:
        assert line.startswith("The manifest names an impossible deployment, so it was altered.")
        assert "prefect deployment run" not in line
    else:
        assert "download-attachments/default" in line


def test_verify_tells_of_left_overs_and_removes_them(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Young ones may be a living writer's: by default only what is older than a day counts."""
    left = filled / ".incoming" / f"{PLACE.replace('/', '.')}.0011223344556677"
    left.write_bytes(b"part")
    assert main(["verify"]) == 0
    assert "left" not in capsys.readouterr().out
    assert main(["verify", "--older-than", "0"]) == 0
    assert "`attachments verify --clean` removes the leftovers." in capsys.readouterr().out
    assert left.exists()
    assert main(["verify", "--older-than", "0", "--clean"]) == 0
    assert f"{PLACE}  temporary file, removed" in capsys.readouterr().out
    assert not left.exists()


def test_decrypt_writes_what_was_attached(
    sealed: Path, identity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the same keys, readable by the owner alone, and it says where."""
    assert main(["decrypt", MESSAGE_ID, "--identity", str(identity), "--to", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / PLACE / NAME
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in path.parent.iterdir()] == [NAME]


def test_decrypt_leaves_nothing_of_what_was_altered(
    sealed: Path, identity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut file decrypts to its beginning: that may not look like the attachment."""
    path = sealed / PLACE / f"{NAME}.age"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["decrypt", MESSAGE_ID, "--identity", str(identity), "--to", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert f"Attachment {PLACE} cannot be decrypted: it was encrypted to other keys, or it was truncated or" in told.err
    assert f"`attachments verify {MESSAGE} --identity FILE` shows which." in told.err
    assert NAME not in told.err
    assert [found for found in (tmp_path / "out").rglob("*") if found.is_file()] == []


@pytest.mark.parametrize("key", [f"{MESSAGE}/../../evil.age", f"{MESSAGE}/x/evil.age", "/evil.age", f"{PLACE}/...age"])
def test_decrypt_stays_in_its_folder(
    sealed: Path, identity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    """Anyone who may write to the store can write a manifest, and encrypt to the public key."""
    path = sealed / MESSAGE / "manifest.json"
    path.write_text(path.read_text().replace(f"{PLACE}/{NAME}.age", key))
    assert main(["decrypt", MESSAGE_ID, "--identity", str(identity), "--to", str(tmp_path / "out")]) == 1
    assert "it was altered" in capsys.readouterr().err
    assert list(tmp_path.rglob("evil*")) == []


def test_decrypt_of_one_message_opens_no_other(
    sealed: Path, identity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its manifest names another message's file, hash and all; nothing of that is read, and nothing written."""
    store = open_store(str(sealed), encryption=Encryption(age_recipients=(str(OWNER.to_public()),)))
    record(store, OTHER, "theirs.pdf")
    theirs, path = store.read_manifest(OTHER), sealed / MESSAGE / "manifest.json"
    assert theirs is not None
    ours = json.loads(path.read_text())
    stolen = json.loads(theirs.to_bytes())["attachments"][0]
    for attachment in (stolen, {**stolen, "attachment_key": attachment_key(NAME)}):
        path.write_text(json.dumps({**ours, "attachments": [attachment]}))
        assert main(["decrypt", MESSAGE_ID, "--identity", str(identity), "--to", str(tmp_path / "out")]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "it was altered" in said.err
        assert [found for found in (tmp_path / "out").rglob("*") if found.is_file()] == []
        assert main(["verify"]) == 1
        assert "the manifest has another attachment's path, so" in capsys.readouterr().out
        assert main(["locate", MESSAGE_ID]) == 0
        assert OTHER not in capsys.readouterr().out


@pytest.mark.parametrize("key", [f"{PLACE}/a\0.pdf.age", "", f"{PLACE}", "a/b", f"{PLACE}/a/b", "\0", "x" * 5000])
@pytest.mark.parametrize("command", ["locate", "verify", "decrypt"])
def test_a_malformed_key_is_told_and_is_no_traceback(
    sealed: Path, identity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, key: str
) -> None:
    """Whatever the manifest holds in a key's place."""
    path = sealed / MESSAGE / "manifest.json"
    changed = json.loads(path.read_text())
    changed["attachments"][0]["key"] = key
    path.write_text(json.dumps(changed))
    options = ["--identity", str(identity), "--to", str(tmp_path / "out")] if command == "decrypt" else []
    status = main([command, MESSAGE_ID, *options])
    out, err = capsys.readouterr()
    assert status == (0 if command == "locate" and not err else 1)
    assert "Internal error" not in out + err
    assert "altered" in out + err or "damaged" in out + err
    assert (out + err).replace("\n", "").isprintable()


def test_verify_decrypts_when_it_is_given_the_identity(
    sealed: Path, identity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another's identity does not fit, and that is told by key."""
    assert main(["verify", "--identity", str(identity)]) == 0
    identity.write_text(str(pyrage.x25519.Identity.generate()))
    assert main(["verify", "--identity", str(identity)]) == 1
    told = capsys.readouterr().out
    assert f"{PLACE}  cannot be decrypted with this identity, although it is intact; use another identity." in told
    assert "prefect deployment run" not in told, "a run does not change existing objects."


def test_verify_tells_an_altered_file_from_a_wrong_identity(
    sealed: Path, identity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/errors.md says of `cannot-decrypt`: with the identity it tells which."""
    path = sealed / PLACE / f"{NAME}.age"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["verify", "--identity", str(identity)]) == 1
    told = capsys.readouterr().out
    assert f"{PLACE}  its content differs from the manifest; move it away" in told
    assert "cannot be decrypted" not in told


def test_verify_finds_what_decrypts_to_something_else(
    sealed: Path, identity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its hash as it stands is recorded, and another one of the attachment."""
    changed_manifest(sealed, {}, {"sha256": "0" * 64})
    assert main(["verify", "--identity", str(identity)]) == 1
    assert f"{PLACE}  its decrypted content differs from the manifest; move it away" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["decrypt", "other", "--identity", "IDENTITY", "--to", "out"], "There is no manifest of message"),
        (
            ["decrypt", MESSAGE_ID, "--identity", "IDENTITY", "--to", "out"],
            "No attachment of this message was encrypted",
        ),
        (["decrypt", MESSAGE_ID, "--identity", "nowhere", "--to", "out"], "cannot be read"),
        (["verify", "--identity", "/dev/null"], "no usable age identity"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], said: str, filled: Path, identity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, one line on standard error, no traceback."""
    assert main([str(identity) if argument == "IDENTITY" else argument for argument in arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--older-than", "-1"], ["--older-than", "nan"], ["--at-once", "0"], [""]])
def test_wrong_arguments_are_refused(arguments: list[str], filled: Path) -> None:
    """Status 2, as every command does."""
    assert main(["verify", *arguments]) == 2
