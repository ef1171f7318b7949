"""What is tried again, and what an error may say."""

import traceback
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Failed

from attachments.emailgistics import Forbidden, InvalidKey, NotFound, RateLimited, ServerError, TimedOut, Truncated
from attachments.pacing import PacingError
from attachments.storage.errors import AccessDenied, AlreadyExists, OutOfSpace, StoreUnavailable
from flows.failures import UnexpectedError, can_get_better, can_get_better_or_is_fresh, code_of, contained

CANARY = "secret-name.pdf"


def _asked(condition: Any, error: Exception, tries: int = 1) -> bool:
    return bool(condition(None, SimpleNamespace(run_count=tries), Failed(data=error)))


@pytest.mark.parametrize(
    "error", [TimedOut("x"), RateLimited("x"), ServerError("x", status=500), Truncated("x"), StoreUnavailable("x")]
)
def test_what_can_get_better_is_tried_again(error: Exception) -> None:
    """Time-outs, 429, 5xx, truncation and a store that is away."""
    assert _asked(can_get_better, error)


@pytest.mark.parametrize(
    "error",
    [
        *[Forbidden("x"), InvalidKey("x"), NotFound("x"), AlreadyExists("x"), OutOfSpace("x"), AccessDenied("x")],
        *[PacingError("x"), UnexpectedError("x"), ValueError("x")],
    ],
)
def test_nothing_else_is_tried_again(error: Exception) -> None:
    """What stays wrong until somebody does something."""
    assert not _asked(can_get_better, error)


def test_a_404_is_not_believed_for_half_a_minute() -> None:
    """The first four tries, 2 + 4 + 8 + 16 s; then the message is gone."""
    answers = [_asked(can_get_better_or_is_fresh, NotFound("x"), tries) for tries in (1, 4, 5)]
    assert answers == [True, True, False]


def test_an_unknown_error_comes_out_without_its_text() -> None:
    """Whatever nobody thought of: its type and place stay, its text and its context do not."""
    with pytest.raises(UnexpectedError) as caught:
        _fail_in_a_way_that_nobody_thought_of()
    shown = "".join(traceback.format_exception(caught.value))
    assert str(caught.value).startswith("FileNotFoundError in _fail_in_a_way_that_nobody_thought_of, line ")
    assert CANARY not in shown


@contained()
def _fail_in_a_way_that_nobody_thought_of() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise OSError(2, "No such file", f"/store/{CANARY}") from error


def test_every_failure_has_a_code_for_the_manifest() -> None:
    """Short stable words, also for what has no type of its own."""
    errors = [Forbidden("x"), OutOfSpace("x"), PacingError("x"), UnexpectedError("x"), None]
    assert [code_of(error) for error in errors] == ["forbidden", "out-of-space", "unpaced", "unexpected", "unexpected"]
