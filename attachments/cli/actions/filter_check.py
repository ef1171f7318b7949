"""Checks the filters in a prefect.yaml: one sentence for each mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from attachments.cli.command_boundary import CommandFailed, import_prefect
from attachments.domain.selection import Filter, describe_errors
from attachments.foundation.terminal_text import escaped

FLOW = "download_attachments"


def check_filter_text(text: str) -> Iterator[str]:
    """The mistakes in a filter given as JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"The filter is not JSON ({_reason(error)}). Quote it for the shell with '…'.") from None
    yield from _filter_mistakes(found, "filter")


def check_file(path: Path) -> Iterator[str]:
    """The mistakes in the filters of a prefect.yaml's deployments."""
    for deployment in _read_deployments(path):
        name = escaped(str(deployment.get("name")))
        if "filter" in deployment:
            yield f"Deployment {name}: filter is in the wrong place, so it is ignored. Move it below parameters."
        parameters = deployment.get("parameters")
        if not isinstance(parameters, dict):
            continue
        for key in sorted(set(map(str, parameters)) - _known_parameters()):
            known = ", ".join(sorted(_known_parameters()))
            yield f"Deployment {name}: the flow has no parameter {escaped(key)}, only {known}."
        for mistake in _filter_mistakes(parameters.get("filter"), "filter"):
            yield f"Deployment {name}: {mistake}"


def _filter_mistakes(value: Any, place: str) -> Iterator[str]:
    if value is None or (isinstance(value, str) and "{{" in value):  # Prefect fills in placeholders on deployment
        return
    if not isinstance(value, dict):
        yield f"{place}: a filter has include, exclude or both, each with a list of rules."
        return
    try:
        Filter.model_validate(value)
    except ValidationError as error:
        yield f"{place}: {escaped(describe_errors(error))}."


def _read_deployments(path: Path) -> Iterator[dict[Any, Any]]:
    """The file's deployments of the download flow."""
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be read ({error.strerror}). Give the right path: `attachments check FOLDER/prefect.yaml`."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CommandFailed(f"{path} is not YAML ({_reason(error)}).") from None
    listed = document.get("deployments") if isinstance(document, dict) else None
    found = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    found = [each for each in found if re.split("[.:]", str(each.get("entrypoint")))[-1] == FLOW]
    if not found:
        raise CommandFailed(f"{path} has no deployment of the flow {FLOW}. Check that it is the right file.")
    yield from found


def _known_parameters() -> set[str]:
    import_prefect()
    from attachments.flows.download_attachments import download_attachments

    return set(download_attachments.parameters.properties)


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {escaped(str(error.problem))}"
    return escaped(" ".join(str(error).split()))
