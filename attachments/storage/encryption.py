"""A store's encryption settings: by the service, or with age before data leaves this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

S3Encryption = Literal["SSE-S3", "SSE-KMS"]
RECHECK_INTERVAL = 60.0


@dataclass(frozen=True)
class Encryption:
    """Encryption beyond the service's own default. Each backend refuses what it does not support."""

    s3: S3Encryption | None = None
    """Server-side encryption of S3."""
    kms_key: str | None = None
    """The key: of SSE-KMS an id or ARN; of Google Cloud Storage its resource name."""
    azure_scope: str | None = None
    """The encryption scope of Azure Blob Storage."""
    age_recipients: tuple[str, ...] = ()
    """Public keys to which this project encrypts every attachment, with age."""
    allow_plaintext: bool = False
    """Store unencrypted although the store has encrypted before; of no effect with recipients."""
    recheck_interval: float = RECHECK_INTERVAL
    """Seconds after which a writer checks again whether the store has encrypted. Local stores check each time."""

    @property
    def needs_service(self) -> str | None:
        """The first setting that only a service supports, in words; None if there is none."""
        service_settings = {
            f"S3's {self.s3}": self.s3,
            "a KMS key": self.kms_key,
            "an Azure encryption scope": self.azure_scope,
        }
        return next((words for words, value in service_settings.items() if value), None)
