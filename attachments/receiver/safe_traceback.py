"""The part of an unexpected error that may be logged."""

import traceback


def safe_traceback(error: BaseException) -> str:
    """The type of an unexpected error and its stack frames, without its text, which may quote customer data."""
    lines = [f"{type(error).__name__} at", *traceback.format_tb(error.__traceback__)]
    if isinstance(error, BaseExceptionGroup):
        lines += [safe_traceback(inner) for inner in error.exceptions]
    return "\n".join(line.rstrip() for line in lines)
