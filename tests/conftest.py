"""What holds for all tests."""

import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from attachments.foundation import loopback
from tests.stand_ins import FOLDERS, ROOT

# Where either is set, pytest shows the whole difference of two values that are compared. Of two contents of 10 MB, as
# they are compared here, that takes hours.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)

# What outlives a test that has set the address of its own Prefect, such as the return of slots, would else start a
# temporary server for itself, which nobody ends.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"

# A script's `&` and nohup start processes that ignore Ctrl-C, and so would the commands that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_proxy_settings() -> Iterator[None]:
    """A command that is tried in the tests' own process adds this machine to its `NO_PROXY`, for good."""
    kept = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    yield
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    loopback._added.clear()


@pytest.fixture(autouse=True)
def no_warnings_of_earlier_tests() -> Iterator[None]:
    """A lease pool of an earlier test keeps its slots, and warns that their Prefect is gone, for up to a minute."""
    pools = {thread.ident for thread in threading.enumerate() if thread.name == "lease-pool"}
    logger = logging.getLogger("attachments.rate_limit")

    def is_current(record: logging.LogRecord) -> bool:
        return record.thread not in pools

    logger.addFilter(is_current)
    yield
    logger.removeFilter(is_current)


LONGEST_ID = 100
"""Characters of a value that stands in a test's name. The name is put into the environment, which takes 128 KiB."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A name for what is too long to be its own; pytest itself numbers those that are alike."""
    return f"{argname} of {len(val)}" if isinstance(val, bytes | str) and len(val) > LONGEST_ID else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the stand-ins, before `-m` selects tests."""
    for item in items:
        if item.path.relative_to(ROOT).as_posix().startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            item.add_marker("stand_in")
