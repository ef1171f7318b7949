"""What is stored is announced before its run is Completed, once, whatever dies in between."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from attachments.storage import message_key
from tests.e2e.installation import Installation, until
from tests.servers.proxy import Proxy, Strike

STORED = "emailgistics.attachments.stored"


def announced(running: Installation, message: dict[str, Any]) -> list[dict[str, Any]]:
    return running.events(STORED, f"emailgistics.message.{message_key(message['id'])}")


@contextmanager
def watched_worker(running: Installation) -> Iterator[Proxy]:
    """The worker started again, with a proxy between it and Prefect; afterwards again without."""
    worker, environment = running.stack.worker, running.stack.worker.environment
    with Proxy(urlsplit(running.stack.api_url).port or 0) as proxy:
        worker.kill()
        worker.environment = {**environment, "PREFECT_API_URL": f"http://127.0.0.1:{proxy.port}/api"}
        worker.start()
        try:
            yield proxy
        finally:
            worker.kill()
            worker.environment = environment
            worker.start()


def hand_back(running: Installation, message: dict[str, Any]) -> None:
    """What another worker does after twenty seconds of silence: the dead one's run starts again."""
    (run,) = running.runs(message_id=message["id"])
    state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    running._post(f"flow_runs/{run['id']}/set_state", {"state": state, "force": True})


@dataclass(frozen=True)
class Step:
    """At which of its requests to Prefect the worker is killed: before Prefect has it, or after it did as asked."""

    target: str
    after_reply: bool = False
    skip: int = 0

    @property
    def is_the_last(self) -> bool:
        """Whether the run has ended by then."""
        return self.after_reply and "set_state" in self.target


STEPS = {
    "before the event is sent": Step("/api/events$"),
    "when Prefect has taken the event": Step("/api/events$", after_reply=True),
    "before the final state": Step("/set_state$", skip=2),
    "before the event is read back": Step("/api/events/filter$"),
    "before the run's table": Step("/api/artifacts/"),
    "after the final state": Step("/set_state$", after_reply=True, skip=2),
}


@pytest.mark.parametrize(
    "steps", [list(STEPS)[:3], pytest.param(list(STEPS)[3:], marks=pytest.mark.soak)], ids=["some", "others"]
)
def test_a_worker_killed_between_manifest_and_final_state_leaves_nothing_untold(
    running: Installation, steps: list[str]
) -> None:
    """`kill -9` at each step: the run's next worker completes it, with one event, and asks Emailgistics nothing."""
    worker = running.stack.worker
    with watched_worker(running) as proxy:
        for name in steps:
            step = STEPS[name]
            message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": name}])
            # Of the requests for a new state the first two are for Pending and Running.
            proxy.order("POST", step.target, Strike(worker.kill, after_reply=step.after_reply), skip=step.skip)
            running.send(message)
            until(lambda: worker.code is not None, f"the kill {name}")
            assert proxy.ordered == 0
            calls = running.calls(message)
            assert running.manifest(message) is not None, name
            (run,) = running.runs(message_id=message["id"])
            assert (run["state_type"] == "COMPLETED") is step.is_the_last, name
            if not step.is_the_last:
                hand_back(running, message)
            worker.start()
            assert running.ended_run(message)["state_type"] == "COMPLETED", name
            (event,) = announced(running, message)
            manifest = running.complete_manifest(message)
            assert [str(told) for told in manifest.announced or ()] == [event["id"]], name
            assert running.calls(message) == calls, name
