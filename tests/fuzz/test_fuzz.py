"""Readers of bytes from outside: what they make of known inputs, and for a while of unknown ones."""

import pytest

from tests.fuzz.engine import attempt, probe_growth, run
from tests.fuzz.readers import READERS

each_reader = pytest.mark.parametrize("name", sorted(READERS))


@each_reader
def test_known_inputs_keep_every_promise(name: str) -> None:
    """The inputs that fuzzing begins with."""
    for data in READERS[name].seeds():
        attempt(READERS[name], data)


def test_a_senders_name_takes_no_more_than_its_length_to_read() -> None:
    """Also one that is all but a scanner's placeholder: blanks without end and then something else."""
    assert probe_growth(READERS["listed-name"]) > 0


@pytest.mark.soak
@each_reader
def test_unknown_inputs_keep_every_promise(name: str) -> None:
    """Ten seconds of mutations; `python -m tests.fuzz` takes longer."""
    assert run(name, 10).inputs > 100
