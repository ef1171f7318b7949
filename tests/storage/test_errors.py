"""A store's errors say what to do, survive being carried between processes, and tell no secrets."""

from __future__ import annotations

import copy
import errno
import pickle
import traceback

import pytest

from attachments.storage import errors
from attachments.storage.errors import StoreError
from attachments.storage.local.errors import translated

from .samples import CANARY, PLACE

KINDS: list[type[StoreError]] = [StoreError, *StoreError.__subclasses__()]

EXPECTED = {
    errors.OutOfSpace: ["ENOSPC", "EDQUOT", "EFBIG", "EOVERFLOW"],
    errors.AccessDenied: ["EACCES", "EPERM", "EROFS", *(["ENOKEY"] if hasattr(errno, "ENOKEY") else [])],
    errors.UnsupportedStore: ["ENAMETOOLONG", "EINVAL", "EILSEQ", "ENOSYS", "ENOTSUP", "EXDEV"],
    errors.AlreadyExists: ["EEXIST", "ENOTDIR", "EISDIR", "ELOOP"],
    errors.StoreUnavailable: ["EIO", "ESTALE", "EAGAIN", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOENT", "EBUSY", "ENOMEM"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_being_pickled_and_copied(kind: type[StoreError]) -> None:
    """Prefect may carry an exception from one process to another; text and key arrive."""
    error = kind("could not do it", key=PLACE, remedy="try this")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.key, twin.retryable) == ("could not do it: try this", PLACE, kind.retryable)
        assert (twin.happened, twin.remedy) == ("could not do it", "try this")


def test_every_kind_has_a_code_of_its_own() -> None:
    """A manifest's `code` tells the kinds apart."""
    codes = [kind.outcome_code for kind in KINDS]
    assert len(set(codes)) == len(codes)


def test_only_what_may_pass_by_itself_is_retryable() -> None:
    """A retry on a full disk or without rights only delays the report."""
    assert [kind for kind in KINDS if kind.retryable] == [errors.StoreUnavailable]


@pytest.mark.parametrize(
    ("kind", "symbol"), [(kind, symbol) for kind, symbols in EXPECTED.items() for symbol in symbols]
)
def test_an_operating_system_error_becomes_its_kind(kind: type[StoreError], symbol: str) -> None:
    """The kinds decide about retries, so each number has the right one."""
    with pytest.raises(StoreError) as caught, translated("store attachment", key=PLACE):
        raise OSError(getattr(errno, symbol), "text", CANARY)
    assert type(caught.value) is kind
    assert symbol in str(caught.value)
    assert PLACE in str(caught.value)
    assert caught.value.key == PLACE


@pytest.mark.parametrize("number", [None, 0, -1, 99_999, *sorted(errno.errorcode)])
def test_no_operating_system_error_slips_past(number: int | None) -> None:
    """Every number that there is, and those that there are not, and none shows a file name."""
    with pytest.raises(StoreError) as caught, translated("store attachment", key=PLACE):
        raise OSError(number, f"cannot open {CANARY}", CANARY) if number is not None else OSError(CANARY)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert "During handling" not in shown


def test_what_is_not_the_systems_error_passes_as_it_is() -> None:
    """Errors of callers and of our own keep their type and identity."""
    for original in (StoreError("ours"), ValueError("theirs"), KeyboardInterrupt()):
        with pytest.raises(type(original)) as caught, translated("store attachment"):
            raise original
        assert caught.value is original
