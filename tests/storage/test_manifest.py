"""A manifest never forgets, and says truly whether something is missing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from attachments.storage import Manifest, ManifestAttachment, attachment_key
from attachments.storage.errors import InvalidManifest, ManifestTooLarge, NewerManifest
from attachments.storage.manifest import MAX_SIZE, MAX_VALUES

from .samples import ATTACHMENT, ATTACHMENT_ID, CANARY, MESSAGE, MESSAGE_ID, PLACE, entry, manifest

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
OTHER = attachment_key("another")


def written(record: Manifest) -> dict[str, object]:
    found = json.loads(record.to_bytes())
    assert isinstance(found, dict)
    return found


def test_the_names_are_those_that_others_read() -> None:
    """Downstream programs rely on these names and on this order."""
    stored = entry(
        listed_size=12,
        content_type="application/pdf",
        key=f"{PLACE}/a.pdf",
        bytes=10,
        sha256="ab" * 32,
        stored_at=NOON,
    )
    record = manifest(stored, mailbox="box@example.com", received=NOON, conversation_id="c", flow_run_id="f")
    assert (
        record.to_bytes().decode()
        == f"""{{
 "schema": 1,
 "message_id": "{MESSAGE_ID}",
 "message_key": "{MESSAGE}",
 "mailbox": "box@example.com",
 "received": "2026-11-22T12:00:00Z",
 "conversation_id": "c",
 "deployment": "download-attachments/default",
 "flow_run_id": "f",
 "updated": "2026-11-22T12:00:00Z",
 "complete": true,
 "attachments": [
  {{
   "id": "a.pdf",
   "attachment_key": "{attachment_key("a.pdf")}",
   "name": "a.pdf",
   "content_type": "application/pdf",
   "listed_size": 12,
   "kind": "fileAttachment",
   "outcome": "stored",
   "key": "{PLACE}/a.pdf",
   "bytes": 10,
   "sha256": "{"ab" * 32}",
   "stored_at": "2026-11-22T12:00:00Z"
  }}
 ]
}}
"""
    )


def test_what_is_written_is_read_back() -> None:
    """Writing and reading loses nothing, whatever the script of a name."""
    record = manifest(
        entry("日本語 😀.pdf", stored_at=NOON + timedelta(microseconds=1)),
        entry("b", "filtered", rule="exclude[0]: names b"),
        entry("c", "failed", code="timeout"),
        entry("d", "purged"),
        entry("e", "unsupported", kind="somethingNew"),
    )
    assert Manifest.from_bytes(record.to_bytes(), message_key=MESSAGE) == record


def test_moments_are_in_utc() -> None:
    """Any zone is brought to UTC, and none counts as UTC."""
    elsewhere = NOON.astimezone(timezone(timedelta(hours=-5)))
    assert written(manifest(updated=elsewhere, received="2026-11-22T12:00:00"))["updated"] == "2026-11-22T12:00:00Z"
    assert written(manifest(received="2026-11-22T12:00:00"))["received"] == "2026-11-22T12:00:00Z"


def test_half_a_surrogate_pair_is_written_as_a_replacement_character() -> None:
    """A vendor's JSON can carry what no UTF-8 file can; the rest of the name stays."""
    record = manifest(entry("half\ud800.pdf", id="x\udfff", note={"deep": ["\ud800"]}), mailbox="\udc00@example.com")
    assert record.attachments[0].name == "half\ufffd.pdf"
    assert written(record)["mailbox"] == "\ufffd@example.com"
    escaped = record.to_bytes().replace("half\ufffd".encode(), b"half\\ud800")
    assert Manifest.from_bytes(escaped, message_key=MESSAGE) == record


def test_what_a_later_version_added_is_handed_on() -> None:
    """Fields that this version does not know survive a reading, a merging and a writing by it."""
    data = written(manifest(entry("a"), entry("b", "failed")))
    data["retention"] = {"days": 30}
    data["attachments"][0]["hold"] = True  # type: ignore[index]
    data["attachments"][1]["tries"] = 3  # type: ignore[index]
    found = Manifest.from_bytes(json.dumps(data).encode(), message_key=MESSAGE)
    merged = found.merged_with(manifest(entry("a", "filtered"), entry("b")))
    after = written(merged)
    assert after["retention"] == {"days": 30}
    assert after["attachments"][0]["hold"] is True  # type: ignore[index]
    assert after["attachments"][1]["tries"] == 3  # type: ignore[index]
    assert after["attachments"][1]["outcome"] == "stored"  # type: ignore[index]


def test_it_says_whether_the_store_encrypts() -> None:
    """As it did when the message was last worked on; what an older version wrote does not say."""
    assert "encryption" not in written(manifest())
    record = manifest(encryption="none").merged_with(manifest(encryption="age"))
    assert written(record)["encryption"] == "age"
    assert written(record.merged_with(manifest()))["encryption"] == "age"
    assert Manifest.from_bytes(manifest(encryption="something newer").to_bytes(), message_key=MESSAGE)


