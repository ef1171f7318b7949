"""One installation for all tests of the road: Prefect's server takes 10 to 20 s to start."""

from collections.abc import Iterator

import pytest

from tests.road.installation import Installation, installation


@pytest.fixture(scope="session")
def shared_installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("road")) as everything:
        yield everything


@pytest.fixture
def running(shared_installation: Installation) -> Iterator[Installation]:
    """The installation, all of it alive and without faults, before the test and after it."""
    yield shared_installation
    shared_installation.sandbox.control.clear_faults()
    for process in shared_installation.road.processes:
        if process.code is not None:
            process.start()
