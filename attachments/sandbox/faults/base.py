"""The base classes of faults."""

from typing import ClassVar

from attachments.sandbox.fields import Document


class CountedFault(Document):
    """A fault of the vendor itself: the rate limit has counted the call. `apply` changes the planned answer."""

    counted: ClassVar[bool] = True


class UncountableFault(Document):
    """A fault that, unless `counted`, represents a proxy in front of the vendor, so the call does not count."""

    counted: bool = True
