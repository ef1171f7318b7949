"""The block of a store for attachments."""

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
        "The storage that mail attachments are written to. This project's "
        "docs/stores.md lists the requirements of each kind of storage."
    )
    _logo_url = logo()

    model_config = ConfigDict(hide_input_in_errors=True)  # the URL and options may contain credentials

    url: str = Field(
        default=...,
        title="URL",
        description=(
            "The root folder for all attachments, as a complete fsspec URL: file:///srv/attachments, "
            "s3://bucket/folder, "
            "abfs://container@account.dfs.core.windows.net/folder, gs://bucket/folder, sftp://host/folder."
        ),
    )
    options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        title="Options",
        description=(
            "Options of the storage's fsspec file system, as a JSON object. They may contain credentials; leave these "
            "out if the worker gets them from its environment, a profile or a role."
        ),
    )
    s3_encryption: S3Encryption | None = Field(
        default=None,
        title="S3 encryption",
        description="Server-side encryption of S3: SSE-S3 or SSE-KMS. If left out, the bucket's own setting applies.",
    )
    kms_key: str | None = Field(
        default=None,
        title="KMS key",
        description=(
            "The key that the service encrypts with: an id or ARN for SSE-KMS on S3, "
            "projects/…/cryptoKeys/… on Google Cloud Storage. If left out, the bucket's own key applies."
        ),
    )
    azure_encryption_scope: str | None = Field(
        default=None,
        title="Azure encryption scope",
        description="The encryption scope of Azure Blob Storage. If left out, the container's own scope applies.",
    )
    age_recipients: list[str] = Field(
        default_factory=list,
        title="age recipients",
        description=(
            "Public keys (age1…, ssh-ed25519 …, ssh-rsa …): attachments are encrypted to all of them before they leave "
            "the worker, in any store. Keep the private keys elsewhere; the command attachments decrypt needs one. "
            "File names and manifests are not encrypted. A store that has encrypted once refuses attachments if this "
            "is empty."
        ),
    )
    allow_plaintext: bool = Field(
        default=False,
        title="Allow plaintext",
        description=(
            "Store attachments unencrypted although this store has encrypted before. Switch it on only to end the "
            "encryption on purpose: otherwise, nothing is stored if the recipients are lost. It has no effect while "
            "there are age recipients."
        ),
    )

    @field_validator("s3_encryption", "kms_key", "azure_encryption_scope", mode="before")
    @classmethod
    def _blank_is_none(cls, value: object) -> object:
        """Treat the empty text that a form sends for an empty field as None."""
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("url")
    @classmethod
    def _url_is_supported(cls, value: str) -> str:
        """Normalize a folder of this machine to ``file:///…``, so that the form shows where it is."""
        value = value.strip()
        try:
            store = open_store(value)
        except StoreError as error:
            raise ValueError(str(error)) from None
        # The worker resolves a home folder.
        return store.url if store.url.startswith("file:") and "~" not in value else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Check that the URL's store supports the options and the encryption."""
        try:
            open_store(self.url, self.options.get_secret_value(), self._encryption())
        except StoreError as error:
            raise ValueError(str(error)) from None
        return self

    def store(self) -> Store:
        """The store: one for each process and configuration. Raises `StoreError` if it cannot be opened."""
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
