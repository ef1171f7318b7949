"""What counts as proof that an object is ours and whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attachments.storage import Store
from tests.storage.samples import ATTACHMENT, CONTENT, MESSAGE, PLACE, sha256

needs_attributes = pytest.mark.skipif(
    not hasattr(os, "setxattr"), reason="Python has extended attributes on Linux only"
)


@needs_attributes
def test_the_proof_is_on_the_file(store: Store, root: Path) -> None:
    """Size, SHA-256 and content type, where any program can read them."""
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT], content_type="application/pdf")
    path = root / PLACE / "a.pdf"
    assert os.getxattr(path, "user.attachments.sha256") == sha256(CONTENT).encode()
    assert os.getxattr(path, "user.attachments.bytes") == str(len(CONTENT)).encode()
    assert os.getxattr(path, "user.mime_type") == b"application/pdf"


@needs_attributes
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"X" + CONTENT[1:]),
        lambda path: path.write_bytes(CONTENT[:-1]),
        lambda path: path.write_bytes(CONTENT + b"x"),
        lambda path: os.removexattr(path, "user.attachments.sha256"),
        lambda path: os.removexattr(path, "user.attachments.bytes"),
        lambda path: os.setxattr(path, "user.attachments.bytes", b"many"),
        lambda path: os.setxattr(path, "user.attachments.sha256", b"\xff"),
        lambda path: os.setxattr(path, "user.attachments.sha256", sha256(b"").encode()),
    ],
)
def test_an_object_whose_proof_does_not_hold_is_not_there(
    store: Store, root: Path, spoil: Callable[[Path], object]
) -> None:
    """Changed, cut, lengthened, or its proof gone or garbled: it is downloaded again and compared."""
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert ATTACHMENT in store.stored(MESSAGE)
    spoil(root / PLACE / "a.pdf")
    assert store.stored(MESSAGE) == {}


@needs_attributes
def test_an_object_that_was_compared_has_a_proof_again(store: Store, root: Path) -> None:
    """A backup that was restored without attributes costs one download an attachment, not one a run."""
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    os.removexattr(root / PLACE / "a.pdf", "user.attachments.sha256")
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert store.stored(MESSAGE)[ATTACHMENT].sha256 == sha256(CONTENT)


def no_room(*args: object) -> None:
    raise OSError(errno.ENOTSUP, "no attributes here")


@pytest.mark.parametrize("is_missing", [True, False])
def test_without_attributes_files_are_stored_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_missing: bool
) -> None:
    """On macOS, or on a file system without them, there is no proof; a second write compares."""
    if is_missing:
        monkeypatch.delattr(os, "setxattr", raising=False)
        monkeypatch.delattr(os, "getxattr", raising=False)
    else:
        monkeypatch.setattr(os, "setxattr", no_room, raising=False)
    first = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT], content_type="a/b")
    assert store.stored(MESSAGE) == {}
    assert store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]) == first
