"""What holds for all tests."""

import os

# Where either is set, pytest shows the whole difference of two values that are compared. Of two contents of 10 MB, as
# they are compared here, that takes hours.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)
