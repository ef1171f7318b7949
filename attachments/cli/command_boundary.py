"""Around every command: Ctrl-C, a reader that has left, and errors that nobody foresaw. No traceback gets out."""

import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlsplit

from attachments.foundation.loopback import bypass_proxies
from attachments.foundation.terminal_text import say

if TYPE_CHECKING:
    from pydantic import ValidationError

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + 13
"""As a process that SIGPIPE has ended."""
FRAMES = 3
"""Places of a traceback that are named."""


class CommandFailed(Exception):
    """The command cannot go on; the text says why, and what to do. Each argument is a line."""


def run_command(command: Callable[[], int], *, finishes: bool) -> int:
    """Run a command and return its exit status: 130 after Ctrl-C, 141 when nobody reads its output any more.

    With `finishes`, a command goes on although its output cannot be written, because it changes something: silently
    where its reader has left (`| head -1`), and to fail in the end where the disk is full.
    """
    with _output(finishes=finishes) as failures:
        try:
            status = command()
            sys.stdout.flush()
            if failures:
                return _fail(failures[0])
        except KeyboardInterrupt:
            # The next one ends the process at once, whatever it still waits for.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            return INTERRUPTED
        except _ReaderGone:
            return UNREAD
        except CommandFailed as error:
            return _fail(*error.args)
        except Exception as error:  # noqa: BLE001  the process's outermost handler
            return _fail(
                f"The command met an error of its own ({type(error).__name__} at {_places(error.__traceback__)}). "
                "Please report this line."
            )
        return status


class _ReaderGone(Exception):
    """Nobody reads what is written. No OSError: a command that writes files would take it for one of these."""


class _Pipe(io.FileIO):
    """A descriptor whose reader may leave. What is written afterwards goes nowhere.

    With `failures`, nothing is raised, and another reason than a reader who has left is put there, as a sentence.
    """

    def __init__(self, descriptor: int, failures: list[str] | None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._failures = failures
        self._is_unread = False

    def write(self, data: object) -> int:
        if self._is_unread:
            return len(memoryview(data))  # type: ignore[arg-type]  # bytes-like, as for FileIO
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self._is_unread = True
            said = f"The output cannot be written ({error.strerror})."
            if self._failures is None:
                raise (_ReaderGone if isinstance(error, BrokenPipeError) else CommandFailed(said)) from None
            if not isinstance(error, BrokenPipeError):
                self._failures.append(f"{said} The command did its work all the same.")
            return len(memoryview(data))  # type: ignore[arg-type]


@contextmanager
def _output(*, finishes: bool) -> Iterator[list[str]]:
    """Standard output and error that can show a file name in any script, and outlive their reader.

    Yields what has kept the output of a command that `finishes` from being written.
    """
    before = sys.stdout, sys.stderr
    failures: list[str] = []
    sys.stdout = _opened(sys.stdout, sys.__stdout__, failures if finishes else None)
    sys.stderr = _opened(sys.stderr, sys.__stderr__, [])
    try:
        yield failures
    finally:
        with suppress(_ReaderGone, CommandFailed):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _opened(stream: TextIO | None, original: TextIO | None, failures: list[str] | None) -> TextIO:
    if stream is None:  # closed, as by `>&-`
        return io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    if stream is not original:  # a test's
        return stream
    pipe = io.BufferedWriter(_Pipe(stream.fileno(), failures))
    return io.TextIOWrapper(pipe, stream.encoding, errors="backslashreplace", line_buffering=True)


def import_prefect() -> None:
    """Import what reads Prefect's settings: a wrong one makes that fail. Raises `CommandFailed`."""
    from pydantic import ValidationError  # takes a while, and not every command needs it

    from attachments.foundation.connection_settings import settings_problem

    said = io.StringIO()
    try:
        with redirect_stderr(said):  # it also prints a few lines, with the value in them
            import prefect.context  # noqa: F401  takes seconds
            from prefect.settings import PREFECT_API_URL

            bypass_proxies(PREFECT_API_URL.value() or "")
    except ValidationError as error:
        raise CommandFailed(
            f"{_setting(error)} is not valid. Correct it in the environment, in Prefect's profile or in prefect.toml."
        ) from None
    except Exception as error:  # noqa: BLE001  whatever a profile or a file of settings makes of it
        raise CommandFailed(
            " ".join(settings_problem() or ())
            or f"Prefect cannot be loaded as it is set up ({type(error).__name__}). Check the variables that begin "
            "with PREFECT_, Prefect's profiles and prefect.toml."
        ) from None
    if "Traceback" not in said.getvalue():  # what it cannot load does not matter, or fails where it is used
        say(*said.getvalue().splitlines(), is_error=True)


def _setting(error: "ValidationError") -> str:
    """The name of the setting that Prefect does not accept; never its value, which may be a secret."""
    try:
        _ = urlsplit(os.environ.get("PREFECT_API_URL", "")).port
    except ValueError:
        return "PREFECT_API_URL (it looks like http://127.0.0.1:4200/api)"
    group = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", error.title.removesuffix("Settings"))
    where = next((detail["loc"] for detail in error.errors(include_input=False) if detail["loc"]), ())
    parts = [part for part in (group, *map(str, where)) if part]
    return "_".join(["PREFECT", *parts]).upper() if parts else "One of Prefect's settings"


def _places(found: TracebackType | None) -> str:
    """Where an error struck, the innermost place first. Not its text, which may quote a customer's data."""
    frames = traceback.extract_tb(found)[-FRAMES:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def _fail(*lines: str) -> int:
    say(*lines, is_error=True)
    return FAILED
