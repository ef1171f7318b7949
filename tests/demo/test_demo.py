"""The demo: its mail, its folder, its comparison; and, as a soak test, all of it."""

import hashlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import wave
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from attachments.demo.comparison import Verdict, compare
from attachments.demo.make_mail import LARGE, SHIPPED, SMALL, write_all
from attachments.demo.originals import File, Original, read_originals
from attachments.demo.processes import NotReady, Process, wait_for
from attachments.demo.show import leave_out_settings
from attachments.demo.stop_request import Stopped, stop_on_signals
from attachments.demo.workspace import MARKER, FolderInUse, clean_folder
from attachments.sandbox.bodies import Spool
from attachments.sandbox.mail import attachment_parts, decoded, read_mail
from attachments.storage import Manifest, attachment_key, message_key, open_store

ATTACHMENTS = Path(sys.executable).with_name("attachments")
PATIENCE = 1200.0  # seconds for all of a demo; on a busy machine, set-up alone takes minutes


def files_of(mail: str) -> dict[str, bytes]:
    """The attachments of a shipped mail by name."""
    import email
    from email import policy

    message = email.message_from_bytes((SHIPPED / mail).read_bytes(), policy=policy.default)
    return {part.get_filename() or "": decoded(part) for part in attachment_parts(message)}


# ---- the mail ----


@pytest.mark.parametrize("name", SMALL)
def test_shipped_mail_is_what_the_generator_makes(name: str) -> None:
    """Byte for byte. After a change: python -m attachments.demo.make_mail."""
    assert (SHIPPED / name).read_bytes() == SMALL[name]()


def test_nothing_else_is_shipped_and_it_is_small() -> None:
    """The folder holds the generator's mail and the rule for its line ends, less than 100 kB in all."""
    found = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert set(found) == {*SMALL, ".gitattributes"}
    assert sum(found.values()) < 100_000


@pytest.mark.parametrize("name", SMALL)
def test_shipped_mail_is_well_formed(name: str) -> None:
    """CRLF line ends, lines of at most 998 bytes (RFC 5322, section 2.1.1), addresses at example.com."""
    lines = (SHIPPED / name).read_bytes().split(b"\r\n")
    assert not any(b"\n" in line or b"\r" in line for line in lines)
    assert max(map(len, lines)) <= 998
    assert all(line.endswith(b"@example.com>") for line in lines if line.startswith((b"From:", b"To:")))


def test_names_in_every_notation_are_read_as_meant() -> None:
    """Quoted, RFC 2231 in one piece and in several: the same names for the standard library and the sandbox."""
    originals = read_originals(SHIPPED)
    assert [[file.name for file in original.files] for original in originals] == [
        ["Invoice 2026-1187.pdf", "logo.png"],
        ["Order list week 47.xlsx"],
        ["Prüfbericht Kühlanlage – Halle 3.pdf"],
        ["冷却ポンプ交換工事 御見積書 2026年11月.xlsx"],
        ["Pump delivered with a dent", "Delivery note 88213.pdf"],
        [],
    ]
    spool = Spool()
    try:
        shown = {message.internet_message_id: message.attachments for message in read_mail(SHIPPED, spool)}
    finally:
        spool.close()
    for original in originals:
        assert [part.name for part in shown[original.internet_message_id]] == [file.name for file in original.files]


def test_a_mail_in_a_mail_is_no_file() -> None:
    """It has a name and no bytes; the file beside it has both."""
    (forwarded,) = [one for one in read_originals(SHIPPED) if one.subject.startswith("Fwd:")]
    inner, note = forwarded.files
    assert (inner.bytes, inner.sha256) == (None, None)
    assert note.bytes
    assert note.sha256


