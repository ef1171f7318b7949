"""Loads the blocks that a run names."""

from typing import TypeVar, cast

from prefect.blocks.core import Block
from pydantic import ValidationError

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.foundation.terminal_text import shown_name
from attachments.prefect_api.url_path import path_part
from attachments.runs.block_problems import reasons
from attachments.runs.errors import NotConfigured, retry_until_available

B = TypeVar("B", bound=Block)


def load_account(name: str) -> EmailgisticsAccount:
    """The Emailgistics Account block of that name. Raises `NotConfigured` if it is missing or unreadable."""
    return _load(EmailgisticsAccount, "emailgistics-account", name)


def load_store(name: str) -> AttachmentStore:
    """The Attachment Store block of that name. Raises `NotConfigured` if it is missing or unreadable."""
    return _load(AttachmentStore, "attachment-store", name)


def _load(kind: type[B], block_type: str, name: str) -> B:
    try:
        return cast("B", retry_until_available(lambda: kind.load(path_part(name))))
    except RuntimeError as error:
        if isinstance(error.__cause__, ValidationError):  # the Prefect UI does not validate a block
            raise NotConfigured(_unusable(block_type, name, error.__cause__)) from None
        raise
    except ValueError:
        raise NotConfigured(_missing(block_type, name)) from None


def _unusable(block_type: str, name: str, error: ValidationError) -> str:
    return (
        f"The block {block_type}/{shown_name(name)} cannot be used: {reasons(error)}. Correct it in the Prefect UI "
        "under Blocks."
    )


def _missing(block_type: str, name: str) -> str:
    return (
        f"There is no block {block_type}/{shown_name(name)}. Create it in the Prefect "
        "UI under Blocks; `attachments setup` creates the default one."
    )
