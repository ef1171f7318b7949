"""Anyone who reaches Prefect's API can write labels; what is not one of ours counts as none."""

from uuid import uuid4

import pytest

from attachments.runs.run_labels import CRASH_COUNT, ORIGIN, count_label, id_label

ODD = ["abc", "", "3", "1e3", True, False, -1, 1.5, float("inf"), float("nan"), 10**5000, "9" * 5000, "\x1b[2J", None]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_what_is_no_count_counts_as_no_label(value: object) -> None:
    """Whatever it is, reading it raises nothing."""
    assert count_label({CRASH_COUNT: value}, CRASH_COUNT) is None
    assert count_label({}, CRASH_COUNT) is None
    assert count_label({CRASH_COUNT: 3}, CRASH_COUNT) == 3


@pytest.mark.parametrize("value", [1, True, "", "a b", "a\n", "\x1b]0;x", "\u202e", "a" * 5000])
def test_what_is_no_id_counts_as_no_label(value: object) -> None:
    """It becomes a part of tags, keys and sentences."""
    run = str(uuid4())
    assert id_label({ORIGIN: value}, ORIGIN) is None
    for known in (run, f"{run}/retried/{run}/2"):
        assert id_label({ORIGIN: known}, ORIGIN) == known
