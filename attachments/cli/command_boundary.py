"""The boundary around every command: handles Ctrl-C, a closed pipe and unexpected errors without a traceback."""

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
BROKEN_PIPE = 128 + 13
"""The exit status of a process that SIGPIPE has ended."""
MAX_FRAMES = 3
"""Frames of a traceback that are named."""


class CommandFailed(Exception):
    """The command cannot continue; the text says why, and what to do. Each argument is a line."""


def run_command(command: Callable[[], int], *, finishes: bool) -> int:
    """Run a command and return its exit status: 130 after Ctrl-C, 141 if the reader of its output has closed it.

    With `finishes`, a command that changes something continues if its output cannot be written: silently if the reader
    has closed it (`| head -1`), and with status 1 at the end if the disk is full.
    """
    with _output(finishes=finishes) as failures:
        try:
            status = command()
            sys.stdout.flush()
            if failures:
                return _fail(failures[0])
        except KeyboardInterrupt:
            # Another Ctrl-C ends the process at once.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            return INTERRUPTED
        except _BrokenPipe:
            return BROKEN_PIPE
        except CommandFailed as error:
            return _fail(*error.args)
        except Exception as error:  # noqa: BLE001  the process's outermost handler
            return _fail(
                f"Internal error in the command ({type(error).__name__} at {_location(error.__traceback__)}). Please "
                "report this line."
            )
        return status


class _BrokenPipe(Exception):
    """The reader of the output has closed it. Not an OSError, which commands that write files would catch."""


class _Pipe(io.FileIO):
    """An output descriptor whose reader may close it; later output is discarded.

    With `failures`, nothing is raised; any error other than a closed pipe is appended to it, as a sentence.
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
                raise (_BrokenPipe if isinstance(error, BrokenPipeError) else CommandFailed(said)) from None
            if not isinstance(error, BrokenPipeError):
                self._failures.append(f"{said} The command completed its work nevertheless.")
            return len(memoryview(data))  # type: ignore[arg-type]


@contextmanager
def _output(*, finishes: bool) -> Iterator[list[str]]:
    """Standard output and error that can print any file name, and survive a closed reader.

    Yields the errors that prevented a command that `finishes` from writing its output.
    """
    before = sys.stdout, sys.stderr
    failures: list[str] = []
    sys.stdout = _open_stream(sys.stdout, sys.__stdout__, failures if finishes else None)
    sys.stderr = _open_stream(sys.stderr, sys.__stderr__, [])
    try:
        yield failures
    finally:
        with suppress(_BrokenPipe, CommandFailed):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _open_stream(stream: TextIO | None, original: TextIO | None, failures: list[str] | None) -> TextIO:
    if stream is None:  # closed, for example by `>&-`
        return io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    if stream is not original:  # replaced by a test
        return stream
    pipe = io.BufferedWriter(_Pipe(stream.fileno(), failures))
    return io.TextIOWrapper(pipe, stream.encoding, errors="backslashreplace", line_buffering=True)


def import_prefect() -> None:
    """Import Prefect, which fails if one of its settings is wrong. Raises `CommandFailed`."""
    from pydantic import ValidationError  # slow, and not every command needs it

    from attachments.foundation.connection_settings import settings_problem

    said = io.StringIO()
    try:
        with redirect_stderr(said):  # it also prints lines that contain the value
            import prefect.context  # noqa: F401  takes seconds
            from prefect.settings import PREFECT_API_URL

            bypass_proxies(PREFECT_API_URL.value() or "")
    except ValidationError as error:
        raise CommandFailed(
            f"{_setting(error)} is not valid. Correct it in the environment, in Prefect's profile or in prefect.toml."
        ) from None
    except Exception as error:  # noqa: BLE001  profiles and settings files can cause any error
        raise CommandFailed(
            " ".join(settings_problem() or ())
            or f"Prefect cannot be loaded with its settings ({type(error).__name__}). Check the variables that begin "
            "with PREFECT_, Prefect's profiles and prefect.toml."
        ) from None
    if "Traceback" not in said.getvalue():  # what it cannot load is not needed, or fails where it is used
        say(*said.getvalue().splitlines(), is_error=True)


def _setting(error: "ValidationError") -> str:
    """The name of the setting that Prefect rejects, without its value, which may be a secret."""
    try:
        _ = urlsplit(os.environ.get("PREFECT_API_URL", "")).port
    except ValueError:
        return "PREFECT_API_URL (it looks like http://127.0.0.1:4200/api)"
    group = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", error.title.removesuffix("Settings"))
    where = next((detail["loc"] for detail in error.errors(include_input=False) if detail["loc"]), ())
    parts = [part for part in (group, *map(str, where)) if part]
    return "_".join(["PREFECT", *parts]).upper() if parts else "One of Prefect's settings"


def _location(found: TracebackType | None) -> str:
    """The innermost frames of an error, without its text, which may quote customer data."""
    frames = traceback.extract_tb(found)[-MAX_FRAMES:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def _fail(*lines: str) -> int:
    say(*lines, is_error=True)
    return FAILED
