"""When `make test` runs the tests of the sandbox and of the test servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stand_ins import FILES, FOLDERS, LEFT_OUT, PASSED, ROOT, record_pass, selection


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose tests have passed."""
    for name in (*(f"{folder}/a.py" for folder in FOLDERS), *FILES, "attachments/runs/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    assert selection(tmp_path) == "", "they have never passed"
    record_pass(tmp_path)
    return tmp_path


def test_they_are_left_out_while_nothing_of_theirs_changes(root: Path) -> None:
    """Compiled files and other parts of the project do not count."""
    (root / FOLDERS[0] / "__pycache__").mkdir()
    (root / FOLDERS[0] / "__pycache__" / "a.pyc").touch()
    (root / "attachments" / "runs" / "a.py").write_text("x = 2\n")
    assert selection(root) == LEFT_OUT


@pytest.mark.parametrize("name", [*(f"{folder}/a.py" for folder in FOLDERS), *FILES])
@pytest.mark.parametrize("change", ["changed", "removed", "renamed"])
def test_they_run_after_a_change(root: Path, name: str, change: str) -> None:
    """Of any file, until they have passed again."""
    file = root / name
    if change == "changed":
        file.write_text("x = 2\n")
    elif change == "removed":
        file.unlink()
    else:
        file.rename(file.with_name("other"))
    assert selection(root) == ""
    assert selection(root) == "", "nothing has passed since"


def test_they_run_when_it_is_not_known_whether_they_passed(root: Path) -> None:
    """Without the record, or with one that is damaged."""
    (root / PASSED).write_bytes(b"\xff")
    assert selection(root) == ""
    (root / PASSED).unlink()
    assert selection(root) == ""


def test_what_changes_while_they_run_has_not_passed(root: Path) -> None:
    """The record is of what they have tested."""
    file = root / FOLDERS[1] / "a.py"
    file.write_text("x = 2\n")
    selection(root)
    file.write_text("x = 3\n")
    record_pass(root)
    assert selection(root) == ""


def test_every_test_of_these_folders_is_marked_and_the_soak_runs_them() -> None:
    """The marker alone selects them, and `make soak` names it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not stand_in", *FOLDERS[1:]]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert found.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert re.search(r"no tests collected \([0-9]{3} deselected\)", found.stdout)
    assert re.search(r'^soak:.*\n\t.*-m "soak or stand_in"', (ROOT / "Makefile").read_text(), re.MULTILINE)