@pytest.mark.parametrize(
    "mail", ["1-invoice.eml", "3-report-in-german.eml", "5-forwarded-complaint.eml"], ids=lambda mail: mail[2:-4]
)
def test_the_pdfs_are_pdfs(mail: str) -> None:
    """Header, end, and a cross-reference table whose offsets point at the objects."""
    for name, content in files_of(mail).items():
        if not name.endswith(".pdf"):
            continue
        assert content.startswith(b"%PDF-1.4\n")
        assert content.endswith(b"%%EOF\n")
        start = int(content.rsplit(b"startxref\n", 1)[1].split(b"\n")[0])
        table = content[start:].split(b"\n")
        assert table[0] == b"xref"
        offsets = [int(line[:10]) for line in table[3:] if line.endswith(b" n ")]
        assert len(offsets) == 6
        for number, offset in enumerate(offsets, start=1):
            assert content[offset:].startswith(b"%d 0 obj\n" % number)
        length = int(content.split(b"/Length ")[1].split(b" ")[0])
        assert content.split(b"stream\n", 1)[1][length:].startswith(b"\nendstream")


def test_the_picture_is_a_png() -> None:
    """Every chunk's checksum holds, and the pixels unpack to the size that the header names."""
    content = files_of("1-invoice.eml")["logo.png"]
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, rest = [], content[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, data, checksum = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert struct.unpack(">I", checksum) == (zlib.crc32(kind + data),)
        chunks.append((kind, data))
        rest = rest[12 + length :]
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height = struct.unpack(">II", chunks[0][1][:8])
    assert len(zlib.decompress(chunks[1][1])) == height * (1 + 3 * width)


@pytest.mark.parametrize("mail", ["2-order-list.eml", "4-quotation-in-japanese.eml"], ids=lambda mail: mail[2:-4])
def test_the_spreadsheets_are_workbooks(mail: str) -> None:
    """A sound zip with the parts that Office Open XML wants, each of them XML, and rows in the sheet."""
    (content,) = files_of(mail).values()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            "[Content_Types].xml",
            "_rels/.rels",
            "xl/workbook.xml",
            "xl/_rels/workbook.xml.rels",
            "xl/worksheets/sheet1.xml",
        }
        sheet = [ElementTree.fromstring(archive.read(name)) for name in archive.namelist()][-1]
    assert len(list(sheet.iter("{http://schemas.openxmlformats.org/spreadsheetml/2006/main}row"))) in (3, 4)


def test_the_large_message_is_made_when_the_demo_runs(tmp_path: Path) -> None:
    """40 MB of sound, the same bytes each time and everywhere, beside the shipped mail."""
    write_all(tmp_path)
    *small, large = read_originals(tmp_path)
    assert tuple(small) == read_originals(SHIPPED)
    assert large.files == (
        File(
            "compressor noise.wav",
            LARGE + 44,
            "e70dadd835c2e72c38082ac1f9adca57c90ce5d7cdb5928d64f22d9d891f8fc0",
        ),
    )


def test_the_recording_is_a_sound_file() -> None:
    """44.1 kHz, 16 bits, stereo; a few samples stand for all."""
    from attachments.demo.documents import wav

    with wave.open(io.BytesIO(wav(4001))) as sound:
        assert sound.getparams()[:4] == (2, 2, 44_100, 1000)


# ---- the folder ----


