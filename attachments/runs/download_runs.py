"""How runs of `download-attachments` are named and found, for every part that creates or reads them."""

import httpx
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterName

from attachments.storage.keys import SHORT_KEY_LENGTH

FLOW = "download-attachments"
OF_FLOW = FlowFilter(name=FlowFilterName(any_=[FLOW]))
MAX_RUNS_OF_MESSAGE = 20
"""The newest runs of a message that are read; it has nine automatic attempts."""
RUN_REFUSED_STATUSES = (httpx.codes.BAD_REQUEST, httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY)
"""Statuses with which Prefect refuses one run, while it accepts others."""


def run_name(message_key: str) -> str:
    """The name of a message's runs."""
    return message_key[:SHORT_KEY_LENGTH]


def of_message(message_key: str) -> FlowRunFilter:
    """Selects the runs of a message, and of others whose keys begin alike."""
    return FlowRunFilter(name=FlowRunFilterName(any_=[run_name(message_key)]))
