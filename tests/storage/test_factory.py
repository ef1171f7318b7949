"""Opening a store: which URLs there are, and what is said of the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attachments.storage import open_store
from attachments.storage.errors import UnsupportedStore

from .samples import ATTACHMENT, MESSAGE, PLACE, objects

SECRET = "AKIA" + "SECRET"


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "file:{}", "{}/", "file://{}/"])
def test_a_path_and_a_file_url_open_the_same_store(form: str, root: Path) -> None:
    """Every way of writing a local path that fsspec knows."""
    store = open_store(form.format(root))
    assert store.url == f"file://{root}"
    assert store.manifest_url(MESSAGE) == f"file://{root}/{MESSAGE}/manifest.json"


@pytest.mark.parametrize("form", ["{}/a://b", "file:{}/a://b", "file://{}/a://b"])
def test_a_protocol_in_the_middle_of_a_path_is_a_part_of_it(form: str, root: Path) -> None:
    """fsspec takes all that comes before it for the protocol, and the files would go elsewhere."""
    store = open_store(form.format(root))
    assert store.url == f"file://{root}/a:/b"
    assert open_store(store.url).url == store.url


@pytest.mark.parametrize("form", ["file://localhost{}", "file://LOCALHOST{}", "local://localhost{}", " {}\n"])
def test_the_local_host_and_blanks_are_no_part_of_the_path(form: str, root: Path) -> None:
    """RFC 8089 writes this machine as no host or as localhost; blanks come with pasting."""
    assert open_store(form.format(root)).url == f"file://{root}"


RELATIVE = {
    "file://srv/attachments": "write it as file:///srv/attachments",
    "file://localhost": "write it as file:///localhost",
    "file:srv/attachments": "write it as file:///srv/attachments",
    "srv/attachments": "write it as file:///srv/attachments",
    "attachments/a://b": "relative to the working directory",
    ":a://b": "relative to the working directory",
    "./attachments": "relative to the working directory",
    "../attachments": "relative to the working directory",
    ".": "relative to the working directory",
    "~nobody-has-this-name/x": "relative to the working directory",
    "C:\\attachments": "names a drive or share in Windows notation; write it as the folder where it is mounted",
    "C:/srv": "names a drive or share in Windows notation",
    "file:///C:/srv": "names a drive or share in Windows notation",
    "file:c:/srv": "names a drive or share in Windows notation",
    "/C:": "names a drive or share in Windows notation",
    "\\\\server\\share": "names a drive or share in Windows notation",
    "nfs:/h/a": "names a folder of another machine; mount it here and write the folder where it is mounted",
    "host:/path": "names a folder of another machine",
    f"mail:{SECRET}@host:/path": "relative to the working directory",
    "mail@host:/path": "names a folder of another machine",
    "bucket/folder": "with the storage in front, such as s3://",
    "s3:/bucket": "write it as s3://bucket",
    "s3:bucket/folder": "write it as s3://bucket/folder",
    "s3//bucket": "write it as s3://bucket",
    "S3:/bucket": "write it as s3://bucket",
    "S3://bucket": "write it as s3:",
    "FILE:///srv/a": "write it as file:",
    "file:///srv/\udcff": "not UTF-8 text",
    "\udcff://srv/a": "not UTF-8 text",
    "gs:/bucket/x": "write it as gs://bucket/x",
    "abfs:/container@account.dfs.core.windows.net/x": "write it as abfs://…",
    f"sftp:/mail:{SECRET}@host/x": "write it as sftp://…",
    f"s3:/bucket?{SECRET}": "write it as s3://…",
}


@pytest.mark.parametrize("url", RELATIVE)
def test_what_would_lead_below_the_working_directory_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what was probably meant, and without what may be a secret. Nothing is made there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedStore) as caught:
        open_store(url).write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
    assert RELATIVE[url] in str(caught.value)
    assert SECRET not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("/srv/a\u200b", "U+200B"),
        ("/srv/\u202ea", "U+202E"),
        ("\ufefffile:///srv/a", "U+FEFF"),
        ("file:///tmp/\0a", "U+0000"),
        ("/srv/a\nb", "U+000A"),
        ("s3://bucket/a\u2060/b", "U+2060"),
        ("sftp://host/a\u200d", "U+200D"),
    ],
)
def test_an_invisible_character_is_refused(url: str, code: str) -> None:
    """It would make another folder beside the one that is meant, and nobody would see why."""
    with pytest.raises(UnsupportedStore, match=f"invisible character .{re.escape(code)}.*type it again"):
        open_store(url)


@pytest.mark.parametrize("name", ["می\u200cخواهم", "👨\u200d👩\u200d👧"])
def test_a_joiner_that_has_a_meaning_is_part_of_a_folder_s_name(name: str, root: Path) -> None:
    """In Persian, Indic scripts and emoji."""
    assert open_store(f"{root}/{name}").url == f"file://{root}/{name}"


@given(url=st.one_of(st.text(), st.from_regex(r"(file|local|s3|gs|abfs|az|sftp|ftp|memory|adl):?/{0,3}.*")))
@settings(deadline=None, max_examples=50)
@example("abfs://c@a:x/")
@example("sftp://[::1/x")
@example("ftp://[x")
def test_any_text_is_a_store_elsewhere_than_below_the_working_directory_or_is_refused(url: str) -> None:
    """No other error comes out of it, whatever somebody pastes."""
    try:
        store = open_store(url)
    except UnsupportedStore:
        return
    assert not store.url.startswith("file:") or store.url.startswith("file:///")


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/attachments").url == f"file://{tmp_path}/attachments"


@pytest.mark.parametrize("name", ["with space", "50%20", "a#b", "日本", "a:b", "[x]", "q?x=1", "@home"])
def test_odd_paths_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    """A path is a path: nothing in it is decoded or taken for a pattern."""
    open_store(f"file://{tmp_path}/{name}").write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
    assert objects(tmp_path / name) == {f"{PLACE}/a.pdf": b"x"}


@pytest.mark.parametrize("protocol", ["http", "github", "zip", "adl", "nonsense"])
def test_a_protocol_that_nothing_sound_exists_for_is_refused(protocol: str) -> None:
    """The error names the protocol and what there is, and no part of a URL that may hold credentials."""
    with pytest.raises(UnsupportedStore, match="Set the store's URL to one of file:, s3:") as caught:
        open_store(f"{protocol}://{SECRET}:{SECRET}@bucket/x", {"secret": SECRET})
    assert f"{protocol}:" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/root",
        "abfs://container@account.dfs.core.windows.net/root",
        "gs://bucket/root",
        "sftp://user:secret@host/root",
        "test-memory://root",
    ],
)
def test_opening_asks_nobody(url: str) -> None:
    """No network, no credentials: a block is validated where there are neither. What is shown holds no password."""
    assert "secret" not in open_store(url).url


@pytest.mark.parametrize("url", ["sftp://[::1]:2222/root", "sftp://mail@[fe80::1]/root"])
def test_an_ipv6_address_is_no_chain(url: str) -> None:
    """Though it has two colons in a row."""
    assert open_store(url).url == url.replace("mail@", "")


CHAINS = ["simplecache::file:///x", "zip://a::file:///x.zip", "zip://[::]::file:///x.zip"]


@pytest.mark.parametrize("url", ["", "  ", *CHAINS])
def test_what_is_no_place_to_write_to_is_refused(url: str) -> None:
    """An empty URL would be the working directory; a chain can't be written to atomically."""
    with pytest.raises(UnsupportedStore, match="set it to"):
        open_store(url)


