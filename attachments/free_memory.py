"""Memory that is free, back to the system.

glibc keeps a heap for each of many threads and hands back only what is free at a heap's end, so that a process of many
short threads grows although nothing of what it keeps does (docs/decisions.md has the figures).
"""

import ctypes


def give_back() -> bool:
    """Hand back the free memory of all of the process's heaps; False where the C library has no way to (musl, macOS).

    It takes some milliseconds, in which threads that allocate may wait. Source: malloc_trim(3).
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    trim(ctypes.c_size_t(0))
    return True
