"""Loads the blocks that a run names."""

from typing import cast

from pydantic import ValidationError

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.blocks.problems import reasons
from attachments.flows.failures import NotConfigured, patiently
from attachments.prefect_path import path_part


def load_account(name: str) -> EmailgisticsAccount:
    """The Emailgistics Account block of that name. Raises `NotConfigured` when there is none that can be read."""
    try:
        return cast("EmailgisticsAccount", patiently(lambda: EmailgisticsAccount.load(path_part(name))))
    except ValidationError as error:
        raise NotConfigured(_unusable("emailgistics-account", name, error)) from None
    except ValueError:
        raise NotConfigured(_missing("emailgistics-account", name)) from None


def load_store(name: str) -> AttachmentStore:
    """The Attachment Store block of that name. Raises `NotConfigured` when there is none that can be read."""
    try:
        return cast("AttachmentStore", patiently(lambda: AttachmentStore.load(path_part(name))))
    except ValidationError as error:
        raise NotConfigured(_unusable("attachment-store", name, error)) from None
    except ValueError:
        raise NotConfigured(_missing("attachment-store", name)) from None


def _unusable(block_type: str, name: str, error: ValidationError) -> str:
    return f"The block {block_type}/{name} cannot be used: {reasons(error)}. Correct it in the Prefect UI under Blocks."


def _missing(block_type: str, name: str) -> str:
    return (
        f"There is no usable block {block_type}/{name}. Make it in the Prefect UI under Blocks, or let "
        "`attachments setup` make the default one."
    )
