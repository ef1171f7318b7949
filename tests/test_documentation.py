"""What the documentation says exists: commands, options, variables, fields, errors, metrics, files; and its site."""

import configparser
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import prefect.settings
import pytest
import yaml
from prefect.flows import Flow
from prefect.server.utilities import encryption
from pydantic_core import PydanticUndefined

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli.main import COMMANDS, app
from attachments.cli.secret_files import SECRETS
from attachments.domain.selection import Filter
from attachments.emailgistics import errors as vendor_errors
from attachments.emailgistics.errors import EmailgisticsError
from attachments.flows.backfill_attachments import backfill_attachments
from attachments.flows.download_attachments import download_attachments
from attachments.flows.purge_attachments import purge_attachments
from attachments.flows.reconcile_attachments import reconcile_attachments
from attachments.receiver.metrics import Metrics
from attachments.runs.child_runs import CRASHED, DELETED, REFUSED
from attachments.runs.deployment_spec import LIMITS
from attachments.runs.errors import OTHER_CODES, UnexpectedError
from attachments.runs.state_record import UNKNOWN
from attachments.storage import Manifest, ManifestAttachment
from attachments.storage import errors as store_errors
from attachments.storage.errors import StoreError
from attachments.storage.manifest import Pending
from attachments.worker.timings import WorkerTimings

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]
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


def section(page: str, heading: str) -> str:
    """The text under a heading of a page, up to the next one."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {heading}"
    return found.group(1)


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, without its head."""
    return [table(part) for part in text.split("\n\n") if part.startswith("|")]


def table(text: str) -> list[list[str]]:
    """The rows of the first table, without its head; each cell without its backticks."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as the site and code hosts make them."""
    headings = re.findall(
        r"^#+ (.*)",
        re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL),
        re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def code_blocks(document: Path, language: str = "") -> str:
    """The text of all code blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return "\n".join(found)


def code_of(document: Path) -> str:
    """Every line of code: of the blocks, and each passage in backticks. Prose may begin with any word."""
    text = document.read_text("utf-8")
    blocks = "".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return blocks + "\n".join(" ".join(passage.split()) for passage in re.findall(r"`([^`]+)`", prose))


COMMAND_NAMES = sorted(command.__name__ for commands in COMMANDS.values() for command in commands)


@each_document
def test_every_command_of_ours_exists_with_its_options(document: Path) -> None:
    """`attachments X --option`, wherever it is written."""
    for name, rest in re.findall(
        r"(?:^|bin/|as-attachments )attachments ([a-z]+)(.*)", code_of(document), re.MULTILINE
    ):
        assert name in COMMAND_NAMES
        known = {*options(name), "--help"}
        for option in re.findall(r"(--[a-z-]+)", rest.partition(" -- ")[0]):  # what follows is for `receive`
            assert option in known, f"attachments {name} {option}"


def options(command: str) -> dict[str, str]:
    """The options of `attachments <command>`, and their defaults as text; flags and None have none."""
    arguments = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    known = {argument.name: argument.field_info.default for argument in arguments if argument.name.startswith("-")}
    return {
        name: "" if default is None or default is False or default is inspect.Parameter.empty else str(default)
        for name, default in known.items()
    }


@pytest.mark.parametrize("command", COMMAND_NAMES)
def test_every_option_is_documented_with_its_default(command: str) -> None:
    """All of a command's options, and no other."""
    written = {
        option: row[1].strip("`")
        for row in table(section("command-line.md", f"`attachments {command}`"))
        for option in names(row[0])
    }
    expected = options(command)
    assert set(written) == set(expected)
    for option, default in expected.items():
        hours = re.fullmatch(r"1 day, 0:00:00", default)
        assert not default or float_or_text(written[option]) == (24.0 if hours else float_or_text(default)), option


def float_or_text(text: str) -> float | str:
    """A number as one, so that 0 and 0.0 are the same."""
    try:
        return float(text)
    except ValueError:
        return text


def test_every_command_is_documented() -> None:
    """In a section of its own, and no command that is not there."""
    text = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert set(re.findall(r"^## `attachments ([a-z]+)`$", text, re.MULTILINE)) == set(COMMAND_NAMES)


