"""The code uses one term for each thing: CONTRIBUTING.md says how names are chosen."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("attachments", "flows", "blocks")
REPLACED = {
    "Lacks": "Unsupported",
    "Mark": "Watermark",
    "NobodyStarts": "Starved",
    "ChildrenLeft": "FanOutCancelled",
    "Question": "TimedCall",
    "Residue": "Orphan",
    "Road": "Stack",
    "Room": "Capacity",
    "Seal": "Transform",
    "Silent": "NoResponse",
    "Standing": "ObjectStat",
    "Tried": "FirstAttempt",
    "Wanted": "MessageRef",
    "_Returns": "LeasePool",
    "_Wish": "Waiter",
    "can_get_better": "is_transient",
    "contained": "error_boundary",
    "avoids_others": "skip_existing_runs",
    "go_on": "raise_if_cancelled",
    "heed": "apply_suspension",
    "is_akin": "is_same_kind",
    "is_asked": "is_cancelled",
    "lent": "acquire",
    "make_patient": "retrying_transport",
    "patiently": "retry_until_available",
    "steps_aside": "yield_slot",
    "take_over": "disable_suspension_observer",
    "tell_when_away": "raise_if_unreachable",
    "what_ails": "write_error",
}
"""Names of earlier versions, each with the name that replaced it. They say nothing to someone new to the code."""
SHARED = {"NotFound"}
"""Names of two classes: the error of the vendor and that of the store are public, and docs/errors.md lists both."""
MODULES = {
    "answers": "responses",
    "asking": "probe",
    "cancelling": "cancellation",
    "committing": "commit",
    "endings": "run_outcome",
    "examination": "checks",
    "following": "run_waiter",
    "incoming": "staging",
    "moving": "rename",
    "opening": "factory",
    "probing": "healthcheck",
    "proofs": "checksums",
    "road": "stack",
    "sealing": "age",
    "sidecars": "checksum_objects",
    "strangers": "unauthenticated",
    "suspending": "suspension",
    "switching": "schedule",
    "upkeep": "store_verification",
}


def modules() -> Iterator[Path]:
    """Every module of the product but the sandbox, which shares no code with it."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "sandbox" not in path.relative_to(ROOT).parts and not path.parent.is_symlink():
                yield path


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The names of classes, functions, arguments, variables and attributes, with their lines."""
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name, getattr(node, "lineno", 0)


def test_no_replaced_name_comes_back() -> None:
    """Neither as a class, function or variable nor as a module."""
    found = []
    for path in modules():
        where = path.relative_to(ROOT).as_posix()
        if path.stem in MODULES:
            found.append(f"{where}: a module of the sort is named {MODULES[path.stem]}")
        for name, line in identifiers(ast.parse(path.read_text("utf-8"))):
            if name in REPLACED:
                found.append(f"{where}, line {line}: {name} is named {REPLACED[name]}")
    assert not found, "\n".join(found)


def test_no_two_classes_share_a_name() -> None:
    """A name stands for one thing in the whole product."""
    places = defaultdict(list)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED} == {}
