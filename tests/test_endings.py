"""What others read from a run's final state is what the run has said."""

import itertools
from collections.abc import Sequence

import pytest

from attachments.storage import ManifestAttachment
from attachments.storage.manifest import Outcome
from flows.endings import stored_count
from flows.report import WORDS, _sentence


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


@pytest.mark.parametrize("outcomes", [(), *itertools.product(WORDS, repeat=3), ("stored",) * 12], ids=",".join)
def test_the_count_is_read_from_the_sentence(outcomes: Sequence[Outcome]) -> None:
    """For every mix of outcomes, with what may stand before and after it."""
    sentence = _sentence(entries(outcomes))
    assert stored_count(f"{sentence}.") == list(outcomes).count("stored")
    assert stored_count(f"Nothing to do: the manifest settles all. {sentence}.") == list(outcomes).count("stored")
