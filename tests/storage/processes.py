"""Other processes: forked, so that they start at once and can do whatever the test can say."""

from __future__ import annotations

import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NOBODY = 65534


def start(act: Callable[[], object]) -> int:
    """Does it in a process of its own, whose id is handed back. It ends with 0, or with 1 when it raised."""
    with warnings.catch_warnings():
        # Python 3.12 warns when another test has left a thread; the child uses nothing that such a thread holds.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Waits for it; its exit code, or minus the signal that killed it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@contextmanager
def running(act: Callable[[], object]) -> Iterator[int]:
    """Does it in a process of its own that does not outlive the test, should the test fail before it ends."""
    child = start(act)
    try:
        yield child
    except BaseException:
        os.kill(child, signal.SIGKILL)
        ended(child)
        raise


def answer(act: Callable[[], Any]) -> Any:
    """What it returns, or raises, in a process of its own; both are pickled on the way."""
    read, write = os.pipe()

    def tell() -> None:
        try:
            result: Any = act()
        except Exception as error:  # noqa: BLE001  # the parent looks at whatever it is
            result = error
        os.write(write, pickle.dumps(result))

    child = start(tell)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    assert ended(child) == 0
    return pickle.loads(told)


def without_rights(act: Callable[[], Any]) -> Callable[[], Any]:
    """The same, as a user who owns nothing, since rights do not bind root."""

    def dropped() -> Any:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return act()

    return dropped


def kill_me() -> None:
    """Ends this process as a power switch would."""
    os.kill(os.getpid(), signal.SIGKILL)
