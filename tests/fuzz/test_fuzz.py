"""Readers of bytes from outside: what they make of known inputs, and for a while of unknown ones."""

import pytest

from tests.fuzz.engine import attempt, run
from tests.fuzz.readers import READERS

each_reader = pytest.mark.parametrize("name", sorted(READERS))


@each_reader
def test_known_inputs_keep_every_promise(name: str) -> None:
    """The inputs that fuzzing begins with."""
    for data in READERS[name].seeds():
        attempt(READERS[name], data)


@pytest.mark.soak
@each_reader
def test_unknown_inputs_keep_every_promise(name: str) -> None:
    """Ten seconds of mutations; `python -m tests.fuzz` takes longer."""
    assert run(name, 10).inputs > 100
