"""All kinds of fault, by the name that a test orders them by."""

from typing import Annotated

from pydantic import Field

from attachments.sandbox.faults import content, transmission

Fault = Annotated[
    content.Status
    | content.Redirect
    | content.ChangedHeaders
    | content.ExtraFields
    | content.UnfinishedList
    | content.ContentEncoding
    | transmission.Delay
    | transmission.Slow
    | transmission.Stall
    | transmission.Drip
    | transmission.Cut
    | transmission.ChangedFraming
    | transmission.WrongLength
    | transmission.Drop,
    Field(discriminator="kind"),
]
"""Something that goes wrong with one answer."""
