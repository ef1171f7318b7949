"""What the linters do not see: every exception to a rule has its reason, and no text of others passes unescaped.

ruff bans `print` outside of `attachments/foundation/terminal_text.py` (T20), log messages that are put together before
they are logged (G), and what flake8-bandit knows (S).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("attachments", "flows", "blocks") for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)  # fmt: skip
EXCEPTION = re.compile(r"# noqa: ([A-Z0-9, ]*?\bS[0-9]+[A-Z0-9, ]*?)(?:\s{2}|\s[-#(]|$)(.*)")
RECEIVER = ("attachments/receiver/", "attachments/cli/receive.py")
"""Their log is written through `LogFormatter`, which escapes whole records."""

HARMLESS = {
    "action": "what is done at Emailgistics, in our words",
    "key": "of a mailbox or message: hex digits",
    "kind": "one of our words",
    "left": "seconds",
    "reason": "the kind of an error, or a status",
    "runs": "a count",
    "seconds": "a number",
    "value": "a key, or the text of a StoreError, which is ours",
    "flow_run.id": "a UUID",
    "run.id": "a UUID",
    "run_id": "a UUID",
    "timings.drain": "a number",
    "self.skipped": "a count",
    "state.name": "one of ours: the worker sets it",
    "options.first / timedelta(days=1)": "a number",
}
"""What a log takes as it is, and why."""
HARMLESS_CALLS = {"escaped_line", "counted", "reason", "_reason", "_counts"}
"""Functions whose results are escaped, or made of numbers and words of ours."""

QUOTED = {
    ("attachments/domain/message_ids.py", "error"): "our own ValueError about a parameter",
    ("attachments/domain/message_ids_source.py", "error"): "our own ValueError about a URL",
    (
        "attachments/receiver/inbox_reader.py",
        "error",
    ): "SQLite's words about the inbox, which is the operator's own file",
    (
        "attachments/receiver/server.py",
        "error.strerror or error",
    ): "the system's words about our own options",
    ("attachments/sandbox/control.py", "error"): "the sandbox answers who orders something of it",
    ("attachments/sandbox/intake.py", "error"): "the sandbox answers who orders something of it",
    ("attachments/storage/factory.py", "str(error)"): "our own ValueError about the store's URL",
}
"""Where an error that is raised quotes another one that is not ours, and why."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


def our_classes() -> set[str]:
    """Names of the classes that our sources define: the texts of our errors hold our own words, counts and keys."""
    return {node.name for path in SOURCES for node in nodes(path) if isinstance(node, ast.ClassDef)}


def test_every_exception_to_a_security_rule_has_its_reason() -> None:
    """After the code, in words; and no folder but the tests is left out of the rules."""
    for path in [*SOURCES, *(ROOT / "benchmarks").glob("*.py")]:
        for line in path.read_text("utf-8").splitlines():
            for codes, reason in EXCEPTION.findall(line):
                assert len(re.findall(r"[a-z]+", reason)) >= 2, f"{name_of(path)}: {codes} has no reason"
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert {"S", "T20", "G"} <= set(lint["select"])
    assert not {code for code in lint["ignore"] if re.match("S[0-9]|T20|G", code)}
    ignoring = {folder for folder, codes in lint["per-file-ignores"].items() if {"S", "T20"} & set(codes)}
    assert {folder for folder in ignoring if "S" in lint["per-file-ignores"][folder]} == {"tests/**"}
    assert ignoring == {"tests/**", "benchmarks/**"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_text_of_others_reaches_a_stream_or_a_log_unescaped(path: Path) -> None:
    """A new argument of a log is escaped with `escaped_line`, or gets into the list with a reason."""
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr"}:
            assert not ast.unparse(node).endswith(".write"), name_of(path)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert not re.fullmatch(r"sys\.(stdout|stderr)\.(write|writelines)", called), f"{name_of(path)}: use say()"
        if re.search(r"log\w*(\(\))?\.(debug|info|warning|error|critical|exception|log)$", called, re.IGNORECASE):
            if name_of(path).startswith(RECEIVER):
                continue
            for argument in node.args[1:]:
                assert is_harmless(argument), f"{name_of(path)}, line {node.lineno}: {ast.unparse(argument)} is logged"


def is_harmless(argument: ast.expr) -> bool:
    text = ast.unparse(argument)
    is_called = isinstance(argument, ast.Call) and ast.unparse(argument.func) in HARMLESS_CALLS
    return is_called or text in HARMLESS or text.isupper() or re.fullmatch(r"type\(\w+\)\.__name__", text) is not None


OURS = our_classes()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_error_quotes_the_text_of_one_that_is_not_ours(path: Path) -> None:
    """A library's words may hold a path, a name or what a server has sent; its kind or its number is told instead."""
    for handler in nodes(path):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
            continue
        caught = {ast.unparse(kind) for kind in getattr(handler.type, "elts", [handler.type])}
        if caught <= OURS:
            continue
        for raised in (node for node in ast.walk(handler) if isinstance(node, ast.Raise) and node.exc is not None):
            for part in quoted(raised, handler.name):
                assert (name_of(path), part) in QUOTED, f"{name_of(path)}, line {raised.lineno}: {part} of {caught}"


def quoted(raised: ast.Raise, name: str) -> Iterator[str]:
    """The parts of a new error that are an old one's text."""
    for node in ast.walk(raised):
        if isinstance(node, ast.FormattedValue):
            text = ast.unparse(node.value)
            if re.fullmatch(rf"(.*\bor )?{name}", text):
                yield text
        elif isinstance(node, ast.Call) and ast.unparse(node) == f"str({name})":
            yield ast.unparse(node)


def test_the_lists_of_exceptions_hold_nothing_else() -> None:
    """What is no more in the code has no place there."""
    code = {name_of(path): path.read_text("utf-8") for path in SOURCES}
    logged = "\n".join(text for name, text in code.items() if not name.startswith(RECEIVER))
    assert [text for text in HARMLESS if text not in logged] == []
    assert [name for name, _ in QUOTED if name not in code] == []