@each_document
def test_every_make_target_exists(document: Path) -> None:
    """Whatever a document tells the reader to make."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    written = re.findall(r"^make (?:-C \S+ )?([a-z]+(?: [a-z]+)*)", code_of(document), re.MULTILINE)
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


def test_the_variables_that_name_a_secrets_file_are_documented() -> None:
    """All of them, in the section of the environment."""
    written = {name for name in variables(section("configuration.md", "Environment")) if name.endswith("_FILE")}
    assert written == {f"{name}_FILE" for name in SECRETS}


def test_every_variable_that_the_code_reads_is_documented() -> None:
    """In the table of the environment."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "attachments").rglob("*.py"))
    read = set(re.findall(r'"((?:EMAILGISTICS|ATTACHMENTS)_[A-Z_]+)"', sources))
    documented = {name for row in table(section("configuration.md", "Environment")) for name in names(row[0])}
    assert read <= documented


@pytest.mark.parametrize("block", [EmailgisticsAccount, AttachmentStore], ids=lambda block: block.__name__)
def test_the_blocks_fields_and_defaults_are_documented(block: type[EmailgisticsAccount | AttachmentStore]) -> None:
    """All of them, and none besides."""
    rows = table(section("configuration.md", f"Block `{block._block_type_slug}`"))
    written = {name: row[1].strip("`") for row in rows for name in names(row[0])}
    assert set(written) == set(block.model_fields)
    for name, field in block.model_fields.items():
        if field.default_factory is not None:
            default = field.default_factory()  # type: ignore[call-arg]  # none of ours looks at other fields
            assert written[name] == str(default.get_secret_value() if hasattr(default, "get_secret_value") else default)
        else:
            assert written[name] == ("none" if field.default is PydanticUndefined else f"{field.default}")


