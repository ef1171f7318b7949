"""The blocks that users configure in the Prefect UI."""

from attachments.blocks.attachment_store import AttachmentStore
from attachments.blocks.emailgistics_account import EmailgisticsAccount

__all__ = ["AttachmentStore", "EmailgisticsAccount"]
