"""Responses with the documented error body (getting-started/errors)."""

from attachments.sandbox.answers import Headers

# One text for every reason, so that a mailbox outside the allowlist shows nothing.
NOT_FOUND = "The resource does not exist, has expired, or is not available to this API key."


class RefusedError(Exception):
    """A call that is refused, with this status."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