@pytest.mark.parametrize("url", ["s3://key:{}@bucket/folder", "s3a://key:{}@host:9000/bucket", "s3://a b/{}"])
def test_what_can_be_no_bucket_is_refused_and_not_repeated(url: str) -> None:
    """S3 has no URLs with a password; the whole would be the bucket's name, and be shown."""
    with pytest.raises(UnsupportedStore, match="as options: key, secret") as caught:
        open_store(url.format(SECRET))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///srv/a /", "/srv/\x1e/", "s3://bucket/a /", "sftp://host/a\u2028/"])
def test_a_folder_whose_name_ends_with_a_blank_is_refused(url: str) -> None:
    """Its URL, as `verify` and the doctor print it, would lead to another folder."""
    with pytest.raises(UnsupportedStore, match=r"ends with a blank|invisible character"):
        open_store(url)


def test_a_file_system_that_opens_nothing_by_its_url_is_refused() -> None:
    """fsspec's own: its constructor takes other things than a URL's parts."""
    with pytest.raises(UnsupportedStore):
        open_store("generic://x")


def test_options_of_another_store_are_refused(root: Path) -> None:
    """Options left over from another store are a mistake; their names are told, their values are not."""
    with pytest.raises(UnsupportedStore, match="remove key, secret") as caught:
        open_store(str(root), {"secret": SECRET, "key": SECRET})
    assert SECRET not in str(caught.value)
    assert open_store(str(root), {}).url == f"file://{root}"


def test_opening_and_reading_make_nothing(root: Path) -> None:
    """A mistyped path is not made by looking at it."""
    store = open_store(str(root))
    assert store.read_manifest(MESSAGE) is None
    assert store.stored(MESSAGE) == {}
    assert not root.exists()


def test_the_package_imports_without_posix() -> None:
    """On Windows there is no fcntl; all but the local store's own modules still import there."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import attachments.domain.selection, attachments.storage as storage\n"
        "sys.platform = 'win32'\n"
        "try: storage.open_store('x')\n"
        "except storage.StoreError as error: print(error.outcome_code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "unsupported-store"
