"""Texts that can be encoded."""


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined, and U+FFFD for each lone surrogate (JSON allows `"\\ud800"`)."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
