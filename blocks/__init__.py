"""What a user configures in the Prefect UI: config and nothing else."""

from blocks.attachment_store import AttachmentStore
from blocks.emailgistics_account import EmailgisticsAccount

__all__ = ["AttachmentStore", "EmailgisticsAccount"]
