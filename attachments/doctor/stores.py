"""Checks that the stores can write, read and delete a small object."""

from attachments.blocks import AttachmentStore
from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.foundation.numerals import counted
from attachments.storage import StoreError


def check_store(block: AttachmentStore, subject: str) -> Finding:
    """Check that the store can be written and read, which leaves nothing behind, and whether it encrypts."""
    try:
        store = block.store()
        found = store.probe()
        has_encrypted = store.has_encrypted()
    except StoreError as error:
        return failed(
            "store", _sentence(error.happened), _sentence(error.remedy or "look at the store"), subject=subject
        )
    encryption = _encryption(block)
    if has_encrypted and not block.age_recipients:
        return _without_recipients(store.url, subject, is_allowed=block.allow_plaintext)
    match found:
        case "works":
            return ok("store", f"{store.url} can be written and read. {encryption}", subject=subject)
        case "kept":
            return warning(
                "store",
                f"{store.url} can be written and read, but nothing can be deleted: the leftovers of crashed writers "
                "stay. "
                f"{encryption}",
                "Grant permission to delete, for `attachments verify --clean` and retention.",
                subject=subject,
            )
        case "not made yet":
            return warning(
                "store",
                f"{store.url} does not exist on this machine; the first run creates it. {encryption}",
                "If it should be there, mount it before a worker starts.",
                subject=subject,
            )


def _encryption(block: AttachmentStore) -> str:
    if not block.age_recipients:
        return "Attachments are stored without age encryption."
    return f"Attachments are encrypted to {counted(len(block.age_recipients), 'age recipient')}."


def _without_recipients(url: str, subject: str, *, is_allowed: bool) -> Finding:
    """The finding for a store that has encrypted before, and whose block has no recipients now."""
    if is_allowed:
        return warning(
            "store",
            f"{url} has stored encrypted attachments before, and now stores them unencrypted, as its block allows.",
            "If that is not intended, put the age recipients back into the block and switch Allow plaintext off.",
            subject=subject,
        )
    return failed(
        "store",
        f"{url} has stored encrypted attachments before, and its block has no age recipients now, so it stores "
        "nothing.",
        "Put the recipients back into the block. To store unencrypted on purpose, switch on its field Allow plaintext.",
        subject=subject,
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".removesuffix(".") + "."
