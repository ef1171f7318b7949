"""One installation for half of the end-to-end tests: Prefect's server takes 10 to 20 s to start."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.e2e.installation import Installation, installation

ONE_HALF = {"test_kills.py", "test_ways_in.py", "test_backfill.py", "test_leaks.py"}
"""They take as long as all others together."""
TIMEOUT = 900
"""Seconds for a test. Those of the first one include the start of the installation, minutes on a busy machine."""
LONGEST = "test_growth.py"
"""In the soak it takes as long as all other tests, and has an installation of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes run them, so that two installations are enough, and neither is what all others wait for."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            half = "one" if item.path.name in ONE_HALF else "other"
            group = "growth" if item.path.name == LONGEST else f"e2e-{half}"
            item.add_marker(pytest.mark.xdist_group(group))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session")
def shared_installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("stack")) as everything:
        yield everything


@pytest.fixture
def running(shared_installation: Installation) -> Iterator[Installation]:
    """The installation, all of it alive and without faults, before the test and after it."""
    shared_installation.since = datetime.now(UTC)
    yield shared_installation
    shared_installation.sandbox.control.clear_faults()
    for process in shared_installation.stack.processes:
        if process.code is not None:
            process.start()
    shared_installation.forget_unfinished_runs()
