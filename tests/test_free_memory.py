"""Free memory goes back to the system: seen from outside, as the operating system counts it."""

import ctypes
import platform
import subprocess
import sys

import pytest

from attachments.free_memory import give_back

HELD = """
import os
from attachments.free_memory import give_back

def size():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

many = [bytes(1000) for _ in range(100_000)]
kept = many[::1000]  # spread over the heap, so that its end is never free
del many
before = size()
given = give_back()
print(given, before - size())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps so much, and can give it back")
def test_what_is_free_between_what_is_kept_goes_back() -> None:
    """100 MB freed, with something kept in each: without being asked glibc gives back none of it."""
    told = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=60, check=True)
    given, mib = told.stdout.split()
    assert given == "True"
    assert int(mib) > 70


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such function: nothing happens, and nobody is told of an error."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert give_back() is False
