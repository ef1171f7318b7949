"""How a store encrypts: by the service that holds it, or before anything leaves this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

S3Encryption = Literal["SSE-S3", "SSE-KMS"]


@dataclass(frozen=True)
class Encryption:
    """What is asked for beyond the service's own default. Each backend refuses what it cannot do."""

    s3: S3Encryption | None = None
    """Server-side encryption of S3."""
    kms_key: str | None = None
    """The key: of SSE-KMS an id or ARN; of Google Cloud Storage its resource name."""
    azure_scope: str | None = None
    """The encryption scope of Azure Blob Storage."""
    age_recipients: tuple[str, ...] = ()
    """Public keys to which every attachment is encrypted by us, with age."""
    allow_plaintext: bool = False
    """Store unencrypted although the store has encrypted before; of no effect with recipients."""

    @property
    def needs_service(self) -> str | None:
        """The first thing asked for that only a service can do, in words; None when there is none."""
        asked = {
            f"S3's {self.s3}": self.s3,
            "a KMS key": self.kms_key,
            "an Azure encryption scope": self.azure_scope,
        }
        return next((words for words, value in asked.items() if value), None)
