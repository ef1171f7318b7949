"""What others read from a run's final state is what the run has said."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from attachments.runs import artifacts as reporting
from attachments.runs import delayed_retry
from attachments.runs.artifacts import WORDS, Report, _sentence, finish
from attachments.runs.run_outcome import FAILED_FOR_NOW, failure_code, follows_by_itself, stored_count
from attachments.storage import ManifestAttachment
from attachments.storage.manifest import Outcome


def entries(outcomes: Sequence[Outcome]) -> list[ManifestAttachment]:
    return [
        ManifestAttachment.model_validate(
            {
                "id": str(n),
                "attachment_key": f"{n:032x}",
                "name": "7 stored",
                "outcome": outcome,
                "kind": "fileAttachment",
            }
            | ({"key": "a/b/c", "bytes": 10, "sha256": "0" * 64, "stored_at": None} if outcome == "stored" else {})
        )
        for n, outcome in enumerate(outcomes)
    ]


@pytest.mark.parametrize(
    "outcomes", [(), *itertools.product(WORDS), *itertools.product(WORDS, repeat=3), ("stored",) * 12], ids=",".join
)
def test_the_count_is_read_from_the_sentence(outcomes: Sequence[Outcome]) -> None:
    """For every mix of outcomes, with what may stand before and after it."""
    sentence = _sentence(entries(outcomes))
    assert stored_count(f"{sentence}.") == list(outcomes).count("stored")
    assert stored_count(f"Nothing to do: the manifest settles all. {sentence}.") == list(outcomes).count("stored")


@pytest.mark.parametrize(("codes", "told"), [(("not-found", "forbidden"), "forbidden"), (("deleted",), "deleted")])
def test_what_can_be_mended_is_the_code_of_a_run(
    codes: Sequence[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconciliation decides by it whether to look at the message again."""
    monkeypatch.setattr(reporting, "_make_table", lambda _: None)
    failed = [
        cast(
            "Any",
            SimpleNamespace(
                entry=entry.model_copy(update={"code": code}), seconds=1.0, error=f"It is {code}", retryable=False
            ),
        )
        for code, entry in zip(codes, entries(["failed"] * len(codes)), strict=True)
    ]
    ended = finish(Report("0" * 32, failed))
    assert ended.is_failed()
    assert failure_code(ended.message or "") == told
    assert f"First failure: It is {told}" in (ended.message or "")


@pytest.mark.parametrize("attempt", [1, 8, 9, 10])
def test_after_the_last_attempt_it_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch, attempt: int) -> None:
    """Nothing follows by itself, and whoever has asked Prefect to tell of failures has to hear of it."""
    asked: list[dict[str, Any]] = []
    tags = ["mine"] if attempt == 1 else ["mine", f"attempt-{attempt}"]
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4(), tags=tags)
    client = SimpleNamespace(create_flow_run_from_deployment=lambda _, **values: asked.append(values))
    monkeypatch.setattr(delayed_retry, "FlowRunContext", SimpleNamespace(get=lambda: SimpleNamespace(flow_run=run)))
    monkeypatch.setattr(delayed_retry, "get_client", lambda **_: client)
    ended = delayed_retry.failed_for_now("It is away. Code: timeout.", {"whose": "this"})
    assert ended.is_failed()
    if attempt < delayed_retry.ATTEMPTS:
        assert ended.name == FAILED_FOR_NOW
        assert follows_by_itself(ended.message or "")
        (wanted,) = asked
        assert wanted["tags"] == ["mine", f"attempt-{attempt + 1}"]
        assert wanted["labels"] == {"whose": "this"}
    else:
        assert ended.name == "Failed"
        assert not follows_by_itself(ended.message or "")
        assert asked == []
