"""What holds for all tests."""

import os

# Where either is set, pytest shows the whole difference of two values that are compared. Of two contents of 10 MB, as
# they are compared here, that takes hours.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)

# What outlives a test that has set the address of its own Prefect, such as the return of slots, would else start a
# temporary server for itself, which nobody ends.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"

LONGEST_ID = 100
"""Characters of a value that stands in a test's name. The name is put into the environment, which takes 128 KiB."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A name for what is too long to be its own; pytest itself numbers those that are alike."""
    return f"{argname} of {len(val)}" if isinstance(val, bytes | str) and len(val) > LONGEST_ID else None
