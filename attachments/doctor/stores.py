"""The stores: whether they take, hand back and let go of something small."""

from attachments.blocks import AttachmentStore
from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.storage import StoreError


def look_at_store(block: AttachmentStore, subject: str) -> Finding:
    """Whether it can be written and read, which leaves nothing behind."""
    try:
        store = block.store()
        found = store.probe()
    except StoreError as error:
        happened, _, remedy = str(error).partition(": ")
        return failed("store", f"{_capital(happened)}.", f"{_capital(remedy or 'Look at the store')}.", subject=subject)
    match found:
        case "works":
            return ok("store", f"{store.url} can be written and read.", subject=subject)
        case "kept":
            return warning(
                "store",
                f"{store.url} can be written and read, but nothing can be removed: what dead writers leave stays.",
                "Grant us to delete, for `attachments verify --clean` and retention.",
                subject=subject,
            )
        case "not made yet":
            return warning(
                "store",
                f"{store.url} does not exist on this machine; the first run makes it.",
                "If it should be there, mount it before a worker starts.",
                subject=subject,
            )


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".removesuffix(".")
