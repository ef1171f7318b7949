"""What programs read from a run's state is its record, whatever the sentences say."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Failed, Running

from attachments.runs import artifacts, delayed_retry
from attachments.runs.artifacts import OUTCOME_LABELS, MessageResult, finish
from attachments.runs.state_record import FAILED_FOR_NOW, WITHDRAWN, StateRecord, read_record, write_record
from attachments.storage import ManifestAttachment
from attachments.storage.manifest import Outcome


def attempts(outcomes: Sequence[Outcome], codes: Sequence[str] = ()) -> list[Any]:
    """What became of attachments, in order; the failed ones have these codes."""
    left = iter(codes)
    stored = {"key": "a/b/c", "bytes": 10, "sha256": "0" * 64, "stored_at": None}
    found = []
    for n, outcome in enumerate(outcomes):
        code = next(left, "forbidden") if outcome == "failed" else None
        values = {"id": str(n), "attachment_key": f"{n:032x}", "name": "x", "outcome": outcome, "code": code}
        entry = ManifestAttachment.model_validate(values | (stored if outcome == "stored" else {}))
        found.append(SimpleNamespace(entry=entry, seconds=1.0, error=f"It is {code}", retryable=False))
    return found


@pytest.fixture(autouse=True)
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_make_table", lambda _: None)


@pytest.mark.parametrize(
    "record",
    [
        StateRecord(),
        StateRecord(stored=3),
        StateRecord(code="store-unavailable", next_attempt=2),
        StateRecord(worker="warm host 12 ab12cd"),
        StateRecord(worker="Café [a=b], {x}+%5D\n & stored=7"),
    ],
)
@pytest.mark.parametrize("sentence", [None, "Done.", "It holds [code=not-found, stored=9]", "[", "a ] b ["])
def test_what_is_written_is_read(record: StateRecord, sentence: str | None) -> None:
    """Whatever the sentence before it holds; without a record the state stays as it is."""
    state = write_record(Running(message=sentence), record)
    if record == StateRecord():
        assert state.message == sentence
    else:
        assert read_record(state) == record
        assert (state.message or "").startswith(sentence or "[")


@pytest.mark.parametrize(
    "message",
    [None, "", "]", "[]", "Code: not-found. [abc]", "[stored=many]", "[code=A name.pdf]", "[code=not-found] more"],
)
def test_what_is_no_record_counts_as_none(message: str | None) -> None:
    """Of a state that a person, Prefect or an older version set."""
    assert read_record(Failed(message=message)) == StateRecord()
    assert read_record(None) == StateRecord()


def test_a_record_of_a_newer_version_is_read() -> None:
    """As far as this one knows its fields."""
    assert read_record(Completed(message="Done. [later=1, stored=2]")) == StateRecord(stored=2)


def test_the_withdrawn_runs_of_an_older_version_are_still_known() -> None:
    """A reconciliation after the upgrade would else give up their messages, as those that a person has cancelled."""
    old = Cancelled(message="The run that had made this one was cancelled before it started.")
    assert read_record(old) == StateRecord(code=WITHDRAWN)
    assert read_record(Cancelled(message="no, thanks")) == StateRecord()


@pytest.mark.parametrize(
    "outcomes",
    [(), *itertools.product(OUTCOME_LABELS), *itertools.product(OUTCOME_LABELS, repeat=3), ("stored",) * 12],
    ids=",".join,
)
def test_what_is_stored_is_counted(outcomes: Sequence[Outcome]) -> None:
    """For every mix of outcomes, when the run has completed."""
    ended = finish(MessageResult("0" * 32, attempts(outcomes)))
    if ended.is_completed():
        assert read_record(ended) == StateRecord(stored=outcomes.count("stored"))
    else:
        assert read_record(ended) == StateRecord(code="forbidden")


@pytest.mark.parametrize(
    ("codes", "code"), [(("not-found", "forbidden"), "forbidden"), (("deleted",), "deleted"), (("A b",), "other")]
)
def test_the_code_of_a_run_is_one_that_is_not_permanent(codes: Sequence[str], code: str) -> None:
    """A reconciliation decides by it whether to look at the message again. A stranger's code is not shown."""
    ended = finish(MessageResult("0" * 32, attempts(["failed"] * len(codes), codes)))
    assert ended.is_failed()
    assert read_record(ended) == StateRecord(code=code)


@pytest.mark.parametrize("attempt", [1, 8, 9, 10])
def test_after_the_last_attempt_it_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch, attempt: int) -> None:
    """Nothing follows by itself, and an automation on failures reports it."""
    asked: list[dict[str, Any]] = []
    tags = ["mine"] if attempt == 1 else ["mine", f"attempt-{attempt}"]
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4(), tags=tags)
    client = SimpleNamespace(create_flow_run_from_deployment=lambda _, **values: asked.append(values))
    monkeypatch.setattr(delayed_retry, "FlowRunContext", SimpleNamespace(get=lambda: SimpleNamespace(flow_run=run)))
    monkeypatch.setattr(delayed_retry, "get_client", lambda **_: client)
    ended = delayed_retry.failed_for_now("It is away.", "timeout", {"whose": "this"})
    assert ended.is_failed()
    if attempt < delayed_retry.ATTEMPTS:
        assert ended.name == FAILED_FOR_NOW
        assert read_record(ended) == StateRecord(code="timeout", next_attempt=attempt + 1)
        (wanted,) = asked
        assert wanted["tags"] == ["mine", f"attempt-{attempt + 1}"]
        assert wanted["labels"] == {"whose": "this"}
    else:
        assert ended.name == "Failed"
        assert read_record(ended) == StateRecord(code="timeout")
        assert asked == []
