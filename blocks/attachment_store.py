"""Where attachments are kept."""

import json
from functools import lru_cache
from typing import Any, Self

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, field_validator, model_validator

from attachments.prefect_api.logo import logo
from attachments.storage import Encryption, Store, StoreError, open_store
from attachments.storage.encryption import S3Encryption


class AttachmentStore(Block):
    """The storage that attachments are written to.

    Example:
        ```python
        from attachments.blocks import AttachmentStore

        store = AttachmentStore.load("BLOCK_NAME").store()
        ```
    """

    _block_type_name = "Attachment Store"
    _block_type_slug = "attachment-store"
    _description = (
        "The storage that mail attachments are written to. docs/stores.md of this project says what each kind of "
        "storage needs."
    )
    _logo_url = logo()

    model_config = ConfigDict(hide_input_in_errors=True)  # a URL and options may hold credentials

    url: str = Field(
        default=...,
        title="URL",
        description=(
            "The folder that holds everything, as a complete fsspec URL: file:///srv/attachments, s3://bucket/folder, "
            "abfs://container@account.dfs.core.windows.net/folder, gs://bucket/folder, sftp://host/folder."
        ),
    )
    options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        title="Options",
        description=(
            "Options of the storage's fsspec file system, as a JSON object. They may hold credentials; leave these out "
            "where the worker has them from its environment, a profile or a role."
        ),
    )
    s3_encryption: S3Encryption | None = Field(
        default=None,
        title="S3 encryption",
        description="Server-side encryption of S3: SSE-S3 or SSE-KMS. The bucket's own setting when left out.",
    )
    kms_key: str | None = Field(
        default=None,
        title="KMS key",
        description=(
            "The key that the service encrypts with: an id or ARN for SSE-KMS on S3, "
            "projects/…/cryptoKeys/… on Google Cloud Storage. The bucket's own when left out."
        ),
    )
    azure_encryption_scope: str | None = Field(
        default=None,
        title="Azure encryption scope",
        description="The encryption scope of Azure Blob Storage. The container's own when left out.",
    )
    age_recipients: list[str] = Field(
        default_factory=list,
        title="age recipients",
        description=(
            "Public keys (age1…, ssh-ed25519 …, ssh-rsa …): attachments are encrypted to all of them before they leave "
            "the worker, in any store. Keep the private keys elsewhere; the command attachments decrypt needs one. "
            "File names and manifests are not encrypted. A store that has encrypted once refuses attachments when this "
            "is empty."
        ),
    )
    allow_plaintext: bool = Field(
        default=False,
        title="Allow plaintext",
        description=(
            "Store attachments unencrypted although this store has encrypted before. Switch it on only to end the "
            "encryption on purpose: without it, recipients that got lost are noticed, and nothing is stored. Of no "
            "effect while there are age recipients."
        ),
    )

    @field_validator("s3_encryption", "kms_key", "azure_encryption_scope", mode="before")
    @classmethod
    def _blank_is_none(cls, value: object) -> object:
        """A form sends an empty text for a field that was emptied."""
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("url")
    @classmethod
    def _url_is_supported(cls, value: str) -> str:
        """As it is meant: a folder of this machine as ``file:///…``, so that the form shows where it is."""
        value = value.strip()
        try:
            store = open_store(value)
        except StoreError as error:
            raise ValueError(str(error)) from None
        # A home folder is for the worker to find.
        return store.url if store.url.startswith("file:") and "~" not in value else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """The options and the encryption are those of the URL's store."""
        try:
            open_store(self.url, self.options.get_secret_value(), self._encryption())
        except StoreError as error:
            raise ValueError(str(error)) from None
        return self

    def store(self) -> Store:
        """The store: one a process and configuration. Raises `StoreError` when it cannot be opened."""
        options: dict[str, Any] = self.options.get_secret_value()
        return _store(self.url, json.dumps(options, sort_keys=True), self._encryption())

    def _encryption(self) -> Encryption:
        return Encryption(
            s3=self.s3_encryption,
            kms_key=self.kms_key,
            azure_scope=self.azure_encryption_scope,
            age_recipients=tuple(recipient.strip() for recipient in self.age_recipients),
            allow_plaintext=self.allow_plaintext,
        )


@lru_cache(maxsize=32)
def _store(url: str, options: str, encryption: Encryption) -> Store:
    return open_store(url, json.loads(options), encryption)
