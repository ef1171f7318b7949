from __future__ import annotations

from pathlib import Path

import pytest

from attachments.storage import Store, open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(str(root))
