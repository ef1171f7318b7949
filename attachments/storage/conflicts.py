"""Retries what another writer was faster at."""

import time
from collections.abc import Callable
from itertools import islice
from typing import TypeVar

from attachments.foundation.retry import back_off, retry
from attachments.storage.backends.base import Conflict

T = TypeVar("T")


def retry_conflicts(call: Callable[[], T], attempts: int) -> T:
    """The call's result, of up to so many attempts. Raises the last Conflict."""
    # A cancelled run still waits here, for a second at most each time: what it has done must be recorded.
    return retry(call, Conflict, islice(back_off(0.03, 0.6, 1.5), attempts - 1), sleep=time.sleep)
