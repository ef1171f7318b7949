"""Where attachments are kept: keys, safe names, atomic writes, manifests. Knows no Prefect and no vendor."""

from attachments.storage.encryption import Encryption
from attachments.storage.errors import StoreError
from attachments.storage.factory import open_store
from attachments.storage.keys import attachment_key, message_key
from attachments.storage.manifest import Manifest, ManifestAttachment
from attachments.storage.names import is_nameless, safe_name
from attachments.storage.store import Store, StoredObject

__all__ = [
    "Encryption",
    "Manifest",
    "ManifestAttachment",
    "Store",
    "StoreError",
    "StoredObject",
    "attachment_key",
    "is_nameless",
    "message_key",
    "open_store",
    "safe_name",
]
