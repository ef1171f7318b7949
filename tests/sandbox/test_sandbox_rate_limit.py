"""100 calls in any 60 seconds for the whole account: here in small."""

from concurrent.futures import ThreadPoolExecutor

import httpx

from attachments.sandbox.process import Sandbox, running_sandbox
from attachments.sandbox.window import Peak, SlidingWindow
from tests.sandbox.conftest import list_path


def test_the_window_is_exact_at_its_edges():
    """The limit-th call is granted, the next is not, until the first one is a whole window old."""
    window = SlidingWindow(limit=2, window=60)
    assert [window.admit(now) for now in (0.0, 59.0, 59.5, 59.999)] == [True, True, False, False]
    assert [window.admit(now) for now in (60.0, 60.0, 118.999)] == [True, False, False]
    assert [window.admit(now) for now in (119.0, 119.0, 120.0)] == [True, False, True]


def test_refused_calls_do_not_count():
    """Asking too often does not prolong the wait."""
    window = SlidingWindow(limit=1, window=10)
    assert window.admit(0.0)
    assert not any(window.admit(0.01 * tick) for tick in range(1, 1000))
    assert window.admit(10.0)


def test_the_window_is_no_fixed_minute():
    """A burst at the end of one minute leaves nothing for the start of the next."""
    window = SlidingWindow(limit=100, window=60)
    assert all(window.admit(59.0) for _ in range(100))
    assert not window.admit(61.0)


def test_the_peak_counts_one_window_at_a_time():
    """Calls a whole window apart are never counted together."""
    peak = Peak()
    for now in (0.0, 1.0, 10.0, 10.5, 10.9):
        peak.add(now, window=10)
    assert peak.most == 4


def test_over_the_limit_is_429_for_every_key_and_endpoint(sandbox: Sandbox, api: httpx.Client):
    """The calls of all keys and endpoints share one window; 429 has the error body and no Retry-After."""
    message = sandbox.control.add_message(attachments=[{"name": "a"}])
    keys = [{"key": sandbox.key}, {"key": "other"}]
    sandbox.control.settings(limit=3, window=30, keys=keys, reset_window=True)
    other = {"Authorization": "Bearer other"}
    statuses = [
        api.get("/admin/mailboxes").status_code,
        api.get(list_path(message), headers=other).status_code,
        api.get("/nothing").status_code,
    ]
    refused = api.get(list_path(message), headers=other)
    assert statuses == [200, 200, 404]
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "429")
    assert "Retry-After" not in refused.headers
    assert [row["counted"] for row in sandbox.control.requests()] == [True, True, True, False]


def test_a_call_with_a_bad_key_counts_for_nobody(sandbox: Sandbox, api: httpx.Client):
    """401 neither counts against the limit nor is hidden by it."""
    sandbox.control.settings(limit=1, window=30, reset_window=True)
    bad = {"Authorization": "Bearer bad"}
    assert api.get("/admin/mailboxes", headers=bad).status_code == 401
    assert api.get("/admin/mailboxes").status_code == 200
    assert api.get("/admin/mailboxes", headers=bad).status_code == 401
    assert api.get("/admin/mailboxes").status_code == 429


def test_a_storm_is_granted_exactly_what_the_window_allows(sandbox: Sandbox):
    """Replaying the log by hand gives the same grants and refusals, call by call."""
    limit, window = 5, 0.1
    sandbox.control.settings(limit=limit, window=window, reset_window=True)

    def storm(_: int) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {sandbox.key}"}, trust_env=False) as client:
            for _ in range(150):
                client.get(f"{sandbox.base_url}/admin/mailboxes")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(storm, range(4)))
    granted: list[float] = []
    rows = sandbox.control.requests()
    for row in rows:
        expected = sum(row["at"] - earlier < window for earlier in granted[-limit:]) < limit
        assert row["status"] == (200 if expected else 429)
        if expected:
            granted.append(row["at"])
    assert len(rows) == 600
    assert len(granted) > limit
    assert sandbox.control.summary()["most_granted_in_a_window"] == limit


def test_the_limit_can_be_off_or_nought(sandbox: Sandbox, api: httpx.Client):
    """None lets everything through, 0 refuses everything; `reset_window` forgets what was counted."""
    assert {api.get("/admin/mailboxes").status_code for _ in range(150)} == {200}
    sandbox.control.settings(limit=0)
    assert api.get("/admin/mailboxes").status_code == 429
    sandbox.control.settings(limit=1, window=30)
    assert [api.get("/admin/mailboxes").status_code for _ in range(2)] == [200, 429]
    sandbox.control.settings(reset_window=True)
    assert api.get("/admin/mailboxes").status_code == 200


def test_by_default_it_is_the_vendors_hundred_a_minute():
    """A sandbox that is told nothing grants 100 calls and refuses the 101st."""
    with running_sandbox() as sandbox, httpx.Client(trust_env=False) as client:
        client.headers["Authorization"] = f"Bearer {sandbox.key}"
        statuses = [client.get(f"{sandbox.base_url}/admin/mailboxes").status_code for _ in range(101)]
        assert sandbox.control.get("settings").json()["window"] == 60
    assert statuses == [200] * 100 + [429]
