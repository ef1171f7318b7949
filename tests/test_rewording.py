"""Reword every sentence: what a backfill counts, what a webhook is answered, and who has a run stay as they are."""

import asyncio
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings
from prefect.states import Running, Scheduled, to_state_create

from attachments.blocks import AttachmentStore
from attachments.doctor.stores import check_store
from attachments.emailgistics import TimedOut
from attachments.flows import reconcile_attachments
from attachments.receiver.flow_runs import PrefectFlowRuns, RunOutcome
from attachments.runs import artifacts, child_runs, delayed_retry
from attachments.runs.artifacts import MessageResult, failed_state, finish
from attachments.runs.child_runs import ChildRuns
from attachments.runs.state_record import read_record
from attachments.storage.errors import AccessDenied, StoreError
from attachments.worker import orphan_reaper, run_starter, state_changes
from attachments.worker.clients import SignedClient
from attachments.worker.run_starter import FlowLoader, RunStarter
from tests.rewording import reword, reword_states
from tests.runs.test_state_record import attempts


def through_prefect(state: State[Any]) -> State[Any]:
    """A state as Prefect's API returns it, after its client has sent it."""
    return State.model_validate(to_state_create(state).model_dump(mode="json"))


class Prefect:
    """One run, whose states it keeps. It answers as Prefect's client does."""

    def __init__(self) -> None:
        self.run = FlowRun(id=uuid4(), flow_id=uuid4(), deployment_id=uuid4(), state=Scheduled())
        self.scheduled: list[str] = []
        """The tags of the runs that were created."""

    def read_flow_run(self, _: UUID) -> FlowRun:
        return self.run

    def read_flow_runs(self, **_: Any) -> list[FlowRun]:
        return [self.run]

    def set_flow_run_state(self, _: UUID, state: State[Any], force: bool = False) -> Any:
        self.run.state = through_prefect(state)
        return SimpleNamespace(state=self.run.state, status=SetStateStatus.ACCEPT)

    def create_flow_run_from_deployment(self, _: UUID, **values: Any) -> None:
        self.scheduled += values["tags"]


class AsyncPrefect:
    """The same for those that await it."""

    def __init__(self, prefect: Prefect) -> None:
        self._prefect = prefect

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def answer(*arguments: Any, **options: Any) -> Any:
            return getattr(self._prefect, name)(*arguments, **options)

        return answer


@pytest.fixture(params=["as it is", "reworded"])
def prefect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Prefect:
    """A Prefect whose run is the current one."""
    found = Prefect()
    context = SimpleNamespace(flow_run=found.run)
    monkeypatch.setattr(delayed_retry, "FlowRunContext", SimpleNamespace(get=lambda: context))
    monkeypatch.setattr(delayed_retry, "get_client", lambda **_: found)
    monkeypatch.setattr(artifacts, "_make_table", lambda _: None)
    if request.param == "reworded":
        reword_states(monkeypatch)
    return found


def finished(*outcomes: Any, codes: tuple[str, ...] = (), pending: Any = None) -> State[Any]:
    return finish(MessageResult("0" * 32, attempts(outcomes, codes), pending))


def last_attempt(prefect: Prefect) -> State[Any]:
    prefect.run.tags = [f"attempt-{delayed_retry.ATTEMPTS}"]
    return failed_state(TimedOut("No answer"))


def withdrawn(prefect: Prefect) -> State[Any]:
    assert ChildRuns.cancel(children(prefect), prefect.run.id)
    assert prefect.run.state is not None
    return prefect.run.state


def children(prefect: Prefect) -> ChildRuns:
    target = cast("Any", SimpleNamespace(work_queue=None))
    return ChildRuns(cast("Any", prefect), target, key_prefix="", tags=("a tag",), force=False)


ENDINGS: Mapping[str, tuple[Callable[[Prefect], State[Any]], tuple[str, str | None], RunOutcome]] = {
    "stored": (lambda _: finished("stored", "stored", "filtered"), ("succeeded", None), RunOutcome("stored", 2)),
    "nothing": (lambda _: finished(), ("succeeded", None), RunOutcome("stored")),
    "gone": (
        lambda _: finished("stored", "failed", codes=("not-found",)),
        ("failed", "not-found"),
        RunOutcome("failed"),
    ),
    "early": (
        lambda _: finished("stored", pending="not-listed"),
        ("failed for now", None),
        RunOutcome("failed-for-now"),
    ),
    "timeout": (lambda _: failed_state(TimedOut("No answer")), ("failed for now", None), RunOutcome("failed-for-now")),
    "last": (last_attempt, ("failed", "timeout"), RunOutcome("failed")),
    "store": (lambda _: failed_state(AccessDenied("no")), ("failed", "access-denied"), RunOutcome("failed")),
    "stopped": (
        lambda _: reconcile_attachments._failed("Stopped.", AccessDenied("no")),
        ("failed", "access-denied"),
        RunOutcome("failed"),
    ),
    "withdrawn": (withdrawn, ("cancelled", "withdrawn"), RunOutcome("failed")),
}  # fmt: skip
"""How a run ends; what its parent run counts, with the code; what a webhook that waits for it is answered."""


