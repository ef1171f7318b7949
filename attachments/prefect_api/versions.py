"""The versions of Prefect that this product was tested with."""

LOCKED = "3.9.1"
"""The one that the lock files name."""
TESTED = (LOCKED,)
"""Those that the tests have passed on: `make test PREFECT=<version>`. README.md names the same."""
