"""The JSON objects of the control API as models.

Unknown fields are rejected: a fault with a mistyped field would otherwise do nothing, and the test that relies on it
would pass for no reason.
"""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from pydantic_core import ErrorDetails

_HINTS = {
    "dict_type": "send a JSON object",
    "extra_forbidden": "there is no such field; leave it out",
    "is_instance_of": "send a text",
    "missing": "send this field",
    "model_type": "send a JSON object",
    "model_attributes_type": "send a JSON object",
    "union_tag_not_found": "send the field kind",
}
"""Where pydantic's own text would not say what to send, by its type of error."""


class BadFieldError(ValueError):
    """The JSON sent to the control API is not valid; the text says where and what to send."""


class Document(BaseModel):
    """One JSON object. `"3"` is not a number, and 1 is not true."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_D = TypeVar("_D", bound=Document)


def read(model: type[_D], document: object, what: str) -> _D:
    """The document as a model. Raises BadFieldError, which names each wrong field of `what`."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        mistakes = "; ".join(map(_mistake, error.errors(include_url=False, include_input=False)))
        raise BadFieldError(f"{what}: {mistakes}") from None


def _mistake(row: ErrorDetails) -> str:
    field, text = ".".join(map(str, row["loc"])), _HINTS.get(row["type"], row["msg"]).removeprefix("Value error, ")
    return f"{field}: {text}" if field else text


def _fits_header(text: str) -> str:
    """The text, if it can be a header value (RFC 9110, 5.5) without breaking out of its line; else ValueError."""
    if any(sign in text for sign in "\r\n\0"):
        raise ValueError("send a text without line breaks and NUL, because it goes into a header")
    return text


Text = InstanceOf[str]  # pydantic's `str` has no lone surrogates, and a hostile name has them
HeaderText = Annotated[Text, AfterValidator(_fits_header)]
Whole = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=0)]
