"""Times as other systems write them."""

from datetime import UTC, datetime

import pytest

from attachments.foundation.timestamps import parse_timestamp


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-01T09:00:00Z", datetime(2026, 11, 1, 9, tzinfo=UTC)),
        ("2026-11-01T09:00:00+01:00", datetime(2026, 11, 1, 8, tzinfo=UTC)),
        ("2026-11-01T09:00:00", datetime(2026, 11, 1, 9, tzinfo=UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("soon", None),
        ("", None),
        (None, None),
        (1_000_000_000, None),
        (datetime(2026, 11, 1, tzinfo=UTC), None),
    ],
)
def test_a_time_is_read_in_utc_or_not_at_all(value: object, expected: datetime | None) -> None:
    """A time without a zone is in UTC; what is not a text, or beyond the calendar, is None."""
    assert parse_timestamp(value) == expected
