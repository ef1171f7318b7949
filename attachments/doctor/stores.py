"""The stores: whether they take, hand back and let go of something small."""

from attachments.blocks import AttachmentStore
from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.foundation.numerals import counted
from attachments.storage import StoreError


def look_at_store(block: AttachmentStore, subject: str) -> Finding:
    """Whether it can be written and read, which leaves nothing behind, and whether it encrypts."""
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
                f"{store.url} can be written and read, but nothing can be removed: what dead writers leave stays. "
                f"{encryption}",
                "Grant us to delete, for `attachments verify --clean` and retention.",
                subject=subject,
            )
        case "not made yet":
            return warning(
                "store",
                f"{store.url} does not exist on this machine; the first run makes it. {encryption}",
                "If it should be there, mount it before a worker starts.",
                subject=subject,
            )


def _encryption(block: AttachmentStore) -> str:
    if not block.age_recipients:
        return "Attachments are stored without encryption of ours."
    return f"Attachments are encrypted to {counted(len(block.age_recipients), 'age recipient')}."


def _without_recipients(url: str, subject: str, *, is_allowed: bool) -> Finding:
    """A store that has encrypted before, and whose block has no recipients now."""
    if is_allowed:
        return warning(
            "store",
            f"{url} has encrypted attachments before, and stores them unencrypted now, as its block allows.",
            "If that is not meant, put the age recipients back into the block and switch Allow plaintext off.",
            subject=subject,
        )
    return failed(
        "store",
        f"{url} has encrypted attachments before, and its block has no age recipients now: it stores nothing.",
        "Put the recipients back into the block. To store unencrypted on purpose, switch on its field Allow plaintext.",
        subject=subject,
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".removesuffix(".") + "."