@pytest.mark.parametrize(
    ("page", "flow", "defaults"),
    [
        ("configuration.md", download_attachments, {}),
        (
            "backfill.md",
            backfill_attachments,
            dict.fromkeys(("message_ids", "ids_url", "ids_block", "mailbox", "start", "end")),
        ),
        ("reconciliation.md", reconcile_attachments, {"mailboxes": "all active ones"}),
        ("retention.md", purge_attachments, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_flows_parameters_and_defaults_are_documented(
    page: str, flow: Flow[..., object], defaults: dict[str, str | None]
) -> None:
    """All of them, and none besides; `defaults` are those that the page states in words, or not at all (None)."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    parts = [part for part in text.split("\n\n") if part.startswith("| parameter |")]
    written = {name: row[1].strip("`") for part in parts for row in table(part) for name in names(row[0])}
    signature = inspect.signature(flow.fn)
    words = {None: "null", False: "false", True: "true", inspect.Parameter.empty: "none"}
    assert set(written) == set(signature.parameters)
    for name, parameter in signature.parameters.items():
        if name in defaults:
            assert defaults[name] in {None, written[name]}
        else:
            default = parameter.default
            assert written[name] == (
                words[default]
                if default is None or default is inspect.Parameter.empty or isinstance(default, bool)
                else f"{default}"
            )


def test_the_limits_are_documented() -> None:
    """With their sizes."""
    assert {names(row[0])[0]: int(row[1]) for row in table(section("configuration.md", "Limits"))} == LIMITS


def test_the_manifests_names_are_documented() -> None:
    """Of the message and of each attachment: all of them, and none besides."""
    text = section("manifest.md", "manifest.json")
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
    [
        ("Errors of Emailgistics", EmailgisticsError, vendor_errors),
        ("Errors of the store", StoreError, store_errors),
    ],
    ids=["vendor", "store"],
)
def test_every_error_is_documented_with_its_code_and_whether_it_is_tried_again(
    heading: str, base: type[Exception], module: object
) -> None:
    """All of them, and none besides."""
    written = {(names(row[0])[0], names(row[1])[0]): row[2] for row in table(section("errors.md", heading))}
    errors = {(error.outcome_code, error.__name__): error for error in concrete(base, module)}  # type: ignore[attr-defined]
    assert set(written) == set(errors)
    for key, error in errors.items():
        assert (written[key] == "yes") == error.retryable, key  # type: ignore[attr-defined]


def test_our_own_errors_are_documented_with_their_codes() -> None:
    """Those of the flows, and the codes without an error class."""
    written = {
        names(row[0])[0]: (names(row[1]) or [None])[0] for row in table(section("errors.md", "Errors of this service"))
    }
    expected = {code: error.__name__ for error, code in OTHER_CODES.items()} | {UNKNOWN: UnexpectedError.__name__}
    without = {CRASHED, DELETED, REFUSED, *get_args(Pending)}
    assert written == expected | dict.fromkeys(without)


def test_every_metric_is_documented_with_its_type() -> None:
    """And none that is not there."""
    families = {
        metric.name + "_total" * (metric.type == "counter"): metric.type for metric in Metrics().registry.collect()
    }
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    written = {names(row[0])[0]: row[1] for row in tables(page)[1]}
    assert written == families


def test_every_outcome_of_a_delivery_is_documented() -> None:
    """Those that the receiver counts."""
    source = (ROOT / "attachments" / "receiver" / "app.py").read_text("utf-8")
    counted = re.findall(
        r'(?:_success|labels)\("([a-z-]+)"|_Rejection\(\d+, .*"([a-z-]+)"\)|^ +(?:else )?\("([a-z-]+)", f?"',
        source,
        re.MULTILINE,
    )
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert {name for row in tables(page)[2] for name in names(row[0])} == {
        name for found in counted for name in found if name
    }


def test_every_filter_in_the_documentation_is_a_filter() -> None:
    """Those of the table, of the deployment and of the commands."""
    page = (ROOT / "docs" / "filters.md").read_text("utf-8")
    written = [names(row[1])[0] for row in table(page)]
    written += re.findall(r"(?:-p 'filter=|--filter ')(.*?)'", page)
    assert len(written) > 6
    for text in written:
        Filter.model_validate_json(text)
    deployment = yaml.safe_load(code_blocks(ROOT / "docs" / "more-deployments.md", "yaml"))["deployments"][0]
    Filter.model_validate(deployment["parameters"]["filter"])
    assert (
        deployment["entrypoint"] == yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]["entrypoint"]
    )


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if code_blocks(each, "python")], ids=lambda path: path.name
)
def test_the_python_in_the_documentation_is_python(document: Path) -> None:
    """It compiles, and what it imports exists."""
    code = code_blocks(document, "python")
    imports = "\n".join(line for line in code.splitlines() if line.startswith(("from", "import")))
    compile(code, document.name, "exec")
    exec(imports, {})


@each_document
def test_every_file_that_is_linked_or_named_exists(document: Path) -> None:
    """Links are relative to the document; paths in backticks to the root, and those of tests without backticks too."""
    text = document.read_text("utf-8")
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        target = (document.parent / link) if link else document
        assert "://" in link or target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    paths = re.findall(r"`((?:attachments|tests|flows|blocks|docs|deploy)/[\w./-]+)`", text)
    for path in [*paths, *re.findall(r"\btests/[\w/-]+(?:\.py)?", text)]:
        assert (ROOT / path).exists(), path
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"\btest_\w+\.py", text)) <= tests


def test_every_page_that_a_message_or_a_comment_names_exists() -> None:
    """`docs/stores.md` and the like, in the code, the units and the configuration."""
    places = [path for folder in ("attachments", "flows", "blocks") for path in (ROOT / folder).rglob("*.py")]
    places += [*(ROOT / "deploy").rglob("*.*"), *ROOT.glob("*.yaml"), *ROOT.glob("*.yml"), ROOT / "pyproject.toml"]
    named = {page for path in places for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text("utf-8"))}
    assert {page for page in named if not (ROOT / page).exists()} == set()
    assert "docs/stores.md" in named


@pytest.mark.parametrize("language", ["json", "yaml"])
def test_the_examples_can_be_parsed(language: str) -> None:
    """Each block of JSON or YAML; those with templates of Prefect's are text until Prefect has filled them in."""
    found = [
        block
        for document in DOCUMENTS
        for block in re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ]
    assert found
    for block in found:
        (json.loads if language == "json" else yaml.safe_load)(re.sub(r"\{\{ body\.\w+ \| tojson \}\}", "null", block))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_each_page_begins_with_whom_it_is_for(page: Path) -> None:
    """In the line under its title."""
    title, audience, empty = page.read_text("utf-8").splitlines()[:3]
    assert title.startswith("# ")
    assert re.fullmatch(r"_For .*\._", audience)
    assert not empty


def test_the_readme_is_short() -> None:
    """At most 200 lines; everything else is in docs/."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_the_site_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    """Fonts, scripts, styles and pictures are its own, so that no other host learns who reads it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=240)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?!a\b)[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)", text)
        assert not loaded, f"{page.name}: {loaded}"
        assert 'class="mermaid"' not in text  # the theme would load its renderer from another host
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text("utf-8")), sheet.name


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
        app.parse_args(arguments)
    assert parsed["Service"]["Restart"] == "always"


def test_a_worker_is_not_killed_while_it_hands_back_its_runs() -> None:
    """systemd waits longer than runs under way get to finish."""
    service = read_unit(ROOT / "deploy" / "systemd" / "attachments-worker.service")["Service"]
    assert float(service["TimeoutStopSec"]) > WorkerTimings().drain + 10


def read_unit(path: Path) -> configparser.RawConfigParser:
    """A systemd unit; a key may stand in it several times."""
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(path)
    return parsed