def test_a_folder_that_the_demo_did_not_make_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """Whatever is in it, even under the names that the demo uses."""
    (tmp_path / "attachments").mkdir()
    (tmp_path / "attachments" / "mine.txt").write_text("mine")
    with pytest.raises(FolderInUse, match="not created by this demo"), clean_folder(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["attachments", "mine.txt"]


def test_a_second_run_starts_afresh_and_leaves_what_others_put_there(tmp_path: Path) -> None:
    """What the demo made is gone, a file of the user's is not, and nothing behind a link is touched."""
    folder, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("precious")
    with clean_folder(folder):
        (folder / "attachments").mkdir()
        (folder / "attachments" / "old").write_text("old")
        (folder / "worker.log").write_text("old")
        (folder / "notes.txt").write_text("mine")
        (folder / "mail").symlink_to(elsewhere)
    with clean_folder(folder):
        assert sorted(path.name for path in folder.iterdir()) == [MARKER, "notes.txt"]
    assert (elsewhere / "precious").exists()


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is told so, and the first keeps its files."""
    with clean_folder(tmp_path / "demo") as folder:
        (folder / "mail").mkdir()
        with pytest.raises(FolderInUse, match="Another demo is running"), clean_folder(folder):
            pass
        assert (folder / "mail").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sleep", "60"], "The thing was still starting after 0 s: this machine is slow or busy. Try again"),
        (["false"], "The thing ended while it was starting, with exit status 1."),
    ],
)
def test_a_process_that_does_not_get_ready_says_whether_it_still_starts(
    tmp_path: Path, command: list[str], said: str
) -> None:
    """A busy machine needs another try, a process that has ended needs a look at its log."""
    process = Process("thing", command, {}, tmp_path / "thing.log", bool, ready_timeout=0.0)
    process.start(wait=False)
    try:
        if command == ["false"]:
            wait_for(lambda: process.code is not None, "its end")
        with pytest.raises(NotReady, match=re.escape(said)):
            process.wait_until_ready()
    finally:
        process.kill()


def test_the_users_own_settings_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo beside a real installation must not reach its Prefect, its database or its store."""
    names = ["PREFECT_API_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "EMAILGISTICS_API_KEY", "ATTACHMENTS_URL"]
    for name in names:
        monkeypatch.setenv(name, "real")
    monkeypatch.setenv("UNRELATED", "stays")
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "EMAILGISTICS_", "ATTACHMENTS_"))]:
        monkeypatch.setenv(name, os.environ[name])  # so that it is put back after the test
    leave_out_settings()
    assert not [name for name in names if name in os.environ]
    assert os.environ["UNRELATED"] == "stays"


# ---- the comparison ----


MESSAGE = "AAMk-message"
CONTENT = b"content " * 1000


def stored(root: Path, content: bytes = CONTENT, name: str = "a.txt") -> Path:
    """A message with one file, as the product stores it; returns where the file is."""
    store, key = open_store(str(root)), message_key(MESSAGE)
    found = store.write(key, attachment_key("1"), name, [content])
    entry = {
        "id": "1",
        "attachment_key": attachment_key("1"),
        "name": "a.txt",
        "outcome": "stored",
        "key": found.key,
        "bytes": found.bytes,
        "sha256": found.sha256,
        "stored_at": found.stored_at,
    }
    manifest = Manifest.model_validate(
        {"message_id": MESSAGE, "message_key": key, "updated": datetime.now(UTC), "attachments": [entry]}
    )
    store.update_manifest(key, lambda _: manifest)
    return root / found.key


def verdicts(root: Path, *files: File) -> list[Verdict]:
    """What the comparison of a mail with these files comes to."""
    return [row.verdict for row in compare(Original("<1@example.com>", "Subject", files), root, message_key(MESSAGE))]


