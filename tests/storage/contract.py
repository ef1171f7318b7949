"""What every store promises, said without knowing which one it is."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event, Thread

import pytest

from attachments.storage import Manifest, Store, attachment_key
from attachments.storage.errors import AlreadyExists, InvalidManifest, NewerManifest

from .samples import ATTACHMENT, CANARY, CONTENT, MESSAGE, PLACE, entry, in_chunks, manifest, sha256


class StoreContract(ABC):
    """A subclass gives a `store` fixture and says what a reader of the store sees."""

    @abstractmethod
    def visible(self, store: Store) -> Mapping[str, bytes]:
        """Every object under a final key, and what it holds."""

    @abstractmethod
    def pending(self, store: Store) -> list[str]:
        """Whatever is left of writes that have ended."""

    @abstractmethod
    def plant(self, store: Store, key: str, content: bytes) -> None:
        """Puts an object there that the store did not write."""

    def test_what_is_written_stands_under_its_key(self, store: Store) -> None:
        """Every byte, once, and the answer says what stands there."""
        before = datetime.now(UTC)
        written = store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(CONTENT), content_type="application/pdf")
        assert self.visible(store) == {f"{PLACE}/a.pdf": CONTENT}
        assert (written.key, written.bytes, written.sha256) == (f"{PLACE}/a.pdf", len(CONTENT), sha256(CONTENT))
        assert before - timedelta(seconds=2) < written.stored_at < datetime.now(UTC) + timedelta(seconds=2)
        assert written.stored_at.utcoffset() == timedelta(0)
        assert self.pending(store) == []

    @pytest.mark.parametrize("chunks", [[], [b""], [b"", b"x", b""], [b"x" * 3_000_000], [b"y" * 700_000] * 20])
    def test_chunks_may_be_of_any_size(self, store: Store, chunks: list[bytes]) -> None:
        """None at all is an empty file; large ones are taken apart, small ones put together."""
        whole = b"".join(chunks)
        assert store.write(MESSAGE, ATTACHMENT, "a.bin", chunks).sha256 == sha256(whole)
        assert self.visible(store) == {f"{PLACE}/a.bin": whole}

    def test_a_buffer_that_the_source_uses_again_is_read_in_time(self, store: Store) -> None:
        """A source that fills one buffer over and over must not corrupt what is stored."""

        def refilled() -> Iterator[bytes]:
            buffer = bytearray(600_000)
            for number in range(20):
                buffer[:] = bytes([number]) * len(buffer)
                yield buffer  # type: ignore[misc]

        expected = b"".join(bytes([number]) * 600_000 for number in range(20))
        assert store.write(MESSAGE, ATTACHMENT, "a.bin", refilled()).sha256 == sha256(expected)
        assert self.visible(store) == {f"{PLACE}/a.bin": expected}

    @pytest.mark.parametrize(
        "error", [OSError("a reset"), RuntimeError("the vendor's"), KeyboardInterrupt(), SystemExit(3)]
    )
    def test_a_source_that_fails_leaves_nothing(self, store: Store, error: BaseException) -> None:
        """Its error comes out as it is, be it an OSError, and no object and no fragment stays."""

        def failing() -> Iterator[bytes]:
            yield CONTENT
            raise error

        with pytest.raises(type(error)) as caught:
            store.write(MESSAGE, ATTACHMENT, "a.pdf", failing())
        assert caught.value is error
        assert self.visible(store) == {}
        assert self.pending(store) == []

    def test_a_chunk_that_is_no_bytes_leaves_nothing(self, store: Store) -> None:
        """A programming error is not a file."""
        for wrong in (5, "text", None):
            with pytest.raises(TypeError):
                store.write(MESSAGE, ATTACHMENT, "a.pdf", [b"x", wrong])  # type: ignore[list-item]
        assert self.visible(store) == {}
        assert self.pending(store) == []

    def test_a_source_that_is_thrown_away_commits_nothing(self, store: Store) -> None:
        """Garbage collection and closing publish partial files in fsspec; not here."""

        def abandoned() -> Iterator[bytes]:
            yield CONTENT
            raise GeneratorExit

        source = abandoned()
        with pytest.raises(GeneratorExit):
            store.write(MESSAGE, ATTACHMENT, "a.pdf", source)
        del source
        gc.collect()
        assert self.visible(store) == {}

    def test_a_reader_never_sees_a_part(self, store: Store) -> None:
        """However slowly the bytes come, an object is not there, or it is whole."""
        looked, done = Event(), Event()
        seen: list[Mapping[str, bytes]] = []

        def look() -> None:
            while not done.is_set():
                seen.append(self.visible(store))
                looked.set()

        def slow() -> Iterator[bytes]:
            for chunk in in_chunks(CONTENT, len(CONTENT) // 20):
                yield chunk
                looked.clear()
                assert looked.wait(10)

        reader = Thread(target=look)
        reader.start()
        try:
            store.write(MESSAGE, ATTACHMENT, "a.pdf", slow())
        finally:
            done.set()
            reader.join()
        assert len(seen) > 20
        assert all(sight in ({}, {f"{PLACE}/a.pdf": CONTENT}) for sight in seen)

    def test_writing_the_same_again_is_success(self, store: Store) -> None:
        """A retry after a lost reply finds its own object, and leaves one."""
        first = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        assert store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(CONTENT)) == first
        assert self.visible(store) == {f"{PLACE}/a.pdf": CONTENT}
        assert self.pending(store) == []

    def test_another_name_for_the_same_attachment_makes_no_second_object(self, store: Store) -> None:
        """Names are cleaned by rules that may change between versions; the attachment is stored once."""
        first = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        assert store.write(MESSAGE, ATTACHMENT, "b.pdf", [CONTENT]) == first
        assert self.visible(store) == {f"{PLACE}/a.pdf": CONTENT}

    @pytest.mark.parametrize(
        "other",
        [b"", b"something else", CONTENT[:-1], CONTENT + b"x", b"x" + CONTENT[1:]],
        ids=["nothing", "shorter", "without its end", "longer", "another first byte"],
    )
    @pytest.mark.parametrize("name", ["a.pdf", "b.pdf"])
    def test_something_else_under_the_key_is_left_alone(self, store: Store, other: bytes, name: str) -> None:
        """It is an error that names the key, and what stood there stands there still."""
        self.plant(store, f"{PLACE}/{name}", other)
        with pytest.raises(AlreadyExists) as caught:
            store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        assert caught.value.key == PLACE
        assert self.visible(store) == {f"{PLACE}/{name}": other}
        assert self.pending(store) == []

    def test_attachments_of_one_name_each_have_their_place(self, store: Store) -> None:
        """Three `image.png` on one message are three objects."""
        for number in range(3):
            store.write(MESSAGE, attachment_key(str(number)), "image.png", [bytes([number])])
        assert sorted(self.visible(store).values()) == [b"\x00", b"\x01", b"\x02"]

    def test_an_attachment_called_manifest_is_no_manifest(self, store: Store) -> None:
        """A sender can't forge a record."""
        store.write(MESSAGE, ATTACHMENT, "manifest.json", [manifest().to_bytes()])
        assert store.read_manifest(MESSAGE) is None

    @pytest.mark.parametrize("name", ["../../../evil", "/etc/evil", "..", "a/b", ".incoming", "x" * 999])
    def test_a_hostile_name_does_not_leave_its_place(self, store: Store, name: str) -> None:
        """Even when a caller forgets to make a name safe."""
        written = store.write(MESSAGE, ATTACHMENT, name, [b"x"])
        assert list(self.visible(store)) == [written.key]
        assert written.key.startswith(f"{PLACE}/")
        assert written.key.count("/") == 2

    @pytest.mark.parametrize("key", ["../..", "AAMkAGI2", ""])
    def test_an_id_in_a_keys_place_is_refused(self, store: Store, key: str) -> None:
        """A ValueError for the programmer, before anything is touched."""
        calls: list[Callable[[], object]] = [
            lambda: store.write(key, ATTACHMENT, "a.pdf", [b"x"]),
            lambda: store.write(MESSAGE, key, "a.pdf", [b"x"]),
            lambda: store.stored(key),
            lambda: store.read_manifest(key),
            lambda: store.manifest_url(key),
            lambda: store.update_manifest(key, lambda current: manifest()),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="not a key"):
                call()

    def test_threads_that_race_store_one_object(self, store: Store) -> None:
        """All of them succeed, under whichever name came first."""
        barrier = Barrier(8)

        def race(number: int) -> str:
            def source() -> Iterator[bytes]:
                yield CONTENT
                barrier.wait(10)

            return store.write(MESSAGE, ATTACHMENT, f"{number}.pdf", source()).key

        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(race, range(8)))
        assert len(keys) == 1
        assert self.visible(store) == {keys.pop(): CONTENT}
        assert self.pending(store) == []

    def test_what_was_written_is_listed_with_its_proof(self, store: Store) -> None:
        """A run whose manifest was lost finds what is there, as it was told when it was written."""
        two = attachment_key("two")
        expected = {
            ATTACHMENT: store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]),
            two: store.write(MESSAGE, two, "b.pdf", []),
        }
        store.update_manifest(MESSAGE, lambda current: manifest())
        assert store.stored(MESSAGE) == expected
        assert store.stored("0" * 32) == {}

    def test_what_is_not_ours_is_not_listed(self, store: Store) -> None:
        """Without proof, or with something else than what was proven, an object is not there."""
        self.plant(store, f"{PLACE}/a.pdf", CONTENT)
        self.plant(store, f"{MESSAGE}/stray.txt", CONTENT)
        assert store.stored(MESSAGE) == {}

    def test_what_is_not_listed_is_recognised_by_its_content(self, store: Store) -> None:
        """Downloading it again ends in success, with the object that stood there."""
        self.plant(store, f"{PLACE}/old name.pdf", CONTENT)
        assert store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]).key == f"{PLACE}/old name.pdf"

    def test_a_manifest_is_made_read_and_replaced(self, store: Store) -> None:
        """Each change is given what stands there, and what it hands back stands there then."""
        given: list[Manifest | None] = []

        def change(current: Manifest | None) -> Manifest:
            given.append(current)
            found = manifest(entry(CANARY if current else "a"))
            return current.merged_with(found) if current else found

        first = store.update_manifest(MESSAGE, change)
        assert store.read_manifest(MESSAGE) == first
        second = store.update_manifest(MESSAGE, change)
        assert store.read_manifest(MESSAGE) == second
        assert given == [None, first]
        assert len(second.attachments) == 2
        assert self.pending(store) == []

    def test_a_change_that_raises_leaves_the_manifest(self, store: Store) -> None:
        """Its error comes out as it is, and the next change gets in."""
        before = store.update_manifest(MESSAGE, lambda current: manifest(entry("a")))
        error = OSError("theirs")

        def failing(current: Manifest | None) -> Manifest:
            raise error

        with pytest.raises(OSError, match="theirs") as caught:
            store.update_manifest(MESSAGE, failing)
        assert caught.value is error
        assert store.read_manifest(MESSAGE) == before
        store.update_manifest(MESSAGE, lambda current: manifest())

    def test_changes_from_many_threads_are_all_kept(self, store: Store) -> None:
        """Reading, changing and writing is one step against all others."""

        def add(number: int) -> None:
            def change(current: Manifest | None) -> Manifest:
                new = manifest(entry(f"{number}.pdf"))
                return current.merged_with(new) if current else new

            store.update_manifest(MESSAGE, change)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(40)))
        found = store.read_manifest(MESSAGE)
        assert found is not None
        assert len(found.attachments) == 40

    def test_a_damaged_manifest_is_reported_and_can_be_rebuilt(self, store: Store) -> None:
        """Reading raises; a change starts afresh."""
        self.plant(store, f"{MESSAGE}/manifest.json", b'{"schema": 1, "mess')
        with pytest.raises(InvalidManifest):
            store.read_manifest(MESSAGE)
        given: list[Manifest | None] = []

        def change(current: Manifest | None) -> Manifest:
            given.append(current)
            return manifest(entry("a"))

        assert store.update_manifest(MESSAGE, change) == store.read_manifest(MESSAGE)
        assert given == [None]

    def test_a_newer_manifest_is_never_overwritten(self, store: Store) -> None:
        """Two versions may share a store for a while; the older one stops."""
        newer = b'{"schema": 2, "everything": "else"}'
        self.plant(store, f"{MESSAGE}/manifest.json", newer)
        with pytest.raises(NewerManifest):
            store.read_manifest(MESSAGE)
        with pytest.raises(NewerManifest):
            store.update_manifest(MESSAGE, lambda current: manifest())
        assert self.visible(store) == {f"{MESSAGE}/manifest.json": newer}

    @pytest.mark.parametrize("size", [len(CONTENT), 12_000_000], ids=["small", "in parts"])
    def test_what_is_removed_is_gone_with_all_that_was_kept_beside_it(self, store: Store, size: int) -> None:
        """Object and proof are removed; other objects and the manifest stay, and the same attachment can be stored
        again."""
        two = attachment_key("two")
        content = (CONTENT * (size // len(CONTENT) + 1))[:size]
        removed = store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(content, 500_000))
        kept = store.write(MESSAGE, two, "b.pdf", [b"kept"])
        record = store.update_manifest(MESSAGE, lambda current: manifest())
        store.remove(removed.key)
        assert sorted(self.visible(store)) == sorted([kept.key, f"{MESSAGE}/manifest.json"])
        assert self.pending(store) == []
        assert list(store.orphans(older_than=timedelta(0))) == []
        assert (store.stored(MESSAGE), store.read_manifest(MESSAGE)) == ({two: kept}, record)
        store.remove(removed.key)
        assert store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(content, 500_000)).key == removed.key
        assert self.visible(store)[removed.key] == content

    def test_what_came_later_than_is_asked_for_is_not_removed(self, store: Store) -> None:
        """An object that was stored again since the listing stays, an older one is removed, and a missing one is a
        no-op."""
        written = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        day = timedelta(days=1)
        assert not store.remove(written.key, stored_before=datetime.now(UTC) - day)
        assert store.stored(MESSAGE) == {ATTACHMENT: written}
        assert all(store.remove(written.key, stored_before=datetime.now(UTC) + day) for _ in range(2))
        assert self.visible(store) == {}

    def test_what_was_removed_can_be_stored_anew_at_once(self, store: Store) -> None:
        """The store does not believe what it knew of the message before."""
        first = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        store.remove(first.key)
        assert store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]).key == first.key
        assert self.visible(store) == {first.key: CONTENT}

    def test_removing_what_was_never_there_is_fine(self, store: Store) -> None:
        """In a store that has yet to be made, and in one that has been."""
        for _ in range(2):
            store.remove(f"{PLACE}/a.pdf")
            assert not store.remove_manifest(MESSAGE, lambda current: True)
            assert not store.inventory(MESSAGE).objects
            store.write("0" * 32, ATTACHMENT, "a.pdf", [b"x"])
        assert list(self.visible(store)) == [f"{'0' * 32}/{ATTACHMENT}/a.pdf"]

    @pytest.mark.parametrize(
        "key",
        [
            f"{MESSAGE}/manifest.json",
            f"{MESSAGE}/hold",
            MESSAGE,
            PLACE,
            f"{PLACE}/",
            f"{PLACE}/..",
            f"{PLACE}/../../{'0' * 32}/manifest.json",
            f"../{PLACE}/a.pdf",
            f"/{PLACE}/a.pdf",
            f"{PLACE}/.proof",
            f".proofs/{ATTACHMENT}/x",
            f"{PLACE}/..\\..\\manifest.json",
            f"{PLACE}/a\0.pdf",
            f"{MESSAGE.upper()}/{ATTACHMENT}/a.pdf",
            "",
        ],
    )
    def test_only_an_attachment_can_be_removed(self, store: Store, key: str) -> None:
        """Whatever a manifest may say: no record, no hold, no proof, nothing outside of the layout."""
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        store.update_manifest(MESSAGE, lambda current: manifest())
        before = self.visible(store)
        with pytest.raises(ValueError, match="not an attachment's path"):
            store.remove(key)
        assert self.visible(store) == before

    def test_an_inventory_tells_what_stands_and_when_it_came(self, store: Store) -> None:
        """By the store's own clock; the manifest is no object, and what is no attachment's is left out."""
        before = datetime.now(UTC) - timedelta(seconds=2)
        written = store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT])
        store.update_manifest(MESSAGE, lambda current: manifest())
        self.plant(store, f"{MESSAGE}/stray.txt", b"x")
        found = store.inventory(MESSAGE)
        assert {key: seen.bytes for key, seen in found.objects.items()} == {written.key: len(CONTENT)}
        assert before < found.objects[written.key].modified < datetime.now(UTC) + timedelta(seconds=2)
        assert not found.is_held
        assert CANARY not in repr(found)

    @pytest.mark.parametrize("name", ["hold", "HOLD", "Hold.txt", "hold/reason.txt"])
    def test_a_hold_beside_the_manifest_is_seen(self, store: Store, name: str) -> None:
        """Of any content, none as well; as editors may have named it; it is no object."""
        written = store.write(MESSAGE, ATTACHMENT, "hold", [CONTENT])
        assert not store.inventory(MESSAGE).is_held
        self.plant(store, f"{MESSAGE}/{name}", b"")
        found = store.inventory(MESSAGE)
        assert (found.is_held, list(found.objects)) == (True, [written.key])

    def test_a_manifest_goes_only_when_it_may(self, store: Store) -> None:
        """Who removes it has seen what stands there; and with it the last of the message is gone."""
        first = store.update_manifest(MESSAGE, lambda current: manifest(entry("a")))
        asked: list[Manifest] = []

        def never(current: Manifest) -> bool:
            asked.append(current)
            return False

        assert not store.remove_manifest(MESSAGE, never)
        assert (asked, store.read_manifest(MESSAGE)) == ([first], first)
        assert store.remove_manifest(MESSAGE, lambda current: True)
        assert store.read_manifest(MESSAGE) is None
        assert self.visible(store) == {}
        assert not store.remove_manifest(MESSAGE, lambda current: True)

    def test_a_manifest_that_cannot_be_read_is_not_removed(self, store: Store) -> None:
        """Damaged, or a newer version's: somebody has to look."""
        for data, error in ((b"{", InvalidManifest), (b'{"schema": 2}', NewerManifest)):
            self.plant(store, f"{MESSAGE}/manifest.json", data)
            with pytest.raises(error):
                store.remove_manifest(MESSAGE, lambda current: True)
            assert self.visible(store) == {f"{MESSAGE}/manifest.json": data}

    def test_the_store_tells_the_time_and_keeps_nothing_of_it(self, store: Store) -> None:
        """Its own clock, which on this machine is ours."""
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
        before = datetime.now(UTC)
        assert abs(store.clock() - before) < timedelta(seconds=10)
        assert list(self.visible(store)) == [f"{PLACE}/a.pdf"]
        assert self.pending(store) == []
        assert list(store.message_keys()) == [MESSAGE]

    def test_representations_show_no_names(self, store: Store) -> None:
        """What is logged by mistake tells no file name."""
        written = store.write(MESSAGE, ATTACHMENT, CANARY, [b"x"])
        assert CANARY in written.key
        assert CANARY not in f"{written!r} {written} {store.stored(MESSAGE)!r}"