NAMED = "\u65e5" * 80 + ".pdf"
"""A name of 244 bytes."""


def many(count: int) -> Manifest:
    """A manifest of so many stored attachments, each field as long as it gets."""
    entries = (
        entry(
            NAMED,
            id=f"{number:0250}",
            content_type="application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            listed_size=10**9,
            key=f"{MESSAGE}/{attachment_key(f'{number:0250}')}/{NAMED}.age",
            bytes=10**9,
            sha256="a" * 64,
            stored_at=NOON,
            stored_bytes=10**9,
            stored_sha256="b" * 64,
            purged_at=NOON,
            deployment="download-attachments/default",
        )
        for number in range(count)
    )
    return manifest(*entries)


def test_ten_thousand_attachments_fit_into_a_manifest() -> None:
    """By bytes and by values, of a hundred of them."""
    data = many(100).to_bytes()
    assert 100 * len(data) < MAX_SIZE
    assert 100 * sum(map(data.count, (b",", b"[", b"{"))) < MAX_VALUES / 2


@pytest.mark.parametrize(
    "extra",
    ['"' + "x" * MAX_SIZE + '"', "[" + "[]," * MAX_VALUES + "[]]", "[" + "{}," * MAX_VALUES + "{}]"],
    ids=["bytes", "lists", "objects"],
)
def test_a_manifest_that_is_too_large_is_neither_read_nor_written(extra: str) -> None:
    """One byte of hostile JSON can cost 24 bytes of memory: what it holds counts as well as its size."""
    data = manifest().to_bytes().rstrip()[:-1] + f', "extra": {extra}}}'.encode()
    with pytest.raises(InvalidManifest, match="too large") as caught:
        Manifest.from_bytes(data, message_key=MESSAGE)
    assert len(str(caught.value)) < 200
    with pytest.raises(ManifestTooLarge, match="store less of the message with a filter"):
        manifest(extra=json.loads(extra)).to_bytes()


@pytest.mark.parametrize(
    "key", [f"{PLACE}/a\0.pdf", f"{PLACE}/a\n.pdf", f"{PLACE}/\x1b[2J", f"{PLACE}/\u202eexe", "x" * 1025]
)
def test_a_manifest_with_a_malformed_key_is_damaged(key: str) -> None:
    """No path of ours holds what controls a line or a file system; somebody else wrote it."""
    data = json.loads(manifest(entry("a")).to_bytes())
    data["attachments"][0]["key"] = key
    with pytest.raises(InvalidManifest) as caught:
        Manifest.from_bytes(json.dumps(data).encode(), message_key=MESSAGE)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "is_at_home"),
    [
        (f"{PLACE}/a.pdf", True),
        (f"{PLACE}/a.pdf.age", True),
        (f"{OTHER}/{attachment_key('a')}/a.pdf", False),
        (f"{MESSAGE}/{OTHER}/a.pdf", False),
        (f"{PLACE}/../a.pdf", False),
        (f"{PLACE}/.proof", False),
        (f"{PLACE}/a/b", False),
        (PLACE, False),
        ("", False),
        (None, False),
    ],
)
def test_an_entry_is_asked_whether_its_place_is_its_own(key: str | None, is_at_home: bool) -> None:
    """Of this message and of this attachment: anyone who can write to the store can write anything there."""
    assert entry("a", id=ATTACHMENT_ID, key=key).is_at_home(MESSAGE) is is_at_home


def nested(levels: int, innermost: str = "[]") -> bytes:
    """A manifest of so many levels: a field that is not known has all but one of them."""
    extra = '{"a":' * (levels - 2) + innermost + "}" * (levels - 2)
    return manifest(entry()).to_bytes().rstrip()[:-1] + f', "extra": {extra}}}'.encode()


def test_what_can_be_read_can_be_written() -> None:
    """A field that nobody knows may be nested, as deep as is refused no more."""
    found = Manifest.from_bytes(nested(100), message_key=MESSAGE)
    assert Manifest.from_bytes(found.to_bytes(), message_key=MESSAGE) == found


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"schema": 1}',
        b"[" * 100_000,
        nested(101),
        nested(400),
        nested(750),
        nested(400, "{}"),
        manifest(entry()).to_bytes()[:-20],
        manifest(entry()).to_bytes().replace(b'"stored"', b'"misplaced"'),
        manifest(entry()).to_bytes().replace(b'"schema": 1', b'"schema": 0'),
        manifest(entry()).to_bytes().replace(b'"schema": 1', b'"schema": "1.5"'),
        manifest(entry(), message_key="0" * 32).to_bytes(),
        *(
            manifest(entry()).to_bytes()[:-3] + b', "later": %b}' % number
            for number in (b"NaN", b"-Infinity", b"1e999")
        ),
    ],
)
def test_a_damaged_manifest_is_invalid(data: bytes) -> None:
    """Truncated, garbled or another message's: one type of error, which the code that rebuilds it can catch."""
    with pytest.raises(InvalidManifest) as caught:
        Manifest.from_bytes(data, message_key=MESSAGE)
    assert MESSAGE in str(caught.value)


