"""The process that libFuzzer runs in: `python -m tests.fuzz.guided READER CORPUS [-option…]`."""

import sys
from importlib import import_module

import atheris

MODULES = ["attachments", "email"]
"""Where coverage is measured. Whole frameworks take minutes to instrument."""


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    name, *arguments = sys.argv[1:]
    # Modules that are already imported would not be instrumented, so the mail parser is imported again.
    for module in [known for known in sys.modules if known.partition(".")[0] == "email"]:
        del sys.modules[module]
    with atheris.instrument_imports(include=MODULES):
        readers = import_module("tests.fuzz.readers")
        check = readers.READERS[name].check
        for data in readers.READERS[name].seeds():
            check(data)  # imports what is imported late: that takes longer than an input may

    def attempt(data: bytes) -> None:
        check(data)

    atheris.Setup([sys.argv[0], *arguments], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
