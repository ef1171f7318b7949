"""The configured responses to webhooks: how long to wait for the run, and which actions to request.

Read once, from a YAML or JSON file: deployment names, each with `wait` and `actions`. The actions are the vendor's
(webhooks/actions/*); the two that record what was done are supported: a tag, and custom fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from attachments.emailgistics import Action

MAX_WAIT = 95.0  # seconds; Emailgistics gives an attempt 100 (webhooks/delivery)

_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_FieldValue = Annotated[str, StringConstraints(max_length=100)]  # webhooks/actions/set-custom-fields
_Wait = Annotated[float, Field(ge=0, le=MAX_WAIT)]


class InvalidResponses(Exception):
    """The file cannot be used; the text says what to change."""


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Tags(_StrictModel):
    tags: Annotated[list[_Name], Field(min_length=1)]


class _Tag(_StrictModel):
    type: Literal["tag"]
    value: _Tags
    name: _Name | None = None


class _SetCustomFields(_StrictModel):
    type: Literal["setCustomFields"]
    value: Annotated[dict[_Name, _FieldValue], Field(min_length=1)]
    name: _Name | None = None


class _Entry(_StrictModel):
    wait: _Wait | None = None
    actions: list[Annotated[_Tag | _SetCustomFields, Field(discriminator="type")]] = []


_file: TypeAdapter[dict[_Name, _Entry]] = TypeAdapter(dict[_Name, _Entry])


@dataclass(frozen=True)
class WebhookResponse:
    """For one deployment: how many seconds to wait for the end of the run (0: do not wait), and the actions."""

    wait: float = 0.0
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True)
class WebhookResponses:
    """For all deployments. Those that the file does not name wait for `wait` seconds and request no action."""

    wait: float = 0.0
    named: Mapping[str, WebhookResponse] | None = None

    def of(self, deployment: str) -> WebhookResponse:
        """The response for this deployment."""
        return (self.named or {}).get(deployment) or WebhookResponse(self.wait)


def load_responses(path: Path | None, wait: float) -> WebhookResponses:
    """Read the responses from a file; without one, only `wait` applies. Raises `InvalidResponses`."""
    if path is None:
        return WebhookResponses(wait)
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidResponses(
            f"The file {path} cannot be read: {reason}. Correct the path or the file. Correct the path or the file."
        ) from None
    except yaml.YAMLError:
        raise InvalidResponses(
            f"The file {path} is neither YAML nor JSON. Correct its syntax. Correct its syntax."
        ) from None
    try:
        entries = _file.validate_python({} if document is None else document)
    except ValidationError as error:
        raise InvalidResponses(f"The file {path}: {'; '.join(map(_describe, error.errors()))}.") from None
    return WebhookResponses(wait, {name: _response(entry, wait) for name, entry in entries.items()})


def _response(entry: _Entry, wait: float) -> WebhookResponse:
    actions: list[Any] = [action.model_dump(exclude_none=True) for action in entry.actions]
    return WebhookResponse(wait if entry.wait is None else entry.wait, tuple(actions))


def _describe(problem: Any) -> str:
    return f"{'.'.join(map(str, problem['loc'])) or 'the whole file'}: {problem['msg']}"
