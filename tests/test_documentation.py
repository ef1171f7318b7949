"""What the documents say exists: commands, options, variables, fields, errors, files."""

import argparse
import configparser
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import prefect.settings
import pytest
import yaml
from prefect.server.utilities import encryption
from pydantic_core import PydanticUndefined

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli import main as cli
from attachments.cli.secret_files import SECRETS
from attachments.cli.setup import LIMITS
from attachments.domain.selection import Filter
from attachments.emailgistics import errors as vendor_errors
from attachments.emailgistics.errors import EmailgisticsError
from attachments.flows.download_attachments import download_attachments
from attachments.sandbox import __main__ as sandbox
from attachments.storage import Manifest, ManifestAttachment
from attachments.storage import errors as store_errors
from attachments.storage.errors import StoreError
from attachments.worker.warm_worker import DRAIN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
KNOWN_HOSTS = {
    "docs.prefect.io",
    "c1.emailgistics.com",
    "semver.org",
    "127.0.0.1",
    "localhost",
    "<your host>",
}
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def section(heading: str) -> str:
    """The README's text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found.group(1)


def table(text: str) -> list[list[str]]:
    """The rows of the first table, without its head; each cell without its backticks."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def code_blocks(document: Path, language: str = "") -> str:
    """The text of all code blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return "\n".join(found)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of `attachments …`."""
    actions = cli._parser()._actions
    (choices,) = [action.choices for action in actions if isinstance(action, argparse._SubParsersAction)]
    return {**choices, "sandbox": sandbox._parser()}  # the sandbox reads its own options


@each_document
def test_every_command_of_ours_exists_with_its_options(document: Path) -> None:
    """`attachments X --option`, wherever it is written."""
    known = subcommands()
    text = document.read_text("utf-8")
    for name, rest in re.findall(r"(?:^|`|bin/)attachments ([a-z]+)([^`\n]*)", text, re.MULTILINE):
        assert name in known, name
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in known[name]._option_string_actions, f"attachments {name} {option}"


def test_every_option_of_the_receiver_is_documented_with_its_default() -> None:
    """And none that is not there."""
    rows = {option: row[1] for row in table(section("Options of `attachments receive`")) for option in names(row[0])}
    actions = {
        action.option_strings[-1]: action for action in subcommands()["receive"]._actions if action.dest != "help"
    }
    assert set(rows) == set(actions)
    for option in ("--host", "--port"):
        assert rows[option].strip("`") == str(actions[option].default)


@each_document
def test_every_make_target_exists(document: Path) -> None:
    """Whatever a document tells the reader to make."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    written = re.findall(r"(?:^|`)make (?:-C \S+ )?([a-z]+(?: [a-z]+)*)", document.read_text("utf-8"), re.MULTILINE)
    mentioned = {target for targets_of_one in written for target in targets_of_one.split()}
    assert mentioned <= targets
    parts = re.findall(r'^    "(\w+)": ', (ROOT / "benchmarks" / "__main__.py").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bPART=(\w+)", document.read_text("utf-8"))) <= set(parts)


def variables(text: str) -> set[str]:
    """Names of environment variables in a text."""
    return set(re.findall(r"\b(?:EMAILGISTICS|ATTACHMENTS|PREFECT)_[A-Z][A-Z_]+\b", text))


@pytest.mark.parametrize("document", [*DOCUMENTS, *UNITS], ids=lambda path: path.name)
def test_every_variable_is_known_to_the_code(document: Path) -> None:
    """Ours are read by our code, Prefect's by Prefect."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "attachments").rglob("*.py"))
    sources += inspect.getsource(encryption)  # the one variable that Prefect reads past its settings
    for name in variables(document.read_text("utf-8")):
        known = name.removesuffix("_FILE") in SECRETS or f'"{name}"' in sources
        assert known or (name.startswith("PREFECT_") and hasattr(prefect.settings, name)), name


def test_the_variables_that_name_a_secrets_file_are_in_the_readme() -> None:
    """All of them, in the section of the environment."""
    written = {name for name in variables(section("Environment")) if name.endswith("_FILE")}
    assert written == {f"{name}_FILE" for name in SECRETS}


