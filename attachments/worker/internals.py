"""Every name of Prefect's that this project uses without Prefect's promise: the private ones, and undocumented ones.

Only this module may use a private name of Prefect's; tests/test_private_names.py checks that. For each entry,
tests/worker/test_internals.py states what it has to do. `incompatibilities` is the cheap part of that: the worker calls
it when it starts, so that a Prefect that lacks one is named at once and not found out in the middle of a run.
"""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import prefect
from prefect.workers.base import BaseWorker


@dataclass(frozen=True)
class Internal:
    """One name, why it is used, and what else was tried."""

    name: str
    """Module and qualified name, with a colon between them."""
    parameters: tuple[str, ...] | None
    """Those that a call here relies on, in this order, after `self`; None for what is not called."""
    reason: str
    alternative: str
    """The documented way, and why it does not do."""
    issue: str
    """Where Prefect's project discusses the matter, or our report of it; "none" where no discussion was found."""


INTERNALS = (
    Internal(
        name="prefect.workers.base:BaseWorker._last_polled_time",
        parameters=None,
        reason="`prefect worker start --with-healthcheck` reports a worker as dead that has not set it lately.",
        alternative=(
            "Overriding the public `is_worker_still_polling`; it would lose the time that a maintenance of Prefect's "
            "API adds to the window, which is private as well."
        ),
        issue="https://github.com/PrefectHQ/prefect/pull/9687",
    ),
    Internal(
        name="prefect.workers.base:BaseWorker.get_and_submit_flow_runs",
        parameters=(),
        reason=(
            "The loop of a worker calls it to poll. Overridden: Prefect's own needs about seven more requests for each "
            "run, and one that fails ends the worker."
        ),
        alternative="Implementing `run` alone, as documented for workers; it is called after those requests.",
        issue="https://github.com/PrefectHQ/prefect/issues/21944",
    ),
    Internal(
        name="prefect.workers.base:BaseWorker.limiter",
        parameters=None,
        reason="The runs that the worker may start beside each other; `start(run_once=True)` waits for it.",
        alternative="A limiter of our own; `--run-once` would end before the runs do.",
        issue="none",
    ),
    Internal(
        name="prefect.workers.base:BaseWorker.sync_with_backend",
        parameters=(),
        reason="Overridden: a response that is not Prefect's must not end a worker that is set up.",
        alternative="None: the loop that calls it ends the worker after some failures.",
        issue="https://github.com/PrefectHQ/prefect/issues/19141",
    ),
    Internal(
        name="prefect.flow_engine:FlowRunEngine",
        parameters=("flow", "parameters", "flow_run"),
        reason=(
            "Overridden where it begins to observe suspensions: a thread, an event loop, a client and a websocket for "
            "each run of a deployment, which the run waits for. The worker polls for all its runs at once."
        ),
        alternative="`run_flow`, which makes the engine itself; no setting turns the observer off.",
        issue="https://github.com/PrefectHQ/prefect/pull/21875",
    ),
    Internal(
        name="prefect.flow_engine:FlowRunEngine.setup_flow_run_suspension_request",
        parameters=(),
        reason="The method that is overridden there. It yields the object whose `mark_requested` suspends the run.",
        alternative="As above.",
        issue="https://github.com/PrefectHQ/prefect/pull/21875",
    ),
    Internal(
        name="prefect.context:SyncClientContext",
        parameters=None,
        reason="Lends an open client to one run after the other: `get_client` and the engine take it from there.",
        alternative=(
            "`SyncClientContext(httpx_settings=...)`; `get_client()` without the same settings then makes a new client."
        ),
        issue="none",
    ),
    Internal(
        name="prefect.context:AsyncClientContext",
        parameters=None,
        reason="Gives the worker a client that retries soon, from its first request on.",
        alternative="None: `BaseWorker.setup` makes its client itself, with `get_client()`.",
        issue="https://github.com/PrefectHQ/prefect/pull/8950",
    ),
    Internal(
        name="prefect.client.orchestration:SyncPrefectClient.__enter__",
        parameters=(),
        reason="An open client may be entered again, and is closed when it has been left as often: runs share clients.",
        alternative="None.",
        issue="none",
    ),
    Internal(
        name="prefect.client.orchestration:SyncPrefectClient.set_flow_run_state",
        parameters=("flow_run_id", "state", "force"),
        reason="The engine sets each state through it: overridden, it writes the owner in the same request.",
        alternative="A request of our own beside it; a worker that dies in between leaves a run without an owner.",
        issue="none",
    ),
    Internal(
        name="prefect.events.worker:EventsWorker.set_client_override",
        parameters=("client_type",),
        reason="The number of events that are resent after a broken connection; a server on SQLite drops others.",
        alternative="None: `checkpoint_every` has no setting.",
        issue="docs/upstream/prefect-sqlite-events.md",
    ),
)


def incompatibilities(internals: Iterable[Internal] = INTERNALS) -> Iterator[str]:
    """A sentence for each internal that this Prefect does not have as expected."""
    for internal in internals:
        if problem := _problem(internal):
            yield f"Prefect {prefect.__version__}: {internal.name.replace(':', '.')} {problem}."


def _problem(internal: Internal) -> str | None:
    module, _, path = internal.name.partition(":")
    if internal.name.endswith("._last_polled_time"):  # an attribute of the object, set by its constructor
        read = BaseWorker.is_worker_still_polling.__code__.co_names
        return None if "_last_polled_time" in read else "is not read by the health check"
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            return "is missing"
    if internal.parameters is None:
        return None
    parameters = [name for name in inspect.signature(found).parameters if name != "self"]
    missing = [name for name in internal.parameters if name not in parameters]
    if missing:
        return f"has no parameter {', '.join(missing)}"
    required = [
        name
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in ("self", *internal.parameters)
    ]
    return f"needs a parameter {', '.join(required)}" if required else None


def record_poll(worker: BaseWorker[Any, Any, Any]) -> None:
    """Tell Prefect's health check that the worker has just polled."""
    worker._last_polled_time = datetime.now(UTC)