@pytest.mark.parametrize("rest", [{}, {"attachments": "of another shape"}])
def test_a_newer_manifest_is_not_invalid(rest: dict[str, object]) -> None:
    """It must not be taken for lost and overwritten, so it has an error of its own."""
    with pytest.raises(NewerManifest, match="newer version") as caught:
        Manifest.from_bytes(json.dumps({"schema": 2, **rest}).encode(), message_key=MESSAGE)
    assert not isinstance(caught.value, InvalidManifest)


@pytest.mark.parametrize("outcome", ["stored", "filtered", "unsupported", "purged"])
def test_a_manifest_is_complete_unless_something_failed(outcome: str) -> None:
    """`complete` means that nothing that is wanted is missing."""
    assert manifest(entry("a", outcome)).complete
    assert not manifest(entry("a", outcome), entry("b", "failed")).complete
    assert manifest().complete


def test_complete_is_computed_and_never_believed() -> None:
    """A wrong `complete` in a file does not outlive its reading."""
    lie = manifest(entry("a", "failed")).to_bytes().replace(b'"complete": false', b'"complete": true')
    assert not Manifest.from_bytes(lie, message_key=MESSAGE).complete


@pytest.mark.parametrize(
    ("outcome", "wanted", "settled"),
    [
        ("stored", True, True),
        ("purged", True, True),
        ("unsupported", True, True),
        ("filtered", True, False),
        ("failed", True, False),
        ("filtered", False, True),
        ("failed", False, True),
    ],
)
def test_a_redelivery_is_settled_when_all_that_its_filter_wants_is(outcome: str, wanted: bool, settled: bool) -> None:
    """Another deployment's filter decided what it decided; this run's filter is asked again."""
    assert manifest(entry("a"), entry("b", outcome)).settles(lambda found: wanted) is settled


def test_an_entry_can_be_asked_what_the_filter_asks() -> None:
    """Name, content type and size under the names that the filter knows."""
    found = entry("a.pdf", content_type="application/pdf", listed_size=5)
    assert (found.name, found.content_type, found.size) == ("a.pdf", "application/pdf", 5)


@pytest.mark.parametrize("kept", ["stored", "purged"])
@pytest.mark.parametrize("later", ["failed", "filtered", "unsupported"])
def test_what_was_stored_stays_stored(kept: str, later: str) -> None:
    """A run that failed, or wanted something else, does not unstore what another run has stored."""
    merged = manifest(entry("a", kept, bytes=5, key="k")).merged_with(manifest(entry("a", later)))
    assert (merged.attachments[0].outcome, merged.attachments[0].bytes) == (kept, 5)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("failed", "stored"),
        ("filtered", "stored"),
        ("unsupported", "stored"),
        ("filtered", "failed"),
        ("failed", "unsupported"),
        ("stored", "purged"),
        ("purged", "stored"),
        ("failed", "filtered"),
    ],
)
def test_else_the_later_run_knows_better(earlier: str, later: str) -> None:
    """What a run of the same deployment finds replaces what was known."""
    merged = manifest(entry("a", earlier)).merged_with(manifest(entry("a", later)))
    assert merged.attachments[0].outcome == later


def test_another_deployments_filter_hides_no_failure() -> None:
    """What one deployment wants and lacks keeps the manifest incomplete, however often others run."""
    failed = manifest(entry("a", "failed", code="timeout"), deployment="download-attachments/invoices")
    other = manifest(entry("a", "filtered"), deployment="download-attachments/images")
    merged = failed.merged_with(other).merged_with(other)
    assert merged.attachments[0].outcome == "failed"
    assert not merged.complete
    dropped = merged.merged_with(manifest(entry("a", "filtered"), deployment="download-attachments/invoices"))
    assert dropped.complete


def test_the_later_of_two_of_equal_rank_wins_whatever_the_clocks_say() -> None:
    """A clock that jumped an hour back must not make old news of new."""
    first = manifest(entry("a", "failed", code="timeout"), updated=NOON)
    second = manifest(entry("a", "failed", code="truncated"), updated=NOON - timedelta(hours=1))
    merged = first.merged_with(second)
    assert merged.attachments[0].code == "truncated"
    assert merged.updated == second.updated


