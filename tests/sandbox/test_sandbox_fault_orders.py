"""Which calls a fault happens to, how often and how long."""

import httpx
import pytest

from attachments.sandbox.process import Sandbox
from tests.sandbox.conftest import download_path, list_path

TEAPOT = {"kind": "status", "status": 418}


@pytest.fixture
def message(sandbox: Sandbox):
    return sandbox.control.add_message(attachments=[{"name": "a"}, {"name": "b"}])


@pytest.fixture
def statuses(api: httpx.Client, message):
    """Calls every endpoint once and tells the statuses."""

    def call() -> list[int]:
        paths = (list_path(message), download_path(message, 0), download_path(message, 1), "/admin/mailboxes")
        return [api.get(path).status_code for path in paths]

    return call


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("list", [418, 200, 200, 200]),
        ("download", [200, 418, 418, 200]),
        ("mailboxes", [200, 200, 200, 418]),
        ("any", [418, 418, 418, 418]),
    ],
)
def test_a_fault_is_for_an_endpoint(sandbox: Sandbox, statuses, endpoint: str, expected: list[int]):
    """Only the named endpoint is struck, or any."""
    sandbox.control.fault(endpoint=endpoint, times=None, fault=TEAPOT)
    assert statuses() == expected


def test_a_fault_is_for_a_message_or_an_attachment(sandbox: Sandbox, statuses, message):
    """Ids narrow it down further."""
    sandbox.control.fault(message_id="another", times=None, fault=TEAPOT)
    assert statuses() == [200, 200, 200, 200]
    sandbox.control.fault(attachment_id=message["attachments"][1]["id"], times=None, fault=TEAPOT)
    assert statuses() == [200, 200, 418, 200]
    sandbox.control.fault(message_id=message["id"], times=None, fault=TEAPOT)
    assert statuses() == [418, 418, 418, 200]


def test_a_fault_happens_once_or_so_many_times_or_until_removed(sandbox: Sandbox, statuses):
    """Left out, `times` is one; null is for ever; removing ends it."""
    sandbox.control.fault(fault=TEAPOT)
    assert statuses() == [418, 200, 200, 200]
    sandbox.control.fault(times=3, fault=TEAPOT)
    assert statuses() == [418, 418, 418, 200]
    fault = sandbox.control.fault(times=None, fault=TEAPOT)
    assert statuses() == [418] * 4
    sandbox.control.delete(f"faults/{fault}").raise_for_status()
    assert statuses() == [200] * 4
    assert sandbox.control.delete(f"faults/{fault}").status_code == 404
    sandbox.control.fault(times=None, fault=TEAPOT)
    sandbox.control.clear_faults()
    assert statuses() == [200] * 4


def test_a_fault_can_let_the_first_calls_pass(sandbox: Sandbox, statuses):
    """`skip` counts matching calls only, and the fault shows how often it matched and struck."""
    sandbox.control.fault(endpoint="download", skip=1, times=2, fault=TEAPOT)
    assert statuses() == [200, 200, 418, 200]
    assert statuses() == [200, 418, 200, 200]
    (row,) = sandbox.control.get("faults").json()["faults"]
    assert (row["endpoint"], row["fault"], row["skip"], row["times"]) == ("download", TEAPOT, 1, 2)
    assert (row["matched"], row["fired"], row["spent"]) == (3, 2, True)


def test_a_fault_can_last_for_a_while(sandbox: Sandbox, api: httpx.Client):
    """With `for_seconds` it strikes every call until then, and none after."""
    sandbox.control.fault(for_seconds=0.3, fault=TEAPOT)
    while api.get("/admin/mailboxes").status_code == 418:
        pass
    assert sandbox.control.get("faults").json()["faults"][0]["spent"]
    struck = [row["at"] for row in sandbox.control.requests() if row["status"] == 418]
    assert len(struck) > 1
    assert struck[-1] - struck[0] < 0.3


def test_a_refused_call_uses_no_fault_up(sandbox: Sandbox, api: httpx.Client):
    """Faults wait for a call that the key and the rate limit let through."""
    sandbox.control.fault(fault=TEAPOT)
    sandbox.control.settings(limit=0)
    assert api.get("/admin/mailboxes").status_code == 429
    assert api.get("/admin/mailboxes", headers={"Authorization": "Bearer no"}).status_code == 401
    sandbox.control.settings(limit=None)
    assert api.get("/admin/mailboxes").status_code == 418
