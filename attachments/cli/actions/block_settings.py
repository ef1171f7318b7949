"""The two blocks that `attachments setup` makes from the environment and saves in Prefect."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr, ValidationError

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli.actions.schedule import ReportResult
from attachments.cli.command_boundary import CommandFailed
from attachments.foundation.numerals import counted
from attachments.runs.block_problems import reasons
from attachments.storage import StoreError
from attachments.storage.recipients import parse_recipients, split

RECIPIENTS = "ATTACHMENTS_AGE_RECIPIENTS"
B = TypeVar("B", bound=Block)


def account_block(environment: Mapping[str, str], existing: EmailgisticsAccount | None) -> EmailgisticsAccount:
    """The block with the values of the environment, which default to those of the existing block."""
    key = environment.get("EMAILGISTICS_API_KEY", "").strip()
    base_url = environment.get("EMAILGISTICS_BASE_URL", "").strip()
    if not key and existing is None:
        raise CommandFailed(
            "EMAILGISTICS_API_KEY is not set. Create a key with the scopes messages:read and messages:content in "
            "Emailgistics Admin, and set the variable to it."
        )
    values: dict[str, Any] = existing.model_dump(exclude={"block_type_slug"}) if existing else {}
    if key:
        values["api_key"] = SecretStr(key)
    if base_url:
        values["base_url"] = base_url
    return _make_block(EmailgisticsAccount, values, "EMAILGISTICS_API_KEY and EMAILGISTICS_BASE_URL")


def store_block(environment: Mapping[str, str], existing: AttachmentStore | None) -> AttachmentStore:
    """The block with the values of the environment, which default to those of the existing block."""
    url = environment.get("ATTACHMENTS_URL", "").strip()
    options = environment.get("ATTACHMENTS_STORAGE_OPTIONS", "").strip()
    if not url and existing is None:
        raise CommandFailed(
            "ATTACHMENTS_URL is not set. Set it to the folder for the files, such as file:///srv/attachments."
        )
    values: dict[str, Any] = existing.model_dump(exclude={"block_type_slug"}) if existing else {}
    if url:
        values["url"] = url
    if existing and url and url.partition(":")[0] != existing.url.partition(":")[0]:
        values["options"] = {}  # options of another kind of store do not apply
    if options:
        try:
            values["options"] = json.loads(options)
        except (ValueError, RecursionError):
            raise CommandFailed(
                'ATTACHMENTS_STORAGE_OPTIONS is not JSON. Write an object: {"option": "value"}.'
            ) from None
    if RECIPIENTS in environment:
        values["age_recipients"] = _recipients(environment[RECIPIENTS])
    return _make_block(AttachmentStore, values, f"ATTACHMENTS_URL, ATTACHMENTS_STORAGE_OPTIONS and {RECIPIENTS}")


def _recipients(text: str) -> list[str]:
    """The recipients in the variable. Empty is an error, so that a lost value does not end the encryption."""
    found = split(text)
    if not found:
        raise CommandFailed(
            f"{RECIPIENTS} is set but empty. Set it to the public keys, separated by commas or line breaks; or remove "
            "the variable to keep the block's age recipients."
        )
    try:
        parse_recipients(found)
    except StoreError as error:
        raise CommandFailed(f"{RECIPIENTS}: {error}.") from None
    return found


def _make_block(block: type[B], values: dict[str, Any], variables: str) -> B:
    try:
        return block(**values)
    except ValidationError as error:
        raise CommandFailed(f"{variables}: {reasons(error)}") from None


async def existing_block(block: type[B], client: PrefectClient) -> B | None:
    """The existing default block; None if there is none."""
    slug = block.get_block_type_slug()
    try:
        document = await client.read_block_document_by_name("default", slug)
    except ObjectNotFound:
        return None
    try:
        return block.model_validate(document.data)
    except ValidationError as error:
        raise CommandFailed(
            f"The block {slug}/default cannot be used: {reasons(error)}. Correct or delete it in the Prefect UI under "
            "Blocks, then run this again."
        ) from None


async def save_block(block: Block, name: str, client: PrefectClient, tell: ReportResult) -> None:
    """Save the block unless Prefect has the same one, and report which of the two."""
    # Update the block's schema, which the UI shows, even if no value has changed.
    await type(block).aregister_type_and_schema(client=client)
    existing = await existing_block(type(block), client)
    subject = f"block {block.get_block_type_slug()}/{name}{describe_location(block)}"
    if existing is not None and _dump_with_secrets(existing) == _dump_with_secrets(block):
        tell("unchanged", subject)
        return
    await block.asave(name, overwrite=True, client=client)
    tell("updated" if existing else "created", f"{subject}, from the environment")
    if (
        isinstance(block, AttachmentStore)
        and isinstance(existing, AttachmentStore)
        and (removed := describe_removed_recipients(existing, block))
    ):
        tell("REMOVED", removed)


def describe_location(block: Block) -> str:
    """A store's location, as its URL was parsed, and its number of age recipients; empty for an account."""
    if not isinstance(block, AttachmentStore):
        return ""
    recipients = counted(len(block.age_recipients), "age recipient")
    return f": {block.store().url}" + (f", encrypted to {recipients}" if block.age_recipients else "")


def describe_removed_recipients(before: AttachmentStore, after: AttachmentStore) -> str | None:
    """The consequence of removing recipients: their owners cannot decrypt new attachments. None if none is removed."""
    removed = {text.strip() for text in before.age_recipients} - {text.strip() for text in after.age_recipients}
    if not removed:
        return None
    were = counted(len(removed), "age recipient of the block was", "age recipients of the block were")
    return (
        f"{were} not listed in {RECIPIENTS}: attachments stored from now on cannot be decrypted with their keys. "
        "To keep them, add them there and run this again."
    )


def _dump_with_secrets(block: Block) -> dict[str, Any]:
    return block.model_dump(mode="json", context={"include_secrets": True}, exclude={"block_type_slug"})
