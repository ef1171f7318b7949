from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attachments.storage import Store, open_store
from tests.storage.places import Places


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(str(root))


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Servers are started once for all tests that a process runs."""
    made = Places(tmp_path_factory.mktemp("servers"))
    try:
        yield made
    finally:
        made.stop()
