"""A store that has encrypted once refuses plaintext from every writer until its block says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pyrage
import pytest

from attachments.storage import Encryption, attachment_key
from attachments.storage.errors import PlaintextRefused
from tests.servers.proxy import Proxy
from tests.storage.places import KINDS, Place, Places, kinds

from .samples import ATTACHMENT, MESSAGE, manifest


@pytest.fixture(params=kinds(KINDS))
def place(request: pytest.FixtureRequest, places: Places) -> Place:
    return places.make(request.param)


def test_a_store_that_has_encrypted_refuses_plaintext(place: Place) -> None:
    """From every writer without recipients, until its block allows plaintext. Nothing of the source is read or left."""
    owner = pyrage.x25519.Identity.generate()
    encryption = Encryption(age_recipients=(str(owner.to_public()),))
    old, two, three = place.open(), attachment_key("two"), attachment_key("three")
    before = old.write(MESSAGE, ATTACHMENT, "old.pdf", [b"as an older version stored it"])
    assert not old.encrypts
    assert not old.has_encrypted()
    store = place.open(encryption=encryption)
    assert store.encrypts
    written = store.write(MESSAGE, two, "a.pdf", [b"secret"])
    # Several writers at once, each as a process of its own: one marker, and no quarrel about it.
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda n: place.open(encryption=encryption).write(MESSAGE, attachment_key(str(n)), "b.pdf", [b"x"]),
                range(4),
            )
        )
    refusing, read = place.open(), []
    assert refusing.has_encrypted()
    with pytest.raises(PlaintextRefused, match="Allow plaintext") as caught:
        refusing.write(MESSAGE, three, "c.pdf", (read.append(chunk) or chunk for chunk in [b"secret"]))
    assert (caught.value.key, caught.value.retryable, read) == (f"{MESSAGE}/{three}", False, [])
    assert not any(three in key for key in place.everything())
    # Everything but storing goes on, and what was there before is what it was.
    stored = refusing.stored(MESSAGE)
    assert (stored[ATTACHMENT], stored[two]) == (before, written)
    refusing.update_manifest(MESSAGE, lambda current: manifest())
    assert set(refusing.message_keys()) == {MESSAGE}
    assert [key for key in place.everything() if key.startswith(".encryption/")] == [".encryption/age"]
    assert list(refusing.orphans(older_than=timedelta(0))) == []
    allowed = place.open(encryption=Encryption(allow_plaintext=True))
    assert allowed.write(MESSAGE, three, "c.pdf", [b"public"]).key == f"{MESSAGE}/{three}/c.pdf"


def test_the_marker_is_there_before_anything_encrypted_is(place: Place) -> None:
    """Whatever dies in between; and a writer that has looked less than a minute ago looks again after that."""
    encryption = Encryption(age_recipients=(str(pyrage.x25519.Identity.generate().to_public()),))

    def failing() -> Iterator[bytes]:
        assert place.open().has_encrypted()
        raise OSError("theirs")
        yield b""

    with pytest.raises(OSError, match="theirs"):
        place.open(encryption=encryption).write(MESSAGE, ATTACHMENT, "a.pdf", failing())
    with pytest.raises(PlaintextRefused):
        place.open().write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])


def test_a_plaintext_writer_checks_the_marker_once_in_a_while(places: Places) -> None:
    """One request, however many files, until its answer is too old."""
    place = places.make("s3-rclone")
    assert place.server is not None
    age = Encryption(age_recipients=(str(pyrage.x25519.Identity.generate().to_public()),))
    with Proxy(place.server.port) as proxy:
        store = place.open(port=proxy.port)
        for number in range(5):
            store.write(MESSAGE, attachment_key(str(number)), "a.pdf", [b"x"])
        assert len([request for request in proxy.requests if ".encryption" in request]) == 1
        checks_always = place.open(port=proxy.port, encryption=Encryption(recheck_interval=0))
        checks_always.write(MESSAGE, attachment_key("5"), "a.pdf", [b"x"])
        place.open(encryption=age).write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
        store.write(MESSAGE, attachment_key("6"), "a.pdf", [b"x"])
        with pytest.raises(PlaintextRefused):
            checks_always.write(MESSAGE, attachment_key("7"), "a.pdf", [b"x"])


def test_a_marker_that_was_removed_comes_back(places: Places) -> None:
    """A lifecycle rule may take it with what is old: the next encrypted file brings it back, within a minute."""
    owner = str(pyrage.x25519.Identity.generate().to_public())
    for kind in ("local", "memory"):
        place = places.make(kind)
        store = place.open(encryption=Encryption(age_recipients=(owner,), recheck_interval=0))
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
        place.eye.rm_file(f"{place.root}/.encryption/age")
        assert not store.has_encrypted()
        store.write(MESSAGE, attachment_key("two"), "a.pdf", [b"x"])
        assert store.has_encrypted()
