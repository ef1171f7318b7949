"""`attachments sandbox`: the options are the sandbox's own, as for `python -m attachments.sandbox`."""

from attachments.sandbox.command import sandbox

__all__ = ["sandbox"]
