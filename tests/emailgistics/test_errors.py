"""What the errors tell, keep to themselves, and survive."""

import copy
import pickle
import traceback

import pytest

from attachments.emailgistics import errors
from attachments.emailgistics.errors import EmailgisticsError

ALL = [EmailgisticsError, *EmailgisticsError.__subclasses__()]
SECRET = "Invoice of Jane Doe.pdf"


@pytest.mark.parametrize("kind", ALL)
def test_all_survive_pickling(kind: type[EmailgisticsError]) -> None:
    """An error comes out of a pickle, or a copy, as it went in: Prefect may carry it between processes."""
    error = kind("It broke", status=418, code="Odd.Code-1", vendor_message=SECRET, retry_after=7.5)
    error.add_note("seen in a test")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert repr(twin) == repr(error)
        assert vars(twin) == vars(error)
        assert (twin.status, twin.code, twin.retry_after) == (418, "Odd.Code-1", 7.5)
        assert twin.vendor_message == SECRET


@pytest.mark.parametrize("kind", ALL)
def test_none_shows_what_the_vendor_said(kind: type[EmailgisticsError]) -> None:
    """The vendor's text lives in its attribute alone: not in `str`, `repr`, `args` or a traceback."""
    error = kind("It broke", status=418, code=SECRET, vendor_message=SECRET)
    assert error.code is None
    shown = [str(error), repr(error), str(error.args), *traceback.format_exception(error)]
    assert not any(SECRET in text for text in shown)


@pytest.mark.parametrize("kind", ALL)
def test_each_says_what_happened_and_what_to_do(kind: type[EmailgisticsError]) -> None:
    """The text has the message, the status, the code and a remedy; the outcome's code is one stable word."""
    text = str(kind("It broke", status=418, code="teapot"))
    assert text.startswith("It broke (HTTP 418, code teapot). ")
    assert text.endswith(kind.remedy)
    assert kind.outcome_code.replace("-", "").isalpha()


def test_outcome_codes_tell_the_errors_apart() -> None:
    """Two kinds of error never share a word in a manifest; the words do not change."""
    assert {kind.__name__: kind.outcome_code for kind in ALL} == {
        "EmailgisticsError": "error",
        "InvalidArgument": "invalid-argument",
        "InvalidDelivery": "invalid-delivery",
        "BadRequest": "bad-request",
        "InvalidKey": "invalid-key",
        "Forbidden": "forbidden",
        "NotFound": "not-found",
        "UnexpectedStatus": "unexpected-status",
        "RateLimited": "rate-limited",
        "ServerError": "server-error",
        "ConnectionFailed": "connection",
        "TimedOut": "timeout",
        "DeadlineExceeded": "deadline",
        "Truncated": "truncated",
        "BadAnswer": "bad-answer",
        "StrayLink": "stray-link",
        "ReportFailed": "report-failed",
        "Aborted": "aborted",
    }


def test_which_are_worth_another_try() -> None:
    """What may pass by itself is retryable, and nothing else."""
    assert {kind.__name__ for kind in ALL if kind.retryable} == {
        "RateLimited",
        "ServerError",
        "ConnectionFailed",
        "TimedOut",
        "DeadlineExceeded",
        "Truncated",
        "BadAnswer",
        "ReportFailed",
    }


def test_the_tree_is_drawn_whole() -> None:
    """The tree at the top of the file names every error, and there is none below the second level."""
    assert errors.__doc__ is not None
    for kind in ALL:
        assert kind.__name__ in errors.__doc__
    assert all(not kind.__subclasses__() for kind in ALL[1:])


def test_not_found_names_both_causes() -> None:
    """The vendor does not tell a missing message from a mailbox out of reach, so the text names both."""
    text = str(errors.NotFound("Listing: refused", status=404))
    assert "gone" in text
    assert "allowlist" in text


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("404", "404"),
        ("ErrorItemNotFound", "ErrorItemNotFound"),
        ("a" * 40, "a" * 40),
        ("a" * 41, None),
        ("", None),
        ("two words", None),
        ("jane@example.com", None),
        ("line\n", None),
        ("Größe", None),
        (None, None),
    ],
)
def test_only_a_plain_token_counts_as_a_code(code: str | None, kept: str | None) -> None:
    """Anything that could be a sentence or an address is dropped."""
    assert EmailgisticsError("It broke", code=code).code == kept


def test_an_invalid_argument_is_a_value_error() -> None:
    """Settings are checked where a ValueError is expected."""
    assert issubclass(errors.InvalidArgument, ValueError)
    assert issubclass(errors.InvalidDelivery, ValueError)
