"""Requests to a Prefect server that may not respond: each has a timeout, and errors become sentences."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from attachments.foundation.connection_settings import settings_problem
from attachments.foundation.timed_call import RESPONSE_TIMEOUT, NoResponse, TimedCall, call_with_timeout
from attachments.prefect_api.prefect_retry import own_client

__all__ = [
    "PREFECT_ERRORS",
    "RESPONSE_TIMEOUT",
    "NoResponse",
    "TimedCall",
    "call_with_timeout",
    "describe_error",
    "is_unknown",
    "prefect_client",
    "request_json",
]

# What Prefect's client raises when the server is unavailable, or when something else responds at its address.
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

WRONG_PATH_STATUSES = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
"""Statuses of other paths on Prefect's server, and of other servers."""
CORRECT_URL = "Correct it: a server's ends with /api, such as http://127.0.0.1:4200/api."


@contextmanager
def prefect_client(seconds: float = RESPONSE_TIMEOUT) -> Iterator[SyncPrefectClient]:
    """A client of Prefect that fails fast when Prefect is unavailable. Threads may share it.

    `PREFECT_API_URL` must be set; otherwise Prefect would start a temporary server.
    """
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), own_client(seconds) as client:
        yield client


def request_json(client: SyncPrefectClient, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON response of Prefect's API to a request for which its client has no method. Raises `PREFECT_ERRORS`."""
    # Prefect's server resets a connection after a 500, and the next request on it would fail.
    alone = {"Connection": "close"}
    return client.request(cast("Any", method), cast("Any", path), json=body, headers=alone).raise_for_status().json()


def is_unknown(error: httpx.HTTPStatusError) -> bool:
    """Whether Prefect reports that the object does not exist; only some of its client's methods have an error for
    that."""
    return error.response.status_code == httpx.codes.NOT_FOUND


def is_not_importable(error: Exception) -> bool:
    """Whether Python failed to import a module, or imported another one of the same name."""
    return isinstance(error, ImportError) or (isinstance(error, AttributeError) and isinstance(error.obj, ModuleType))


def _incomplete_module(error: Exception) -> str | None:
    """The module that lacks the requested attribute."""
    module = error.obj if isinstance(error, AttributeError) else None
    return module.__name__ if isinstance(module, ModuleType) else None


def not_importable(error: Exception) -> tuple[str, str]:
    """What could not be imported, and what to do. Leaves out the error's own text, which may contain a path."""
    name = _incomplete_module(error) or getattr(error, "name", None)
    if name is None:  # httpx's own error
        return (
            "The proxy that the environment sets for Prefect's server needs a package that is not installed.",
            "Set an HTTP proxy instead, unset ALL_PROXY, or install `httpx[socks]`.",
        )
    return (
        f"Python cannot import the module {name} as it was installed ({type(error).__name__}).",
        (
            "Run this from another folder, and look at PYTHONPATH: a file or folder there may have the name of an "
            "installed package. If it persists, install this project again."
        ),
    )


def describe_error(error: Exception) -> tuple[str, str]:
    """What is wrong with Prefect, and what to do. Leaves out the error's own text, which may contain an address."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return (
            f"Prefect refuses the password or key ({status}).",
            "Compare PREFECT_API_KEY or PREFECT_API_AUTH_STRING with the server's.",
        )
    if status is not None and status not in WRONG_PATH_STATUSES:
        return f"Prefect's API responds {status}.", "Check the log of the Prefect server."
    if isinstance(error, httpx.TransportError):
        return (
            f"Prefect does not respond ({type(error).__name__}).",
            "Start it (`prefect server start`), or correct PREFECT_API_URL.",
        )
    if problem := settings_problem():
        return problem
    return _describe_local_problem(error, status)


def _describe_local_problem(error: Exception, status: int | None) -> tuple[str, str]:
    """What is wrong on this machine or with the response, if the error is neither Prefect's nor the network's."""
    if is_not_importable(error):
        return not_importable(error)
    if isinstance(error, httpx.InvalidURL):
        return "PREFECT_API_URL is not a valid URL.", CORRECT_URL
    if isinstance(error, OSError):
        return (
            f"A file or folder that Prefect's client needs cannot be used ({type(error).__name__}).",
            "Check that the home folder, and PREFECT_HOME if it is set, can be read and written.",
        )
    return f"PREFECT_API_URL is not the address of Prefect's API ({status or type(error).__name__}).", CORRECT_URL
