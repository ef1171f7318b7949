"""What is tried again, and what an error may say."""

import traceback
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.exceptions import Abort
from prefect.states import Failed
from pydantic import TypeAdapter

from attachments.emailgistics import Forbidden, InvalidKey, NotFound, RateLimited, ServerError, TimedOut, Truncated
from attachments.flows.download_attachments import ReceivedTime, download_attachment, list_attachments
from attachments.foundation.cancellation import RunCancelled
from attachments.rate_limit.errors import PacingError
from attachments.rate_limit.priority import low_priority
from attachments.runs import errors
from attachments.runs.errors import (
    NotConfigured,
    PrefectLost,
    UnexpectedError,
    error_boundary,
    error_code,
    flow_boundary,
    is_transient,
    is_transient_or_fresh,
    retry_until_available,
)
from attachments.storage.errors import AccessDenied, AlreadyExists, OutOfSpace, StoreUnavailable

CANARY = "secret-name.pdf"


def _asked(condition: Any, error: Exception, tries: int = 1) -> bool:
    return bool(condition(None, SimpleNamespace(run_count=tries), Failed(data=error)))


@pytest.mark.parametrize(
    "error", [TimedOut("x"), RateLimited("x"), ServerError("x", status=500), Truncated("x"), StoreUnavailable("x")]
)
def test_what_can_get_better_is_tried_again(error: Exception) -> None:
    """Time-outs, 429, 5xx, truncation and a store that is away."""
    assert _asked(is_transient, error)


@pytest.mark.parametrize(
    "error",
    [
        *[Forbidden("x"), InvalidKey("x"), NotFound("x"), AlreadyExists("x"), OutOfSpace("x"), AccessDenied("x")],
        *[PacingError("x"), UnexpectedError("x"), ValueError("x")],
    ],
)
def test_nothing_else_is_tried_again(error: Exception) -> None:
    """What stays wrong until somebody does something."""
    assert not _asked(is_transient, error)


def test_a_404_is_not_believed_for_half_a_minute() -> None:
    """The first four tries, 2 + 4 + 8 + 16 s; then the message is gone."""
    answers = [_asked(is_transient_or_fresh, NotFound("x"), tries) for tries in (1, 4, 5)]
    assert answers == [True, True, False]


@pytest.mark.parametrize("task", [list_attachments, download_attachment])
def test_a_message_and_its_parts_have_the_same_half_minute(task: Any) -> None:
    """Exchange may list a part and answer 404 to its download for a few seconds more."""
    answers = [_asked(task.retry_condition_fn, NotFound("x"), tries) for tries in (1, 4, 5)]
    assert answers == [True, True, False]
    with low_priority():
        assert not _asked(task.retry_condition_fn, NotFound("x"))


def test_a_404_in_a_backfill_is_believed_at_once() -> None:
    """Old mail has many messages that are gone; half a minute for each would hold up the others."""
    with low_priority():
        assert not _asked(is_transient_or_fresh, NotFound("x"))
        assert _asked(is_transient_or_fresh, ServerError("x", status=500))


def test_an_unknown_error_comes_out_without_its_text() -> None:
    """Whatever nobody thought of: its type and place stay, its text and its context do not."""
    with pytest.raises(UnexpectedError) as caught:
        _fail_in_a_way_that_nobody_thought_of()
    shown = "".join(traceback.format_exception(caught.value))
    assert str(caught.value).startswith("FileNotFoundError in _fail_in_a_way_that_nobody_thought_of, line ")
    assert CANARY not in shown


@error_boundary()
def _fail_in_a_way_that_nobody_thought_of() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise OSError(2, "No such file", f"/store/{CANARY}") from error


def test_every_failure_has_a_code_for_the_manifest() -> None:
    """Short stable words, also for what has no type of its own."""
    errors = [Forbidden("x"), OutOfSpace("x"), PacingError("x"), UnexpectedError("x"), None]
    assert [error_code(error) for error in errors] == [
        "forbidden",
        "out-of-space",
        "unpaced",
        "unexpected",
        "unexpected",
    ]


def test_a_run_waits_for_prefect_and_gives_up_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect away for a moment costs no run; away for long, the run says so and is tried again later."""
    monkeypatch.setattr(errors, "BETWEEN", 0.01)
    answers: list[Exception | str] = [httpx.ReadError("gone"), httpx.ConnectError("gone"), "block"]

    def ask() -> str:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry_until_available(ask) == "block"
    answers[:] = [httpx.ReadError("gone")]
    monkeypatch.setattr(errors, "PATIENCE", 0.1)
    with pytest.raises(PrefectLost, match=r"does not respond \(ReadError\)") as caught:
        retry_until_available(ask)
    assert errors.is_retryable(caught.value)


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00+00:00"),
        ("2026-11-22T10:00:00", "2026-11-22T10:00:00+00:00"),
        ("2026-11-22T10:00:00+02:00", "2026-11-22T08:00:00+00:00"),
        *[(nothing, None) for nothing in ("", None, "22 Nov 2026", "0001-01-01T00:00:00+05:00", ["x"], {})],
    ],
)
def test_what_is_no_date_is_left_out(said: object, understood: str | None) -> None:
    """Events carry what somebody put there; garbage in `received` must not cost the attachments."""
    found = TypeAdapter(ReceivedTime).validate_python(said)
    assert (found.isoformat() if found else None) == understood


def test_a_cancelled_flow_ends_with_abort() -> None:
    """Prefect's `Abort` leaves the run's state to the worker; any other error of ours is the flow's to report."""
    with pytest.raises(Abort), flow_boundary():
        raise RunCancelled
    with pytest.raises(NotConfigured), flow_boundary():
        raise NotConfigured("no block")
    with pytest.raises(UnexpectedError), flow_boundary():
        raise ValueError("a file name")
