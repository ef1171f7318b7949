"""The machine-readable record of a run's state, at the end of the state's message.

The rest of a message is for people; no program may depend on its wording. docs/decisions.md says why it is the message.
"""

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote

from prefect.client.schemas.objects import State
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FAILED_FOR_NOW = "FailedForNow"
"""The name of the state of a run that failed for a transient reason. Its type is Prefect's FAILED."""
CODE = r"^[a-z-]{1,40}$"
UNKNOWN = "unexpected"
"""The code of a failure whose state has none."""
WITHDRAWN = "withdrawn"
"""The code of a run that was cancelled with its parent run, and not because its message should not be fetched."""

_RECORD = re.compile(r"\[([^\[\]]*)\]\Z")
_SEPARATOR = ", "
_WITHDRAWN_BEFORE_RECORDS = "The run that had made this one was cancelled before it started."
"""The whole message of a withdrawn run in states that version 0.1 wrote. Without it, a reconciliation would treat such
a run as cancelled by a person, and would not fetch its message. Other texts of those states count as unknown."""

T = TypeVar("T")


class StateRecord(BaseModel):
    """Numbers, codes and names of workers, which every user who can see the run may see. Unset fields are not
    written."""

    model_config = ConfigDict(frozen=True)

    stored: int = 0
    """How many of the message's attachments are in the store."""
    code: str | None = Field(None, pattern=CODE)
    """Why the run failed or was cancelled."""
    next_attempt: int | None = None
    """The number of the scheduled next attempt."""
    worker: str | None = None
    """The worker that runs it."""


def write_record(state: State[T], record: StateRecord) -> State[T]:
    """The state with the record at the end of its message: ``[code=timeout, next_attempt=2]``."""
    values = record.model_dump(exclude_defaults=True).items()
    if not values:
        return state
    text = _SEPARATOR.join(f"{name}={quote(str(value), safe=' ')}" for name, value in values)
    return state.model_copy(update={"message": f"{state.message or ''} [{text}]".lstrip()})


def read_record(state: State[Any] | None) -> StateRecord:
    """The record of a state; an empty one if it is missing or not valid."""
    message = (state and state.message) or ""
    if message == _WITHDRAWN_BEFORE_RECORDS:
        return StateRecord(code=WITHDRAWN)
    found = _RECORD.search(message)
    try:
        return StateRecord.model_validate(dict(parse_qsl(found[1], separator=_SEPARATOR)) if found else {})
    except ValidationError:
        return StateRecord()
