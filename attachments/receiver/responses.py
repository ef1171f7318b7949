"""What the receiver answers beyond the bare success: how long it waits for the run, and which actions it asks for.

Read once, from a YAML or JSON file: deployment names, each with `wait` and `actions`. The actions are the vendor's
(webhooks/actions/*), of which those are taken that record what was done: a tag, and custom fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from attachments.emailgistics import Action

LONGEST_WAIT = 95.0  # seconds; Emailgistics gives an attempt 100 (webhooks/delivery)

_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_FieldValue = Annotated[str, StringConstraints(max_length=100)]  # webhooks/actions/set-custom-fields
_Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT)]


class InvalidResponses(Exception):
    """The file cannot be used; the text says what to change."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Tags(_Strict):
    tags: Annotated[list[_Name], Field(min_length=1)]


class _Tag(_Strict):
    type: Literal["tag"]
    value: _Tags
    name: _Name | None = None


class _SetCustomFields(_Strict):
    type: Literal["setCustomFields"]
    value: Annotated[dict[_Name, _FieldValue], Field(min_length=1)]
    name: _Name | None = None


class _Entry(_Strict):
    wait: _Wait | None = None
    actions: list[Annotated[_Tag | _SetCustomFields, Field(discriminator="type")]] = []


_file: TypeAdapter[dict[_Name, _Entry]] = TypeAdapter(dict[_Name, _Entry])


@dataclass(frozen=True)
class WebhookResponse:
    """For one deployment: seconds to hold the answer until the run has ended (0: not at all), and the actions."""

    wait: float = 0.0
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True)
class WebhookResponses:
    """For all deployments. Those that the file does not name wait for `wait` seconds and ask for nothing."""

    wait: float = 0.0
    named: Mapping[str, WebhookResponse] | None = None

    def of(self, deployment: str) -> WebhookResponse:
        """What is answered for this deployment."""
        return (self.named or {}).get(deployment) or WebhookResponse(self.wait)


def load_responses(path: Path | None, wait: float) -> WebhookResponses:
    """The answers of a file; without one, `wait` is all. Raises `InvalidResponses`."""
    if path is None:
        return WebhookResponses(wait)
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InvalidResponses(f"The file {path} cannot be read: {reason}.") from None
    except yaml.YAMLError:
        raise InvalidResponses(f"The file {path} is neither YAML nor JSON.") from None
    try:
        entries = _file.validate_python({} if document is None else document)
    except ValidationError as error:
        raise InvalidResponses(f"The file {path}: {'; '.join(map(_said, error.errors()))}.") from None
    return WebhookResponses(wait, {name: _answer(entry, wait) for name, entry in entries.items()})


def _answer(entry: _Entry, wait: float) -> WebhookResponse:
    actions: list[Any] = [action.model_dump(exclude_none=True) for action in entry.actions]
    return WebhookResponse(wait if entry.wait is None else entry.wait, tuple(actions))


def _said(problem: Any) -> str:
    return f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {problem['msg']}"
