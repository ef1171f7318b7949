"""No private or borrowed name of another package outside the modules that list them, and why they are needed."""

import ast
import builtins
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from attachments.worker.internals import INTERNALS

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "attachments/worker/internals.py": "Prefect's",
    "attachments/storage/backends/library_internals.py": "those of the storage libraries",
}
"""The modules that may use private names of other packages."""
HOOKS = {
    "_block_type_name",
    "_block_type_slug",
    "_description",
    "_display_name",
    "_documentation_url",
    "_logo_url",
}
"""Prefect documents these for the classes of blocks and workers, whose authors set them."""
STANDARD = {*sys.stdlib_module_names, *dir(builtins)}


def sources() -> list[Path]:
    return sorted(path for folder in ("attachments", "blocks", "flows") for path in (ROOT / folder).rglob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_foreign(module: str) -> bool:
    """Whether a module is another package's. The standard library documents its few private names (`os._exit`)."""
    package = module.partition(".")[0]
    return package not in STANDARD and package != "attachments"


def root(node: ast.expr) -> ast.expr:
    """`a` of `a.b.c()`."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node


@cache
def private_names(kind: type) -> frozenset[str]:
    """The private attributes of a class: what its body defines, and what its methods set on `self`."""
    try:
        tree = ast.parse(dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return frozenset(filter(is_private, vars(kind)))
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return frozenset(filter(is_private, assigned | set(vars(kind))))


def foreign_private_names(kind: type) -> frozenset[str]:
    """Those of a class and its bases that other packages define. Python's and pydantic's own begin with `_abc_` etc."""
    found: set[str] = set()
    for base in kind.__mro__:
        if is_foreign(base.__module__) and base.__module__.partition(".")[0] not in {"pydantic", "typing_extensions"}:
            found |= private_names(base)
    return frozenset(name for name in found if not name.startswith("_abc_"))


class Scan:
    """What one source file does with the names of other packages."""

    def __init__(self, source: str, module: ModuleType | None = None) -> None:
        self._source = source
        self._tree = ast.parse(source)
        self._module = module
        self._imported: dict[str, str] = {}
        """Local names of what other packages define, with the module that each was imported from."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if is_foreign(alias.name):
                        self._imported[alias.asname or alias.name.partition(".")[0]] = alias.name
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level and is_foreign(node.module):
                self._imported.update({alias.asname or alias.name: node.module for alias in node.names})

    def findings(self) -> Iterator[str]:
        """A line for each use of a name that is not public."""
        for node in ast.walk(self._tree):
            if text := self._of_import(node) or self._of_attribute(node) or self._of_patch(node):
                yield f"{getattr(node, 'lineno', 0)}: {text}"
        for number, line in enumerate(self._source.splitlines(), 1):
            if "method-assign" in line:
                yield f"{number}: a method is replaced on an object: {line.strip()}"
        yield from self._of_subclasses()

    def _of_import(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if is_foreign(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names if is_foreign(node.module)]
            if node.module == "types" and {alias.name for alias in node.names} & {"FunctionType", "CodeType"}:
                return "functions are rebuilt"
        else:
            return None
        found = [name for name in names if any(map(is_private, name.split(".")))]
        return f"imports {', '.join(found)}" if found else None

    def _of_attribute(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner, name = node.value, node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"getattr", "setattr", "delattr", "hasattr"}
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
            and is_private(str(node.args[1].value))
        ):
            owner, name = node.args[0], str(node.args[1].value)
        else:
            return None
        if isinstance(owner, ast.Name) and owner.id in {"self", "cls"}:
            return None  # `_of_subclasses` looks at these
        base = root(owner)
        if isinstance(base, ast.Name) and base.id in self._imported:
            return f"uses {ast.unparse(owner)}.{name}"
        if name in self._own_names and (name not in self._foreign_names or self._is_own(owner)):
            return None
        if isinstance(base, ast.Name) and (base.id in sys.stdlib_module_names):
            return None
        return f"uses {ast.unparse(owner)}.{name}"

    def _of_patch(self, node: ast.AST) -> str | None:
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            return None
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
        for target in targets:
            base = root(target)
            if isinstance(target, ast.Attribute) and isinstance(base, ast.Name) and base.id in self._imported:
                return f"replaces {ast.unparse(target)}"
        return None

    def _of_subclasses(self) -> Iterator[str]:
        """What a subclass of another package's class uses of its private part, on purpose or by the same name."""
        for node in ast.walk(self._tree):
            kind = getattr(self._module, node.name, None) if isinstance(node, ast.ClassDef) else None
            if not isinstance(kind, type) or kind.__module__ != getattr(self._module, "__name__", None):
                continue
            foreign = foreign_private_names(kind) - HOOKS
            for part in ast.walk(node):
                name = None
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    name = part.name
                elif isinstance(part, ast.Attribute) and isinstance(root(part.value), ast.Name):
                    name = part.attr if ast.unparse(part.value) in {"self", "cls", "super()"} else None
                elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    name = part.id
                if name in foreign:
                    yield f"{part.lineno}: {node.name} uses {name}, a private name of a base class"

    def _is_own(self, owner: ast.expr) -> bool:
        """Whether the expression is an object of a class of this file: a parameter of that name has it as its type."""
        name = ast.unparse(owner).rpartition(".")[2].lstrip("_")
        kinds = {node.name for node in ast.walk(self._tree) if isinstance(node, ast.ClassDef)}
        return any(
            isinstance(node, ast.arg)
            and node.arg == name
            and node.annotation is not None
            and ast.unparse(node.annotation).strip("'\"") in kinds
            for node in ast.walk(self._tree)
        )

    @property
    def _own_names(self) -> set[str]:
        """Private names that this file defines."""
        found = {
            node.name
            for node in ast.walk(self._tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        found |= {
            node.attr
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in {"self", "cls"}
        }
        return found | {
            node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }

    @property
    def _foreign_names(self) -> set[str]:
        """Private names of the classes that this file imports: used on an object, such a name may be theirs."""
        kinds = (getattr(self._module, name, None) for name in self._imported)
        return {name for kind in kinds if isinstance(kind, type) for name in foreign_private_names(kind)}


def module_of(path: Path) -> ModuleType:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "attachments":
        parts.insert(0, "attachments")
    return importlib.import_module(".".join(part for part in parts if part != "__init__"))


@pytest.mark.parametrize("path", [path.relative_to(ROOT).as_posix() for path in sources()])
def test_only_the_listed_modules_use_private_names_of_other_packages(path: str) -> None:
    """Each such name may change with any version of its package: it needs a reason, and a test of what it does."""
    if path in ALLOWED or path.endswith("__main__.py"):
        return
    assert list(Scan((ROOT / path).read_text(), module_of(ROOT / path)).findings()) == []


def test_the_list_of_prefects_names_is_the_one_in_use() -> None:
    """A private name that is no longer used leaves the list, and a new one enters it."""
    (module,) = (path for path in ALLOWED if "worker" in path)
    tree = ast.parse((ROOT / module).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    listed = {internal.name.rpartition(".")[2] for internal in INTERNALS}
    assert used == {name for name in listed if is_private(name)}


@pytest.mark.parametrize("path", ALLOWED)
def test_a_module_that_may_use_private_names_does(path: str) -> None:
    """Otherwise it leaves the list."""
    assert list(Scan((ROOT / path).read_text(), module_of(ROOT / path)).findings())


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("from prefect._internal import x", "1: imports prefect._internal.x"),
        ("from prefect import _x", "1: imports prefect._x"),
        ("import prefect._internal.x", "1: imports prefect._internal.x"),
        ("from types import FunctionType", "1: functions are rebuilt"),
        ("import prefect\nprefect.flow_engine.observe = None", "2: replaces prefect.flow_engine.observe"),
        ("import prefect\nx = prefect.flows._y", "2: uses prefect.flows._y"),
        ("def f(client):\n    return client._client", "2: uses client._client"),
        ("def f(client):\n    return getattr(client, '_client')", "2: uses client._client"),
        ("def f(x):\n    x.get = f  # type: ignore[method-assign]", "2: a method is replaced"),
    ],
)
def test_the_scan_finds_what_it_is_for(source: str, finding: str) -> None:
    """Otherwise the tests above would show nothing."""
    (found,) = Scan(source).findings()
    assert found.startswith(finding)


SUBCLASS = """
from prefect.workers.base import BaseWorker
class Worker(BaseWorker):
    type = "scan"
    _logo_url = "x"
    async def _submit_run(self, flow_run):
        return self._limiter
def other(worker):
    worker._client = None
    worker._own = None
"""


def test_the_scan_finds_private_names_of_base_classes() -> None:
    """Overridden or used, also on an object of a class that the file imports; documented hooks are no finding."""
    module = ModuleType("scanned")
    exec(SUBCLASS, vars(module))
    found = list(Scan(SUBCLASS, module).findings())
    assert [line.partition(": ")[2] for line in found if "base class" in line] == [
        "Worker uses _submit_run, a private name of a base class",
        "Worker uses _limiter, a private name of a base class",
    ]
    assert "9: uses worker._client" in found


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "from attachments.runs import x\ndef f(self):\n    self._y = 1\n    return self._y",
        "class A:\n    def __init__(self):\n        self._x = 1\n    def is_as(self, other):\n        return other._x",
    ],
)
def test_names_of_ones_own_are_no_finding(source: str) -> None:
    """Nor are those of the standard library, which documents them."""
    assert list(Scan(source).findings()) == []
