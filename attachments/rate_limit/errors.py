"""What keeps a call from being made."""


class PacingError(Exception):
    """The vendor must not be called, because nothing would keep the calls below its cap."""
