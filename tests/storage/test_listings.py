"""What is remembered of a store's listings, and for how long."""

from __future__ import annotations

import pytest

from attachments.storage.listings import Listings, Names


def test_nothing_is_kept_of_a_listing_that_failed() -> None:
    """A store that is away for a day must not fill the memory with the messages that were asked for."""

    def failing(message_key: str) -> Names:
        raise OSError

    listings = Listings(failing)
    for number in range(10):
        with pytest.raises(OSError, match=r"^$"):
            listings.of(str(number))
    assert not listings._asking
