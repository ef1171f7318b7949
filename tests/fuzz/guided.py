"""The process that libFuzzer runs in: `python -m tests.fuzz.guided READER CORPUS [-option…]`."""

import sys
from importlib import import_module

import atheris

MODULES = [
    "attachments",
    "aiohttp.multipart",
    "email",
    "starlette",
    "gzip",
    "csv",
    "s3fs",
    "adlfs",
    "gcsfs",
    "fsspec",
]


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    name, *arguments = sys.argv[1:]
    # What has been imported already is not instrumented: the mail's parser is read anew.
    for module in [known for known in sys.modules if known.partition(".")[0] in ("email", "attachments", "csv")]:
        del sys.modules[module]
    with atheris.instrument_imports(include=MODULES):
        readers = import_module("tests.fuzz.readers")
    check = readers.READERS[name].check

    def attempt(data: bytes) -> None:
        check(data)

    atheris.Setup([sys.argv[0], *arguments], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