def test_merging_forgets_nothing() -> None:
    """Entries of both, in order; what the later run does not know stays."""
    first = manifest(entry("a"), entry("b"), mailbox="box@example.com", received=NOON, flow_run_id="1")
    merged = first.merged_with(manifest(entry("c"), entry("b"), flow_run_id="2"))
    assert [found.name for found in merged.attachments] == ["a", "b", "c"]
    assert (merged.mailbox, merged.received, merged.flow_run_id) == ("box@example.com", NOON, "2")
    assert merged.merged_with(merged) == merged


def test_an_entry_is_found_by_its_key() -> None:
    """Who has an attachment's key has its entry."""
    record = manifest(entry("a"))
    assert record.entry(attachment_key("a")) == record.attachments[0]
    assert record.entry(ATTACHMENT) is None


def test_a_representation_shows_no_names() -> None:
    """Logs and tracebacks print representations; names, addresses and ids stay out of them."""
    record = manifest(entry(CANARY, content_type=CANARY), mailbox=CANARY, conversation_id=CANARY, note=CANARY)
    for shown in (repr(record), str(record), repr(record.attachments), f"{record.attachments[0]}"):
        assert CANARY not in shown
        assert MESSAGE_ID not in shown


def test_a_refused_model_shows_no_names() -> None:
    """pydantic prints what it refuses, unless told not to."""
    with pytest.raises(ValueError, match="outcome") as caught:
        ManifestAttachment.model_validate({"id": "a", "attachment_key": "b", "name": CANARY, "outcome": CANARY})
    assert CANARY not in str(caught.value)


def stored(name: str, *, at: datetime = NOON) -> ManifestAttachment:
    return entry(name, "stored", key=f"{PLACE}/{name}", sha256="ab" * 32, bytes=10, stored_at=at)


def test_the_same_stored_attachments_have_the_same_announcement() -> None:
    """It is the same for any writer, in any order, and once read back; another message has another one."""
    one = manifest(stored("a"), stored("b"))
    assert manifest(stored("b"), stored("a"), entry("c", "filtered")).announcement == one.announcement
    assert Manifest.from_bytes(one.to_bytes(), message_key=MESSAGE).announcement == one.announcement
    assert one.model_copy(update={"message_key": "0" * 32}).announcement != one.announcement
    assert manifest(entry("a", "filtered")).announcement is None
    assert manifest(entry("a", "filtered"), announced=()).is_announced


def test_an_attachment_that_is_listed_twice_has_an_announcement() -> None:
    """A manifest may hold two entries of one attachment, one of which does not say when it was stored."""
    undated = stored("a").model_copy(update={"stored_at": None})
    assert manifest(stored("a"), undated).announcement == manifest(undated, stored("a")).announcement is not None
    assert manifest(undated).announcement is not None


def test_what_is_stored_besides_or_anew_is_announced_anew() -> None:
    """And so is a message that is complete now; that something was purged is no news."""
    first = manifest(stored("a"), entry("b", "failed"), announced=())
    assert not first.is_announced
    assert first.announcement is not None
    first = first.as_announced(first.announcement)
    assert first.is_announced
    for news in (stored("b"), entry("b", "filtered"), stored("a", at=NOON + timedelta(days=1))):
        changed = first.merged_with(manifest(news, announced=()))
        assert not changed.is_announced, news
        assert changed.announcement is not None
        assert changed.as_announced(changed.announcement).is_announced
    purged = first.model_copy(update={"attachments": tuple(e.as_purged(NOON) for e in first.attachments[:1])})
    assert manifest(stored("a")).announcement == purged.announcement
    assert first.merged_with(manifest(stored("a"), entry("b", "failed"), announced=())).is_announced, "force"


def test_a_merge_forgets_no_announcement() -> None:
    """Neither the one's nor the other's; two runs of different deployments may tell at the same time."""
    one = manifest(stored("a"), announced=())
    assert one.announcement is not None
    told = one.as_announced(one.announcement)
    both = told.merged_with(manifest(stored("b"), announced=()))
    assert both.announcement is not None
    assert both.announced == (one.announcement,)
    assert both.as_announced(both.announcement).merged_with(told).announced == (one.announcement, both.announcement)
    assert Manifest.from_bytes(told.to_bytes(), message_key=MESSAGE).announced == (one.announcement,)


def test_what_an_older_version_stored_counts_as_announced() -> None:
    """It recorded no announcement, and had sent its event: a redelivery, or a run with force, tells it not again."""
    older = manifest(stored("a"))
    assert b"announced" not in older.to_bytes()
    assert older.is_announced
    assert older.merged_with(manifest(stored("a"), announced=())).is_announced
    assert not older.merged_with(manifest(stored("b"), announced=())).is_announced
    assert older.merged_with(manifest(stored("b"))).announced is None
