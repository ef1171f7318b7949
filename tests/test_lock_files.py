"""The lock files: production installs what the product runs on, development the same versions and its tools."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

PROJECT = Path(__file__).parents[1]
ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    return dict(ENTRY.findall((PROJECT / name).read_text()))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> Iterator[tuple[str, str]]:
    """Every top-level module that the product imports, and where."""
    for folder in ("attachments", "flows", "blocks"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((alias.name.partition(".")[0], str(path)) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    yield (node.module or "").partition(".")[0], str(path)


def test_production_gets_no_tool_for_development():
    """What only tests, checks and benchmarks use is in the lock file for development alone."""
    groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]
    tools = {canonical(re.split(r"[\[<>=]", entry)[0]) for entry in groups["dev"] if isinstance(entry, str)}
    # Some tools are what the product's own dependencies use as well.
    shared = {"requests"}
    assert tools - shared & locked("requirements.lock").keys()
    assert not (tools - shared) & locked("requirements-runtime.lock").keys()


def test_development_has_the_versions_that_run_in_production():
    """The two lock files install into one environment in either order: neither changes what the other has installed."""
    production, development = locked("requirements-runtime.lock"), locked("requirements.lock")
    assert production.items() <= development.items()
    assert "prefect" in production


def test_production_gets_everything_that_the_product_imports():
    """Each package that a module of the product imports is in the lock file for production."""
    production = locked("requirements-runtime.lock")
    distributions = packages_distributions()
    for module, path in imported():
        if module in sys.stdlib_module_names or module == "attachments":
            continue
        names = {canonical(name) for name in distributions[module]}
        assert names & production.keys(), f"{path} imports {module}, which is in none of production's packages"


def test_lock_files_hold_hashes_and_no_addresses():
    """Where a package is downloaded from is up to the machine; that it is the right one is up to its hash."""
    for name in ("requirements-runtime.lock", "requirements.lock"):
        text = (PROJECT / name).read_text()
        for entry in re.split(r"\n(?=[a-z])", text)[1:]:
            assert "--hash=sha256:" in entry, entry.splitlines()[0]
        assert not re.search(r"https?:|--(?:extra-)?index|find-links| @ ", text)
