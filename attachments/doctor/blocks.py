"""Checks that the blocks which the deployments name exist and can be read."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, ConfigDict, ValidationError

from attachments.doctor.findings import Finding, failed, ok
from attachments.prefect_api.url_path import path_part
from attachments.runs.block_problems import reasons

B = TypeVar("B", bound=Block)


class LoadedBlocks(BaseModel, Generic[B]):
    """The blocks of one kind, by name, and the findings about them."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    blocks: dict[str, B]
    findings: tuple[Finding, ...]


def load_blocks(kind: type[B], names: Sequence[str], client: SyncPrefectClient) -> LoadedBlocks[B]:
    """Load the blocks with these names; each one has a finding."""
    blocks: dict[str, B] = {}
    findings = []
    slug = kind.get_block_type_slug()
    for name in names:
        subject = f"{slug}/{name}"
        try:
            blocks[name] = kind.model_validate(client.read_block_document_by_name(path_part(name), slug).data)
            findings.append(ok("block", "It exists and can be read.", subject=subject))
        except ObjectNotFound:
            remedy = "Create it in the Prefect UI under Blocks; `attachments setup` creates the default one."
            findings.append(failed("block", "It does not exist.", remedy, subject=subject))
        except ValidationError as error:
            text = f"It cannot be used: {reasons(error)}."
            findings.append(failed("block", text, "Correct it in the Prefect UI under Blocks.", subject=subject))
    return LoadedBlocks(blocks=blocks, findings=tuple(findings))
