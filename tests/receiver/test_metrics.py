"""`GET /metrics`: what a monitor reads."""

from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .conftest import Receiver


def samples(answer: httpx.Response) -> dict[tuple[str, str], float]:
    """Value by name and outcome; raises when it is not Prometheus' text format."""
    return {
        (sample.name, sample.labels.get("outcome", "")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_metrics_tell_what_happened(make: Callable[..., Receiver]) -> None:
    """Each delivery is counted under its outcome; the gauges follow the inbox up and down."""
    receiver = make()
    receiver.prefect.stop()
    receiver.process.start()
    for message_id in ("a", "b", "a"):
        receiver.deliver(message_id)
    receiver.deliver("c", event="closed")
    receiver.deliver("d", deployment="not-known-yet")
    receiver.post(content=b"[]", headers={"Content-Type": "application/json"})
    receiver.post(content=b"[]", headers={"Content-Type": "text/plain"})
    receiver.post(content=b" " * (1024 * 1024 + 1), headers={"Content-Type": "application/json"})
    receiver.post({}, headers={"Authorization": "Bearer wrong"})
    answer = receiver.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(answer)
    outcomes = {outcome: value for (name, outcome), value in found.items() if name == "attachments_deliveries_total"}
    assert outcomes == {
        "accepted": 2,
        "duplicate": 1,
        "nothing-to-do": 1,
        "not-synced": 1,
        "invalid": 1,
        "not-json": 1,
        "too-large": 1,
        "unauthorized": 1,
    }
    assert found["attachments_inbox_entries", ""] == 2
    assert 0 < found["attachments_inbox_oldest_seconds", ""] < 60
    assert found["attachments_dispatched_total", ""] == 0

    receiver.prefect.start()
    receiver.until_empty()
    found = samples(receiver.get("/metrics"))
    assert found["attachments_inbox_entries", ""] == 0
    assert found["attachments_inbox_oldest_seconds", ""] == 0
    assert found["attachments_dispatched_total", ""] == 2
    assert found["attachments_dispatch_failures", ""] == 0
    receiver.until(lambda: receiver.deliver("x", "not-known-yet").status_code == 404, "the list of deployments")
    assert samples(receiver.get("/metrics"))["attachments_deliveries_total", "unknown-deployment"] >= 1


def test_readiness_tells_what_waits(shared: Receiver) -> None:
    """How many entries, and since when."""
    shared.until_empty()
    assert shared.get("/ready").json() == {"status": "ok", "inbox": 0, "oldest_seconds": 0.0}
    assert shared.get("/health").json() == {"status": "ok"}