@pytest.mark.parametrize("ending", ENDINGS)
def test_how_a_run_ended_is_read_the_same(prefect: Prefect, ending: str) -> None:
    """By a backfill or reconciliation, by the receiver, and by nobody's grammar. The next attempt follows as well."""
    end, (stage, code), answer = ENDINGS[ending]
    prefect.run.state = through_prefect(end(prefect))
    (child,) = children(prefect).read([prefect.run.id], find_deleted=True)
    assert (child.stage.value, child.code) == (stage, code)
    receiver = PrefectFlowRuns(cast("Any", AsyncPrefect(prefect)))
    assert asyncio.run(receiver.outcomes([str(prefect.run.id)])) == {str(prefect.run.id): answer}
    assert prefect.scheduled == (["attempt-2"] if stage == "failed for now" else [])


def test_who_has_a_run_is_read_the_same(prefect: Prefect) -> None:
    """From the state with which the worker takes it, and from the one in which it runs."""
    name = "a [b], c=d"
    starter = RunStarter(cast("Any", AsyncPrefect(prefect)), name, FlowLoader(""), cast("Any", None))
    assert asyncio.run(starter.sign(prefect.run))
    assert read_record(prefect.run.state).worker == name
    proposed: list[State[Any]] = []

    def accept(request: httpx.Request) -> httpx.Response:
        state = json.loads(request.content)["state"]
        proposed.append(State(type=state["type"], message=state["message"]))
        return httpx.Response(200, json={"state": None, "status": "ACCEPT", "details": {"type": "accept_details"}})

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}),
        SignedClient(name, lambda: httpx.MockTransport(accept)) as client,
    ):
        client.set_flow_run_state(prefect.run.id, Running())
    assert read_record(proposed[0]).worker == name


@pytest.mark.parametrize(
    "error",
    [
        AccessDenied("could not probe the store (EACCES)", remedy="let the worker's user write to it"),
        StoreError("the options of the ftp: store cannot be used", remedy="compare them: see docs/stores.md"),
        StoreError("the ftp: store has no room"),
    ],
)
@pytest.mark.parametrize("is_reworded", [False, True])
def test_what_the_doctor_says_of_a_store_is_what_the_error_says(error: StoreError, is_reworded: bool) -> None:
    """What happened, and what to do, each in full, wherever their colons are."""
    happened, remedy = error.happened, error.remedy
    if is_reworded:
        happened, remedy = reword(happened), reword(remedy)

    def fail() -> None:
        raise type(error)(happened, remedy=remedy)

    finding = check_store(cast("AttachmentStore", SimpleNamespace(store=fail)), "default")
    assert finding.status == "failed"
    assert finding.text == f"{happened[:1].upper()}{happened[1:]}."
    assert finding.remedy == (f"{remedy[:1].upper()}{remedy[1:]}." if remedy else "Look at the store.")


def test_the_rewording_rewords() -> None:
    """Nothing of a sentence is left, and twice it is as it was."""
    sentence = "Of 2 attachments 1 stored, 1 failed; Code: not-found. Attempt 2 of 9 follows by itself."
    assert set(reword(sentence)).isdisjoint("0123456789.:;-")
    assert set(sentence.split()).isdisjoint(reword(sentence).split())
    assert reword(reword(sentence)) == sentence


def test_every_maker_of_states_is_reworded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would show nothing."""
    reword_states(monkeypatch)
    for module, kinds in {
        artifacts: ("Completed", "Failed"),
        delayed_retry: ("Failed", "Scheduled"),
        child_runs: ("Cancelled",),
        reconcile_attachments: ("Completed", "Failed", "Cancelled"),
        orphan_reaper: ("Crashed",),
        run_starter: ("Cancelled", "Crashed", "Pending"),
        state_changes: ("Cancelled", "Scheduled"),
    }.items():
        for kind in kinds:
            assert getattr(module, kind)(message="Done.").message == reword("Done.")
