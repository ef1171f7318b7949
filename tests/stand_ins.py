"""Whether the tests of the stand-ins (the sandbox and the servers) have to run: not where nothing of them has changed.

`make test` asks with ``python -m tests.stand_ins``, which prints the end of pytest's ``-m`` expression. In doubt it
prints nothing, and the tests run. When all tests have passed, ``python -m tests.stand_ins --passed`` records that.
"""

import hashlib
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("attachments/sandbox", "tests/sandbox", "tests/servers")
"""The stand-ins and their tests, which import nothing else of ours."""
FILES = ("requirements.lock", "pyproject.toml", "tests/conftest.py")
"""What else their results depend on."""
RUNNING, PASSED = Path("build/stand-ins.running"), Path("build/stand-ins.passed")
LEFT_OUT = " and not stand_in"


def fingerprint(root: Path = ROOT) -> str:
    """A hash of every file that the tests of the stand-ins depend on, and of the Python that runs them."""
    found = hashlib.sha256(f"{sys.version} {platform.platform()}".encode())
    for path in _files(root):
        content = path.read_bytes()
        found.update(f"\n{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        files = [path for path in (root / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        if not files:
            raise FileNotFoundError(f"{folder} is empty")
        yield from sorted(files)
    yield from (root / name for name in FILES)


def selection(root: Path = ROOT) -> str:
    """What to append to `-m`; notes what the run that follows tests."""
    try:
        now = fingerprint(root)
        (root / RUNNING).parent.mkdir(exist_ok=True)
        (root / RUNNING).write_text(now)
        return LEFT_OUT if (root / PASSED).read_text() == now else ""
    except (OSError, ValueError):
        return ""


def record_pass(root: Path = ROOT) -> None:
    """Record that the tests have passed on what they tested: it may have changed while they ran."""
    (root / RUNNING).replace(root / PASSED)


if __name__ == "__main__":
    if sys.argv[1:] == ["--passed"]:
        record_pass()
    else:
        print(selection())
