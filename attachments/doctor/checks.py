"""Runs all checks in order; one without a response is reported, and the others continue."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.doctor.api_key import check_content, check_key, check_reading, sentences
from attachments.doctor.blocks import LoadedBlocks, load_blocks
from attachments.doctor.deployments import Deployments, block_names, check_deployments, read_deployments
from attachments.doctor.findings import Finding, failed, warning
from attachments.doctor.limits import Capacity, capacity_of, check_limits, is_paused, read_limit
from attachments.doctor.network import check_network
from attachments.doctor.prefect_server import check_access, check_server, check_settings
from attachments.doctor.probe import (
    PREFECT_ERRORS,
    RESPONSE_TIMEOUT,
    NoResponse,
    call_with_timeout,
    describe_error,
    is_not_importable,
    not_importable,
    prefect_client,
)
from attachments.doctor.reconciliation import check_reconciliation
from attachments.doctor.schedules import check_schedules
from attachments.doctor.stores import check_store
from attachments.doctor.workers import check_pool, check_queues, check_runs, check_workers
from attachments.emailgistics import EmailgisticsError
from attachments.foundation.cancellation import RunCancelled

T = TypeVar("T")
B = TypeVar("B", bound=Block)


def run_checks(*, patience: float = RESPONSE_TIMEOUT) -> Iterator[Finding]:
    """Check Prefect, the blocks, the stores and Emailgistics, with at most `patience` seconds for each response.

    Raises `RunCancelled`.
    """
    if not PREFECT_API_URL.value():
        remedy = "Set it to your server's API, such as http://127.0.0.1:4200/api."
        yield failed("prefect", "PREFECT_API_URL is not set.", remedy)
        yield _not_checked()
        return
    yield from check_network(PREFECT_API_URL.value())
    with ExitStack() as stack:
        try:
            client = stack.enter_context(prefect_client(patience))
        except PREFECT_ERRORS as error:
            yield failed("prefect", *describe_error(error))
            yield _not_checked()
            return
        yield from Checks(client, patience).run()


class Checks:
    """All checks, with one client of Prefect; `patience`: seconds for each response."""

    def __init__(self, client: SyncPrefectClient, patience: float) -> None:
        self._client = client
        self._patience = patience
        self._problem: Finding | None = None

    def run(self) -> Iterator[Finding]:
        """Every finding, as soon as it is known. Raises `RunCancelled`."""
        server = self._check("prefect", lambda: check_server(self._client))
        yield from server
        if any(finding.status == "failed" for finding in server):
            yield _not_checked()
            return
        yield from self._check("password", check_access)
        yield from self._check("leases", lambda: check_settings(self._client))
        yield from self._check("work-pool", lambda: check_pool(self._client))
        yield from self._check("worker", lambda: check_workers(self._client))
        yield from self._check("runs", lambda: check_runs(self._client))
        yield from self._check("queue", lambda: check_queues(self._client))
        deployments: Deployments = self._call("deployment", lambda: read_deployments(self._client), {})
        yield from self._pop_problem()
        yield from self._check("deployment", lambda: check_deployments(deployments))
        yield from self._check("schedule", lambda: check_schedules(self._client, deployments))
        scopes: list[Finding] = []
        accounts = self._blocks(EmailgisticsAccount, block_names(deployments, "account"))
        yield from accounts.findings
        for name, account in accounts.blocks.items():
            for finding in self._account(name, account):
                if finding not in scopes:  # accounts may share a limit
                    yield finding
                    scopes.append(finding)
        stores = self._blocks(AttachmentStore, block_names(deployments, "store"))
        yield from stores.findings
        for name, store in stores.blocks.items():
            yield self.check_store(name, store)
        yield from check_reconciliation(deployments, scopes)

    def _account(self, name: str, account: EmailgisticsAccount) -> Iterator[Finding]:
        """Check an account's limits and, if they allow a call, the account."""
        read = partial(read_limit, self._client)
        room = Capacity.NONE
        try:
            limit = call_with_timeout(self._patience, lambda: read(account.limit_name))
            backlog = call_with_timeout(self._patience, lambda: read(account.backlog_limit_name))
        except NoResponse:
            yield self._no_prefect_response("limit")
        except PREFECT_ERRORS as error:
            yield failed("limit", *describe_error(error))
        else:
            yield from check_limits(account, limit, backlog)
            room = capacity_of(limit)
        if room is Capacity.NONE:
            text = "Not checked: nothing would keep the calls below the cap of Emailgistics (see the limit)."
            yield warning("api-key", text, "Correct the limit, and run the doctor again.", subject=name)
            return
        yield from self.check_vendor(name, account, room)

    def check_vendor(self, name: str, account: EmailgisticsAccount, room: Capacity) -> Iterator[Finding]:
        """Check the account's API key, or report that Emailgistics does not respond in time."""
        try:
            client = account.client()
        except EmailgisticsError as error:  # a proxy of the environment that cannot be used
            yield failed(
                "api-key", sentences(error)[0], "Correct HTTPS_PROXY or ALL_PROXY, or set NO_PROXY.", subject=name
            )
            return
        checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
            ("api-key", lambda: check_key(client, name)),
            ("scope", lambda: (check_reading(client, name),)),
            ("scope", lambda: (check_content(client, name),)),
        ]
        for check, look in checks:
            try:
                found = call_with_timeout(self._patience, partial(_all_of, look))
            except NoResponse:
                yield self._no_vendor_response(check, name, account.limit_name, room)
                return
            yield from found
            if check == "api-key" and found[0].status != "ok":
                return

    def _no_vendor_response(self, check: str, name: str, limit_name: str, room: Capacity) -> Finding:
        """The finding when a call to Emailgistics timed out: a pause, no free slot, or no response."""
        with suppress(NoResponse, *PREFECT_ERRORS):
            if call_with_timeout(self._patience, lambda: is_paused(self._client, limit_name)):
                text = "Not checked: Emailgistics recently responded with 429, so all calls pause for up to 8 minutes."
                return warning(check, text, "Run the doctor again after the pause.", subject=name)
            if room is Capacity.FREE:
                room = capacity_of(call_with_timeout(self._patience, lambda: read_limit(self._client, limit_name)))
        if room is Capacity.FULL:
            text = (
                f"Not checked: all slots of the limit are taken, and none was released within {self._patience:.0f} s."
            )
            return warning(check, text, "Run the doctor again when there is less load.", subject=name)
        text = f"Emailgistics did not respond within {self._patience:.0f} s."
        remedy = "Check the network and the base URL, or run the doctor again later, because it may be slow."
        return failed(check, text, remedy, subject=name)

    def check_store(self, name: str, store: AttachmentStore) -> Finding:
        """Check the store, or report that it does not respond in time."""
        try:
            return call_with_timeout(self._patience, lambda: check_store(store, name))
        except NoResponse:
            remedy = "Check the network, the mount or the service behind it."
            return failed("store", f"It did not respond within {self._patience:.0f} s.", remedy, subject=name)
        except RunCancelled:
            raise
        except Exception as error:  # noqa: BLE001  a storage library's error for an option that it cannot use
            if is_not_importable(error):
                return failed("store", *not_importable(error), subject=name)
            text = f"It cannot be opened ({type(error).__name__})."
            return failed("store", text, "Compare its URL and options with docs/stores.md.", subject=name)

    def _blocks(self, kind: type[B], names: Iterable[str]) -> LoadedBlocks[B]:
        nothing: LoadedBlocks[B] = LoadedBlocks(blocks={}, findings=())
        loaded = self._call("block", lambda: load_blocks(kind, list(names), self._client), nothing)
        problem = tuple(self._pop_problem())
        return LoadedBlocks(blocks={}, findings=problem) if problem else loaded

    def _check(self, check: str, look: Callable[[], Iterable[Finding]]) -> tuple[Finding, ...]:
        """The findings of a group of checks, and one if there was no response."""
        found: tuple[Finding, ...] = self._call(check, lambda: tuple(look()), ())
        return (*found, *self._pop_problem())

    def _call(self, check: str, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return call_with_timeout(self._patience, ask)
        except NoResponse:
            self._problem = self._no_prefect_response(check)
        except PREFECT_ERRORS as error:
            self._problem = failed(check, *describe_error(error))
        return otherwise

    def _pop_problem(self) -> Iterator[Finding]:
        problem, self._problem = self._problem, None
        if problem is not None:
            yield problem

    def _no_prefect_response(self, check: str) -> Finding:
        text = f"Prefect did not respond within {self._patience:.0f} s."
        return failed(check, text, "Check its server: it hangs, or its database is overloaded.")


def _all_of(look: Callable[[], Iterable[Finding]]) -> tuple[Finding, ...]:
    return tuple(look())


def _not_checked() -> Finding:
    return warning(
        "unseen",
        "Limits, blocks, key, stores, workers and deployments were not checked, because Prefect holds their settings.",
    )
