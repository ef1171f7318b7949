"""Counts in sentences: 1 attachment, 2 attachments."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """The count and what is counted, such as `1,200 messages`; `many` is `one` with an s unless it is given."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
