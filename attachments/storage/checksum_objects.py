"""Checksum objects beside large objects, for services that fix an object's metadata when its upload begins.

Its hash is not known by then. So the metadata name a checksum object,
`<root>/.proofs/<message_key>.<attachment_key>.<random>`, which holds what small objects have as metadata, and is
written before the object is finished.

Without it, a large encrypted object could not be recognised after a crash between its commit and the manifest:
encrypted again, the same attachment becomes other bytes, and the worker has no key to decrypt those in the store. The
run would fail for good because something else is stored under the attachment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from attachments.storage.backends.base import Backend, Orphan

PROOFS = ".proofs"
LARGEST = 64 * 1024
"""Bytes of a proof; ours have 300."""


def proof_path(path: str, proof: str) -> str:
    """Where the proof of an object is kept whose metadata name it."""
    place = path.rpartition("/")[0]
    return f"{PROOFS}/{place.replace('/', '.')}.{proof}"


def read_proof(backend: Backend, path: str, proof: str) -> Mapping[str, str]:
    """What is proven of an object; nothing when its proof is gone."""
    found = backend.get(proof_path(path, proof))
    return proven(found[0]) if found else {}


def proven(data: bytes) -> Mapping[str, str]:
    """What a proof says; nothing when it is damaged, or larger than any of ours."""
    try:
        checksums = json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError):
        return {}
    return (
        {name: text for name, text in checksums.items() if isinstance(text, str)} if isinstance(checksums, dict) else {}
    )


def orphaned_proofs(backend: Backend, named: Callable[[str], str | None]) -> Iterator[Orphan]:
    """Proofs that no object names: theirs were never finished, are gone, or came second.

    `named` tells the proof that the object under a path names.
    """
    for proof in backend.objects(f"{PROOFS}/"):
        *place, own = proof.path.rpartition("/")[2].split(".")
        key = "/".join(place)
        if all(named(found.path) != own for found in backend.objects(f"{key}/")):
            yield Orphan("proof without its object", key, proof.path, proof.modified)
