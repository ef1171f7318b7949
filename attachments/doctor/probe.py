"""Asking what may not answer: every question is bounded in time, and Prefect's errors become sentences."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from attachments.foundation.connection_settings import settings_problem
from attachments.foundation.timed_call import PATIENCE, NoResponse, TimedCall, call_with_timeout
from attachments.prefect_api.prefect_retry import own_client

__all__ = [
    "PATIENCE",
    "PREFECT_ERRORS",
    "NoResponse",
    "TimedCall",
    "asked",
    "call_with_timeout",
    "describe_error",
    "is_unknown",
    "prefect",
]

# What Prefect's client raises when it is away, and when something else answers at its address.
PREFECT_ERRORS = (
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,  # the environment names certificates that cannot be read
    ImportError,  # the environment names a SOCKS proxy, and httpx lacks its package; or a module is shadowed
    ObjectNotFound,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)

ELSEWHERE = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
"""What other paths of Prefect's server than its API answer, and other servers."""
CORRECT_URL = "Correct it: a server's ends with /api, such as http://127.0.0.1:4200/api."


@contextmanager
def prefect(seconds: float = PATIENCE) -> Iterator[SyncPrefectClient]:
    """A client of Prefect's own that says soon when Prefect is away. Safe to share between threads.

    `PREFECT_API_URL` has to be set: without one Prefect would start a server of its own.
    """
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), own_client(seconds) as client:
        yield client


def asked(client: SyncPrefectClient, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON of an answer of Prefect's API, of what its client has no method for. Raises `PREFECT_ERRORS`."""
    # Prefect's server resets a connection on which it has answered 500, and the next request would fail with it.
    alone = {"Connection": "close"}
    return client.request(cast("Any", method), cast("Any", path), json=body, headers=alone).raise_for_status().json()


def is_unknown(error: httpx.HTTPStatusError) -> bool:
    """Whether Prefect knows no such thing; its client has an error of its own for that only here and there."""
    return error.response.status_code == httpx.codes.NOT_FOUND


def is_not_importable(error: Exception) -> bool:
    """Whether Python did not find what it was to import, or found something else of the same name."""
    return isinstance(error, ImportError) or (isinstance(error, AttributeError) and isinstance(error.obj, ModuleType))


def _module_lacking(error: Exception) -> str | None:
    """The module that lacks what it was asked for."""
    module = error.obj if isinstance(error, AttributeError) else None
    return module.__name__ if isinstance(module, ModuleType) else None


def not_importable(error: Exception) -> tuple[str, str]:
    """What could not be imported, and what to do. Its own text may hold a path."""
    name = _module_lacking(error) or getattr(error, "name", None)
    if name is None:  # httpx's own error
        return (
            "The proxy that the environment names for Prefect's server needs a package that is not installed.",
            "Name an HTTP proxy instead, unset ALL_PROXY, or install `httpx[socks]`.",
        )
    return (
        f"Python cannot import the module {name} as it was installed ({type(error).__name__}).",
        (
            "Run this from another folder, and look at PYTHONPATH: a file or folder there may have the name of an "
            "installed package. If it persists, install this project again."
        ),
    )


def describe_error(error: Exception) -> tuple[str, str]:
    """What is wrong with Prefect, and what to do: never the error's own text, which may hold an address."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return (
            f"Prefect refuses us ({status}).",
            "Compare PREFECT_API_KEY or PREFECT_API_AUTH_STRING with the server's.",
        )
    if status is not None and status not in ELSEWHERE:
        return f"Prefect's API answers {status}.", "Look at the log of the Prefect server."
    if isinstance(error, httpx.TransportError):
        return (
            f"Prefect does not answer ({type(error).__name__}).",
            "Start it (`prefect server start`), or correct PREFECT_API_URL.",
        )
    if problem := settings_problem():
        return problem
    return _not_to_be_asked(error, status)


def _not_to_be_asked(error: Exception, status: int | None) -> tuple[str, str]:
    """What is wrong on this machine, or with the answer, when neither Prefect nor the network says so."""
    if is_not_importable(error):
        return not_importable(error)
    if isinstance(error, httpx.InvalidURL):
        return "PREFECT_API_URL is no address.", CORRECT_URL
    if isinstance(error, OSError):
        return (
            f"A file or folder that Prefect's client needs cannot be used ({type(error).__name__}).",
            "Check that the home folder, and PREFECT_HOME if it is set, can be read and written.",
        )
    return f"What answers at PREFECT_API_URL is not Prefect's API ({status or type(error).__name__}).", CORRECT_URL
