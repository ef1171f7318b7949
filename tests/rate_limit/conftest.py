"""A real Prefect server with a limit, for the tests of the rate limit."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from prefect.context import refresh_global_settings_context

from attachments.demo.processes import Process, wait_for
from attachments.demo.stack import make_stack

LIMIT = 5


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    stack = make_stack(tmp_path_factory.mktemp("pacing"), "http://127.0.0.1:1", "key")
    stack.prefect.start()
    with pytest.MonkeyPatch.context() as here:
        for name, value in stack.prefect.environment.items():
            here.setenv(name, value)
        refresh_global_settings_context()  # for threads, too, which have no other
        try:
            yield stack.prefect
        finally:
            stack.prefect.stop()
    refresh_global_settings_context()


@pytest.fixture
def api(prefect: Process) -> Iterator[httpx.Client]:
    """Prefect's API with an empty limit of five slots."""
    url, auth = (prefect.environment[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING"))
    user, _, password = auth.partition(":")
    with httpx.Client(base_url=url, auth=(user, password), trust_env=False, timeout=60) as client:
        make_limit(client, "test-limit", LIMIT)
        yield client


@pytest.fixture
def no_pause(api: httpx.Client) -> Iterator[None]:
    """Nothing is left of an earlier test's pause."""
    remove(api, "/variables/name/test-limit-pause")
    yield
    remove(api, "/variables/name/test-limit-pause")


def make_limit(api: httpx.Client, name: str, slots: int) -> None:
    """A fresh limit, whatever an earlier test has left."""
    remove(api, f"/v2/concurrency_limits/{name}")
    limit = {"name": name, "limit": slots, "active": True}
    patiently(lambda: api.post("/v2/concurrency_limits/", json=limit))
    assert api.get(f"/v2/concurrency_limits/{name}").json()["limit"] == slots


def change_limit(api: httpx.Client, change: dict[str, object]) -> None:
    patiently(lambda: api.patch("/v2/concurrency_limits/test-limit", json=change)).raise_for_status()


def active_slots(api: httpx.Client, name: str = "test-limit") -> float:
    return float(api.get(f"/v2/concurrency_limits/{name}").json()["active_slots"])


def remove(api: httpx.Client, path: str) -> None:
    response = patiently(lambda: api.delete(path))
    assert response.status_code in {httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND}


def patiently(request: Callable[[], httpx.Response]) -> httpx.Response:
    """Embedded SQLite returns 503 now and then; a person would retry."""
    responses: list[httpx.Response] = []

    def is_accepted() -> bool:
        responses.append(request())
        return responses[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

    eventually(is_accepted)
    return responses[-1]


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    wait_for(lambda: bool(condition()), "the condition", seconds)