def test_every_variable_that_the_code_reads_is_in_the_readme() -> None:
    """In the table of the environment."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "attachments").rglob("*.py"))
    read = set(re.findall(r'"((?:EMAILGISTICS|ATTACHMENTS)_[A-Z_]+)"', sources))
    documented = {name for row in table(section("Environment")) for name in names(row[0])}
    assert read <= documented


@pytest.mark.parametrize("block", [EmailgisticsAccount, AttachmentStore], ids=lambda block: block.__name__)
def test_the_blocks_fields_and_defaults_are_documented(block: type[EmailgisticsAccount | AttachmentStore]) -> None:
    """All of them, and none besides."""
    rows = table(section(f"Block `{block._block_type_slug}`"))
    written = {name: row[1].strip("`") for row in rows for name in names(row[0])}
    assert set(written) == set(block.model_fields)
    for name, field in block.model_fields.items():
        if field.default_factory is not None:
            default = field.default_factory()  # type: ignore[call-arg]  # none of ours looks at other fields
            assert written[name] == str(default.get_secret_value() if hasattr(default, "get_secret_value") else default)
        else:
            assert written[name] == ("none" if field.default is PydanticUndefined else f"{field.default}")


def test_the_flows_parameters_and_defaults_are_documented() -> None:
    """All of them, and none besides."""
    written = {
        name: row[1].strip("`")
        for row in table(section("Parameters of `download-attachments`"))
        for name in names(row[0])
    }
    signature = inspect.signature(download_attachments.fn)
    assert set(written) == set(signature.parameters)
    words = {None: "null", False: "false", inspect.Parameter.empty: "none"}
    for name, parameter in signature.parameters.items():
        assert written[name] == words.get(parameter.default, parameter.default)


def test_the_limits_are_documented() -> None:
    """With their sizes."""
    assert {names(row[0])[0]: int(row[1]) for row in table(section("Limits"))} == LIMITS


def test_the_manifests_names_are_documented() -> None:
    """Of the message and of each attachment: all of them, and none besides."""
    text = section("Where the files are")
    message, attachment = (part for part in text.split("\n\n") if part.startswith("| name |"))
    expected = {"schema", *Manifest.model_fields, *Manifest.model_computed_fields} - {"schema_"}
    assert {name for row in table(message) for name in names(row[0])} == expected
    assert {name for row in table(attachment) for name in names(row[0])} == set(ManifestAttachment.model_fields)


def concrete(base: type[Exception], module: object) -> Iterator[type[Exception]]:
    """The errors of a module that are raised."""
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, base) and value is not base:
            yield value


@pytest.mark.parametrize(
    ("heading", "base", "module"),
    [("Emailgistics' side", EmailgisticsError, vendor_errors), ("The store's side", StoreError, store_errors)],
    ids=["vendor", "store"],
)
def test_every_error_is_documented_with_its_code_and_whether_it_is_tried_again(
    heading: str, base: type[Exception], module: object
) -> None:
    """All of them, and none besides."""
    written = {(names(row[0])[0], names(row[1])[0]): row[2] for row in table(section(heading))}
    errors = {(error.outcome_code, error.__name__): error for error in concrete(base, module)}  # type: ignore[attr-defined]
    assert set(written) == set(errors)
    for key, error in errors.items():
        assert (written[key] == "yes") == error.retryable, key  # type: ignore[attr-defined]


def test_every_filter_in_the_readme_is_a_filter() -> None:
    """Those of the table, of the deployment and of the command."""
    written = [names(row[1])[0] for row in table(section("Filters"))] + re.findall(r"-p 'filter=(.*?)'", README)
    assert len(written) > 5
    for text in written:
        Filter.model_validate_json(text)
    deployment = yaml.safe_load(code_blocks(ROOT / "README.md", "yaml"))["deployments"][0]
    Filter.model_validate(deployment["parameters"]["filter"])
    assert (
        deployment["entrypoint"] == yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]["entrypoint"]
    )


def test_the_python_in_the_readme_is_python() -> None:
    """It compiles, and what it imports is there."""
    code = code_blocks(ROOT / "README.md", "python")
    imports = "\n".join(line for line in code.splitlines() if line.startswith(("from", "import")))
    compile(code, "README.md", "exec")
    subprocess.run([sys.executable, "-c", imports], check=True, timeout=60)


@each_document
def test_every_file_that_is_linked_or_named_exists(document: Path) -> None:
    """Links are relative to the document; paths in backticks to the root, and those of tests without backticks too."""
    text = document.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (document.parent / link).exists(), link
    paths = re.findall(r"`((?:attachments|tests|flows|blocks|docs|deploy)/[\w./-]+)`", text)
    for path in [*paths, *re.findall(r"\btests/[\w/-]+(?:\.py)?", text)]:
        assert (ROOT / path).exists(), path
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"\btest_\w+\.py", text)) <= tests


@each_document
def test_no_address_of_a_place_to_download_from(document: Path) -> None:
    """Every host is one that we mean to name; reserved example names are free (RFC 2606)."""
    for host in re.findall(r"\bhttps?://([^/\s:`)]+(?: host>)?)", document.read_text("utf-8")):
        assert host in KNOWN_HOSTS or host.endswith(("example.com", "example")), host


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_the_units_start_what_there_is(unit: Path) -> None:
    """Each is whole, starts a command of this project or of Prefect, and is started again when it ends."""
    parsed = read_unit(unit)
    assert parsed.sections() == ["Unit", "Service", "Install"]
    program, *arguments = parsed["Service"]["ExecStart"].split()
    assert Path(sys.executable).with_name(Path(program).name).exists()
    if Path(program).name == "attachments":
        cli._parser().parse_args(arguments)
    assert parsed["Service"]["Restart"] == "always"


def test_a_worker_is_not_killed_while_it_hands_back_its_runs() -> None:
    """systemd waits longer than runs under way get to finish."""
    service = read_unit(ROOT / "deploy" / "systemd" / "attachments-worker.service")["Service"]
    assert float(service["TimeoutStopSec"]) > DRAIN + 10


def read_unit(path: Path) -> configparser.RawConfigParser:
    """A systemd unit; a key may stand in it several times."""
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(path)
    return parsed
