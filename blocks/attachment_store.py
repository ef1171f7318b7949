"""Where attachments are kept."""

import json
from functools import lru_cache
from typing import Any

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from attachments.storage import Store, StoreError, open_store


class AttachmentStore(Block):
    """The storage that attachments are written to.

    Example:
        ```python
        from blocks import AttachmentStore

        store = AttachmentStore.load("BLOCK_NAME").store()
        ```
    """

    _block_type_name = "Attachment Store"
    _block_type_slug = "attachment-store"
    _description = "The storage that mail attachments are written to."
    _documentation_url = "https://filesystem-spec.readthedocs.io"  # type: ignore[assignment]  # as Prefect's own blocks do

    model_config = ConfigDict(hide_input_in_errors=True)  # a URL and options may hold credentials

    url: str = Field(
        default=...,
        title="URL",
        description="The folder that holds everything, as an fsspec URL: file:///srv/attachments.",
    )
    options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        title="Options",
        description="Options of the storage's fsspec file system, as a JSON object. They may hold credentials.",
    )

    @field_validator("url")
    @classmethod
    def _url_is_supported(cls, value: str) -> str:
        try:
            open_store(value)
        except StoreError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("options")
    @classmethod
    def _options_fit(cls, value: SecretDict, info: ValidationInfo) -> SecretDict:
        if "url" in info.data:
            try:
                open_store(info.data["url"], value.get_secret_value())
            except StoreError as error:
                raise ValueError(str(error)) from None
        return value

    def store(self) -> Store:
        """The store: one a process and configuration. Raises `StoreError` when it cannot be opened."""
        options: dict[str, Any] = self.options.get_secret_value()
        return _store(self.url, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=32)
def _store(url: str, options: str) -> Store:
    return open_store(url, json.loads(options))
