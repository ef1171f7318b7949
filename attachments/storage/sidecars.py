"""Proofs beside large objects, for services that fix an object's metadata when its upload begins.

Its hash is not known by then. So the metadata name a proof, `<root>/.proofs/<message_key>.<attachment_key>.<random>`,
which holds what small objects have as metadata, and is written before the object is finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast

from attachments.storage.backend import Backend, Residue

PROOFS = ".proofs"


def proof_path(path: str, proof: str) -> str:
    """Where the proof of an object is kept whose metadata name it."""
    place = path.rpartition("/")[0]
    return f"{PROOFS}/{place.replace('/', '.')}.{proof}"


def read_proof(backend: Backend, path: str, proof: str) -> Mapping[str, str]:
    """What is proven of an object; nothing when its proof is gone."""
    found = backend.load(proof_path(path, proof))
    return cast("dict[str, str]", json.loads(found[0])) if found else {}


def orphaned_proofs(backend: Backend) -> Iterator[Residue]:
    """Proofs whose objects were never finished, or are gone."""
    for proof in backend.objects(f"{PROOFS}/"):
        place = "/".join(proof.path.rpartition("/")[2].split(".")[:2])
        if not any(backend.objects(f"{place}/")):
            yield Residue("proof without its object", place, proof.path, proof.modified)
