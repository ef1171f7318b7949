"""All of it, one thing after the other; what does not answer is said so, and the rest goes on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.doctor.blocks import Loaded, load_blocks
from attachments.doctor.deployments import Deployments, blocks_named, look_at_deployments, read_deployments
from attachments.doctor.findings import Finding, failed, warning
from attachments.doctor.limits import Capacity, capacity_of, is_paused, look_at_limits, read_limit
from attachments.doctor.network import look_at_network
from attachments.doctor.probe import (
    PATIENCE,
    PREFECT_ERRORS,
    NoResponse,
    call_with_timeout,
    describe_error,
    is_not_importable,
    not_importable,
    prefect,
)
from attachments.doctor.reconciliation import look_at_reconciliation
from attachments.doctor.schedules import look_at_schedules
from attachments.doctor.server import look_at_access, look_at_server, look_at_settings
from attachments.doctor.stores import look_at_store
from attachments.doctor.vendor import look_at_content, look_at_key, look_at_reading, sentences
from attachments.doctor.work import look_at_pool, look_at_queues, look_at_runs, look_at_workers
from attachments.emailgistics import EmailgisticsError
from attachments.foundation.cancellation import RunCancelled

T = TypeVar("T")
B = TypeVar("B", bound=Block)


def examine(*, patience: float = PATIENCE) -> Iterator[Finding]:
    """Look at all that is in Prefect, behind the blocks and at Emailgistics; `patience` seconds for each answer.

    Raises `RunCancelled`.
    """
    if not PREFECT_API_URL.value():
        remedy = "Set it to your server's, such as http://127.0.0.1:4200/api."
        yield failed("prefect", "PREFECT_API_URL is not set.", remedy)
        yield _unseen()
        return
    yield from look_at_network(PREFECT_API_URL.value())
    with ExitStack() as stack:
        try:
            client = stack.enter_context(prefect(patience))
        except PREFECT_ERRORS as error:
            yield failed("prefect", *describe_error(error))
            yield _unseen()
            return
        yield from _Examination(client, patience).run()


class _Examination:
    def __init__(self, client: SyncPrefectClient, patience: float) -> None:
        self._client = client
        self._patience = patience
        self._problem: Finding | None = None

    def run(self) -> Iterator[Finding]:
        server = self._all("prefect", lambda: look_at_server(self._client))
        yield from server
        if any(finding.status == "failed" for finding in server):
            yield _unseen()
            return
        yield from self._all("password", look_at_access)
        yield from self._all("leases", lambda: look_at_settings(self._client))
        yield from self._all("work-pool", lambda: look_at_pool(self._client))
        yield from self._all("worker", lambda: look_at_workers(self._client))
        yield from self._all("runs", lambda: look_at_runs(self._client))
        yield from self._all("queue", lambda: look_at_queues(self._client))
        standing: Deployments = self._ask("deployment", lambda: read_deployments(self._client), {})
        yield from self._told()
        yield from self._all("deployment", lambda: look_at_deployments(standing))
        yield from self._all("schedule", lambda: look_at_schedules(self._client, standing))
        scopes: list[Finding] = []
        accounts = self._blocks(EmailgisticsAccount, blocks_named(standing, "account"))
        yield from accounts.findings
        for name, account in accounts.blocks.items():
            for finding in self._account(name, account):
                if finding not in scopes:  # accounts may share a limit
                    yield finding
                    scopes.append(finding)
        stores = self._blocks(AttachmentStore, blocks_named(standing, "store"))
        yield from stores.findings
        for name, store in stores.blocks.items():
            yield self._store(name, store)
        yield from look_at_reconciliation(standing, scopes)

    def _account(self, name: str, account: EmailgisticsAccount) -> Iterator[Finding]:
        """An account's limits, and when they let us, the account."""
        read = partial(read_limit, self._client)
        room = Capacity.NONE
        try:
            limit = call_with_timeout(self._patience, lambda: read(account.limit_name))
            backlog = call_with_timeout(self._patience, lambda: read(account.backlog_limit_name))
        except NoResponse:
            yield self._silence("limit")
        except PREFECT_ERRORS as error:
            yield failed("limit", *describe_error(error))
        else:
            yield from look_at_limits(account, limit, backlog)
            room = capacity_of(limit)
        if room is Capacity.NONE:
            text = "Not asked: nothing would keep the calls below the cap of Emailgistics (see the limit)."
            yield warning("api-key", text, "Mend the limit and look again.", subject=name)
            return
        yield from self._vendor(name, account, room)

    def _vendor(self, name: str, account: EmailgisticsAccount, room: Capacity) -> Iterator[Finding]:
        try:
            client = account.client()
        except EmailgisticsError as error:  # a proxy of the environment that cannot be used
            yield failed(
                "api-key", sentences(error)[0], "Correct HTTPS_PROXY or ALL_PROXY, or set NO_PROXY.", subject=name
            )
            return
        asked: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
            ("api-key", lambda: look_at_key(client, name)),
            ("scope", lambda: (look_at_reading(client, name),)),
            ("scope", lambda: (look_at_content(client, name),)),
        ]
        for check, look in asked:
            try:
                found = call_with_timeout(self._patience, partial(_all_of, look))
            except NoResponse:
                yield self._vendor_is_silent(check, name, account.limit_name, room)
                return
            yield from found
            if check == "api-key" and found[0].status != "ok":
                return

    def _vendor_is_silent(self, check: str, name: str, limit_name: str, room: Capacity) -> Finding:
        """Who is to blame: our own calls count as well, and others' may have come in between."""
        with suppress(NoResponse, *PREFECT_ERRORS):
            if call_with_timeout(self._patience, lambda: is_paused(self._client, limit_name)):
                text = "Not asked: Emailgistics answered 429 not long ago, and all calls pause for up to 8 minutes."
                return warning(check, text, "Look again when the pause is over.", subject=name)
            if room is Capacity.FREE:
                room = capacity_of(call_with_timeout(self._patience, lambda: read_limit(self._client, limit_name)))
        if room is Capacity.FULL:
            text = f"Not asked: all slots of the limit are taken, and none came free within {self._patience:.0f} s."
            return warning(check, text, "Look again when less is going on.", subject=name)
        text = f"Emailgistics does not answer within {self._patience:.0f} s."
        remedy = "Look at the network and the base URL, or look again later, for it may be slow."
        return failed(check, text, remedy, subject=name)

    def _store(self, name: str, store: AttachmentStore) -> Finding:
        try:
            return call_with_timeout(self._patience, lambda: look_at_store(store, name))
        except NoResponse:
            remedy = "Look at the network, the mount or the service behind it."
            return failed("store", f"It does not answer within {self._patience:.0f} s.", remedy, subject=name)
        except RunCancelled:
            raise
        except Exception as error:  # noqa: BLE001  a foreign library's word for an option that it cannot use
            if is_not_importable(error):
                return failed("store", *not_importable(error), subject=name)
            text = f"It cannot be opened ({type(error).__name__})."
            return failed("store", text, "Compare its URL and options with docs/stores.md.", subject=name)

    def _blocks(self, kind: type[B], names: Iterable[str]) -> Loaded[B]:
        nothing: Loaded[B] = Loaded(blocks={}, findings=())
        loaded = self._ask("block", lambda: load_blocks(kind, list(names), self._client), nothing)
        problem = tuple(self._told())
        return Loaded(blocks={}, findings=problem) if problem else loaded

    def _all(self, check: str, look: Callable[[], Iterable[Finding]]) -> tuple[Finding, ...]:
        """What a family of checks finds, or that it got no answer."""
        found: tuple[Finding, ...] = self._ask(check, lambda: tuple(look()), ())
        return (*found, *self._told())

    def _ask(self, check: str, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return call_with_timeout(self._patience, ask)
        except NoResponse:
            self._problem = self._silence(check)
        except PREFECT_ERRORS as error:
            self._problem = failed(check, *describe_error(error))
        return otherwise

    def _told(self) -> Iterator[Finding]:
        problem, self._problem = self._problem, None
        if problem is not None:
            yield problem

    def _silence(self, check: str) -> Finding:
        text = f"Prefect does not answer within {self._patience:.0f} s."
        return failed(check, text, "Look at its server: it hangs, or its database is overloaded.")


def _all_of(look: Callable[[], Iterable[Finding]]) -> tuple[Finding, ...]:
    return tuple(look())


def _unseen() -> Finding:
    return warning("unseen", "Limits, blocks, key, stores, workers and deployments, which are found by way of Prefect.")
