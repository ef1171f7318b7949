"""What may be logged of a defect of ours."""

import traceback


def where(error: BaseException) -> str:
    """The kind of an unforeseen error and where it struck; not its text, which may quote a customer's data."""
    lines = [f"{type(error).__name__} at", *traceback.format_tb(error.__traceback__)]
    if isinstance(error, BaseExceptionGroup):
        lines += [where(inner) for inner in error.exceptions]
    return "\n".join(line.rstrip() for line in lines)
