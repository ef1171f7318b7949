"""What a user configures in the Prefect UI: config and nothing else."""

from attachments.blocks.attachment_store import AttachmentStore
from attachments.blocks.emailgistics_account import EmailgisticsAccount

__all__ = ["AttachmentStore", "EmailgisticsAccount"]
