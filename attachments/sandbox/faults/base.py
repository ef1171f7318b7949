"""What all faults have in common."""

from typing import ClassVar

from attachments.sandbox.fields import Document


class CountedFault(Document):
    """A fault of the vendor itself: the rate limit has counted the call. `apply` changes the planned answer."""

    counted: ClassVar[bool] = True


class UncountableFault(Document):
    """A fault that, when it is not `counted`, stands for a proxy in front of the vendor: no call is counted."""

    counted: bool = True
