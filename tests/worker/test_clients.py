"""The clients that runs of one worker lend each other."""

from contextvars import Context

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SyncClientContext
from prefect.exceptions import Abort
from prefect.settings import PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED, temporary_settings

from attachments.worker.clients import ClientPool
from tests.worker.prefect_stand_in import ELSEWHERE


def test_runs_lend_each_other_their_clients() -> None:
    """One after the other the same, which stays open whatever a run does; at the same time each its own."""
    clients = ClientPool("worker")
    used: list[SyncPrefectClient] = []

    def beside() -> SyncPrefectClient:
        with temporary_settings(ELSEWHERE), clients.acquire():
            return get_client(sync_client=True)

    with temporary_settings(ELSEWHERE):
        for end in (None, Abort(), SystemExit(3), None):
            try:
                with clients.acquire():
                    used.append(get_client(sync_client=True))
                    if end is not None:
                        raise end
            except (Abort, SystemExit):
                pass
            assert SyncClientContext.get() is None, f"after {end!r}"
        assert len({id(client) for client in used}) == 1
        with used[0]:  # raises when the client is closed
            pass
        with clients.acquire():
            assert Context().run(beside) is not used[0], "a thread starts with no context"


def test_a_client_that_could_not_begin_is_not_lent_again() -> None:
    """Prefect is unreachable when the first run of all asks for its version."""
    clients = ClientPool("worker")
    asks = {**ELSEWHERE, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: True}
    with temporary_settings(asks), pytest.raises(RuntimeError, match="Failed to reach"), clients.acquire():
        pass
    with temporary_settings(ELSEWHERE), clients.acquire():
        assert SyncClientContext.get() is not None
