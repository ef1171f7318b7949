"""How runs of `download-attachments` are named and rejected, for every part that creates or reads them."""

import httpx
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from attachments.storage.keys import SHORT_KEY_LENGTH

FLOW = "download-attachments"
OF_FLOW = FlowFilter(name=FlowFilterName(any_=[FLOW]))
RUN_REFUSED_STATUSES = (httpx.codes.BAD_REQUEST, httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY)
"""Statuses with which Prefect refuses one run, while it accepts others."""


def run_name(message_key: str) -> str:
    """The name of a message's runs."""
    return message_key[:SHORT_KEY_LENGTH]
