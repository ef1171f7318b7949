"""A writer that is killed, at whatever moment, leaves nothing that is not whole, and stops nobody."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from attachments.storage import Manifest, Store, attachment_key, open_store
from tests.storage.processes import ended, kill_me, running, start
from tests.storage.samples import ATTACHMENT, CONTENT, MESSAGE, PLACE, entry, in_chunks, leftovers, manifest, objects

# Every call with which the store changes something.
STEPS = ["open", "mkdir", "write", "fsync", "link", "unlink", "replace", "rename", "setxattr"]


def die_at(step: int) -> None:
    """Kills this process just before its n-th change to the file system."""
    left = iter(range(step))

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(*args: Any, **more: Any) -> Any:
            if next(left, None) is None:
                kill_me()
            return call(*args, **more)

        return wrapper

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Whether it was killed at that step; False when it had come to its end before."""

    def dying() -> None:
        die_at(step)
        act()

    code = ended(start(dying))
    assert code in (0, -signal.SIGKILL)
    return code != 0


def steps_until_it_is_through(
    tmp_path: Path, prepare: Callable[[Store], object], act: Callable[[Store], object]
) -> Iterator[Path]:
    """The roots of stores, each left by a process that was killed one step later; the last one was not."""
    for step in range(1000):
        root = tmp_path / str(step)
        prepare(open_store(str(root)))
        was_killed = killed_at(step, partial(act, open_store(str(root))))
        yield root
        if not was_killed:
            return


def test_a_writer_may_be_killed_at_every_step(tmp_path: Path) -> None:
    """Before each change to the disk: the object is missing or whole, and the next writer finishes."""
    roots = 0
    for root in steps_until_it_is_through(
        tmp_path,
        lambda store: None,
        lambda store: store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(CONTENT, 40_000)),
    ):
        roots += 1
        assert objects(root) in ({}, {f"{PLACE}/a.pdf": CONTENT})
        open_store(str(root)).write(MESSAGE, ATTACHMENT, "b.pdf", in_chunks(CONTENT))
        assert list(objects(root).values()) == [CONTENT]
        assert leftovers(root) == []
    assert roots > 20


def test_a_manifests_writer_may_be_killed_at_every_step(tmp_path: Path) -> None:
    """The old manifest stands, or the new one; never a part, never none."""
    before, after = manifest(entry("a", "failed")), manifest(entry("a"))
    roots = 0
    for root in steps_until_it_is_through(
        tmp_path,
        lambda store: store.update_manifest(MESSAGE, lambda current: before),
        lambda store: store.update_manifest(MESSAGE, lambda current: after),
    ):
        roots += 1
        store = open_store(str(root))
        assert store.read_manifest(MESSAGE) in (before, after)
        assert store.update_manifest(MESSAGE, lambda current: after) == after
        assert leftovers(root) == []
    assert roots > 10


@pytest.mark.parametrize("seed", range(8))
def test_a_writer_may_be_killed_at_any_moment(seed: int, root: Path) -> None:
    """From outside, once some number of bytes has come in: none, one or some attachments stand, each whole."""
    count = 20
    parts = [bytes([number]) * 300_000 for number in range(count)]
    when = random.Random(seed).randrange(count * 30)
    told, tell = os.pipe()

    def told_of(chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            os.write(tell, b".")
            yield chunk

    def write_all() -> None:
        store = open_store(str(root))
        for number, part in enumerate(parts):
            store.write(MESSAGE, attachment_key(str(number)), "a.bin", told_of(in_chunks(part, 10_000)))
        signal.pause()  # on a busy machine it may be ahead of who kills it

    with running(write_all) as child:
        for _ in range(when):
            os.read(told, 1)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
    os.close(told)
    os.close(tell)

    store = open_store(str(root))
    standing = objects(root)
    assert all(content in parts for content in standing.values())
    assert sorted(found.key for found in store.stored(MESSAGE).values()) == sorted(standing)
    for number, part in enumerate(parts):
        store.write(MESSAGE, attachment_key(str(number)), "a.bin", [part])
    assert sorted(objects(root).values()) == parts
    assert leftovers(root) == []


def fragment_of_a_dead_writer(store: Store, root: Path, attachment: str = ATTACHMENT) -> str:
    before = set(leftovers(root)) if root.exists() else set()

    def source() -> Iterator[bytes]:
        yield CONTENT
        kill_me()

    assert ended(start(lambda: store.write(MESSAGE, attachment, "a.pdf", source()))) == -signal.SIGKILL
    (fragment,) = set(leftovers(root)) - before
    return fragment


def test_a_dead_writers_fragment_goes_when_the_attachment_is_written_again(store: Store, root: Path) -> None:
    """Fragments hold customers' data and take room; the retry removes what it replaces."""
    store.write(MESSAGE, attachment_key("first"), "a.pdf", [b"x"])
    mine, other = (
        fragment_of_a_dead_writer(store, root),
        fragment_of_a_dead_writer(store, root, attachment_key("other")),
    )
    assert mine.startswith(f"{MESSAGE}.{ATTACHMENT}.")
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert leftovers(root) == [other]


def test_a_store_that_is_opened_again_removes_all_fragments(store: Store, root: Path) -> None:
    """Those of attachments that nobody will ever write again go as well."""
    fragment_of_a_dead_writer(store, root)
    open_store(str(root)).write(MESSAGE, attachment_key("unrelated"), "a.pdf", [b"x"])
    assert leftovers(root) == []


def test_a_living_writers_file_is_left_alone(store: Store, root: Path) -> None:
    """Another process that writes the same attachment at the same time does not lose its work."""
    waiting, go_on = os.pipe(), os.pipe()

    def source() -> Iterator[bytes]:
        yield CONTENT
        os.write(waiting[1], b".")
        os.read(go_on[0], 1)

    with running(lambda: store.write(MESSAGE, ATTACHMENT, "a.pdf", source())) as child:
        os.read(waiting[0], 1)
        (its_file,) = leftovers(root)
        open_store(str(root)).write(MESSAGE, ATTACHMENT, "b.pdf", [CONTENT])
        assert leftovers(root) == [its_file]
        os.write(go_on[1], b".")
        assert ended(child) == 0
    assert objects(root) == {f"{PLACE}/b.pdf": CONTENT}
    assert leftovers(root) == []
    for end in (*waiting, *go_on):
        os.close(end)


def test_a_dead_process_holds_no_lock(store: Store, root: Path) -> None:
    """Killed in the middle of a change, it keeps nobody waiting."""

    def dying(current: Manifest | None) -> Manifest:
        kill_me()
        return manifest()

    assert ended(start(lambda: store.update_manifest(MESSAGE, dying))) == -signal.SIGKILL
    assert store.update_manifest(MESSAGE, lambda current: manifest()) == store.read_manifest(MESSAGE)