WANTED = File("a.txt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_a_file_that_arrived_whole_is_equal(tmp_path: Path) -> None:
    """Size and SHA-256 of the mail, the manifest and the file on disk are the same."""
    stored(tmp_path)
    assert verdicts(tmp_path, WANTED) == [Verdict.EQUAL]


def test_one_other_bit_is_different(tmp_path: Path) -> None:
    """The file on disk is read, whatever the manifest says of it."""
    file = stored(tmp_path)
    content = bytearray(CONTENT)
    content[4000] ^= 1
    file.write_bytes(content)
    assert verdicts(tmp_path, WANTED) == [Verdict.DIFFERENT]


def test_a_wrong_source_is_different(tmp_path: Path) -> None:
    """File and manifest agree, and both are not what was in the mail."""
    stored(tmp_path, b"something else")
    assert verdicts(tmp_path, WANTED) == [Verdict.DIFFERENT]


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    """No manifest; a manifest without the attachment; a manifest whose file is gone."""
    assert verdicts(tmp_path, WANTED) == [Verdict.MISSING]
    file = stored(tmp_path)
    assert verdicts(tmp_path, WANTED, File("b.txt", 1, "0" * 64)) == [Verdict.EQUAL, Verdict.MISSING]
    file.unlink()
    assert verdicts(tmp_path, WANTED) == [Verdict.MISSING]


def test_what_was_not_in_the_mail_is_unexpected(tmp_path: Path) -> None:
    """A file beside those of the mail, also when the mail had none."""
    file = stored(tmp_path)
    (file.parent / "extra.txt").write_text("extra")
    assert verdicts(tmp_path, WANTED) == [Verdict.EQUAL, Verdict.UNEXPECTED]
    assert verdicts(tmp_path) == [Verdict.NOT_WANTED, Verdict.UNEXPECTED, Verdict.UNEXPECTED]


def test_a_nested_mail_must_be_recorded(tmp_path: Path) -> None:
    """It is not wanted in the store, but the manifest has to know of it."""
    stored(tmp_path)
    assert verdicts(tmp_path, WANTED, File("inner"))[1] == Verdict.MISSING


# ---- the end ----


def test_signals_ask_for_the_end_as_often_as_they_come() -> None:
    """A second Ctrl-C does not break the ending, and afterwards Ctrl-C means what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        stop.check()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        stop.wait()
        with pytest.raises(Stopped):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_refused_folder_ends_the_demo_with_1(tmp_path: Path) -> None:
    """And with a sentence that says what to do."""
    (tmp_path / "something").touch()
    command = [ATTACHMENTS, "demo", "--folder", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "--folder" in result.stdout


# ---- all of it ----


def processes_of(folder: Path) -> list[str]:
    """The command lines of what runs with this folder in its environment or its arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if str(folder).encode() in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.mark.soak
@pytest.mark.timeout(6000)
def test_the_whole_demo_ends_well_keeps_names_out_of_the_logs_and_leaves_nothing_running(tmp_path: Path) -> None:
    """Twice in the same folder: status 0, every file equal, no process left, no file name or subject in a log."""
    folder = tmp_path / "demo"
    for _ in range(2):
        command = [ATTACHMENTS, "demo", "--folder", folder]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert result.returncode == 0, result.stdout
        assert "7 messages, 7 files" in result.stdout
        assert result.stdout.count(" equal ") == 8  # 7 rows and the sentence
        assert processes_of(folder) == []
        for log in folder.glob("*.log"):
            text = log.read_text("utf-8")
            for name in ("Invoice 2026", "Prüfbericht", "見積書", "compressor", "Delivery note", "@example.com"):
                assert name not in text, log.name


@pytest.mark.soak
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_what_is_kept_runs_until_the_signal_and_then_ends(tmp_path: Path, number: signal.Signals) -> None:
    """With --keep the processes live on after the table; the signal ends all, and the verdict is the status."""
    folder, output = tmp_path / "demo", tmp_path / "output"
    command = [ATTACHMENTS, "demo", "--keep", "--folder", folder]
    with output.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as demo:
        try:
            wait_for(lambda: "Everything is still running" in output.read_text(), "the end of the demo", PATIENCE)
            assert len(processes_of(folder)) >= 5  # demo, sandbox, Prefect, receiver, worker
        finally:
            demo.send_signal(number)
            demo.wait(PATIENCE)
    assert demo.returncode == 0
    assert processes_of(folder) == []


def has_come(demo: subprocess.Popen[bytes], folder: Path, output: Path, moment: str) -> bool:
    """Whether the demo has printed this."""
    assert demo.poll() is None, output.read_text()
    return (folder / MARKER).exists() and moment in output.read_text()


MOMENTS = ("The mail is in", "The sandbox runs", "The Prefect server runs", "The worker runs", "Webhook for")
"""Lines of the demo's output, each some time before its end."""


@pytest.mark.soak
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("moment", ["", *MOMENTS])
def test_ctrl_c_at_any_time_ends_everything(tmp_path: Path, moment: str) -> None:
    """While the mail is written, while each process starts, while files are downloaded: 130, no process left."""
    folder, output = tmp_path / "demo", tmp_path / "output"
    with output.open("wb") as out, subprocess.Popen([ATTACHMENTS, "demo", "--folder", folder], stdout=out) as demo:
        wait_for(lambda: has_come(demo, folder, output, moment), "the moment", PATIENCE)
        demo.send_signal(signal.SIGINT)
        demo.wait(PATIENCE)
    assert demo.returncode == 130
    assert processes_of(folder) == []
