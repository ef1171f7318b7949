"""Answers that wait for the run, and answers that ask Emailgistics for something (webhooks/response-envelope)."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from attachments.receiver.responses import InvalidResponses, WebhookResponse, load_responses

from .conftest import Receiver

TAG = {"type": "tag", "value": {"tags": ["Saved", "Finance"]}}
FIELDS = {"type": "setCustomFields", "value": {"attachments": "saved", "by": "x" * 100}, "name": "mark"}
STORED = "Of 3 attachments 2 stored, 1 left out by the filter; 10 bytes are in the store. [stored=2]"
ANSWERS = {
    "default": {"actions": [TAG, FIELDS]},
    "at-once": {"wait": 0, "actions": [TAG]},
    "hasty": {"wait": 1},
}


@pytest.fixture
def inline(make: Callable[..., Receiver], tmp_path: Path) -> Receiver:
    """A receiver that waits, for three deployments with answers of their own."""
    answers = tmp_path / "answers.yaml"
    answers.write_text(json.dumps(ANSWERS))
    receiver = make(options=("--wait", "20", "--answers", str(answers)))
    for name in ("at-once", "hasty", "plain"):
        receiver.prefect.deployments[name] = f"6c9c0f0a-2b8e-4a55-9d7c-{len(receiver.prefect.deployments):012}"
    receiver.process.start()
    receiver.until(lambda: receiver.post(content=b"", deployment="plain").status_code == 400, "the deployments")
    return receiver


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def waiting(
    receiver: Receiver, pool: ThreadPoolExecutor, message_id: str, deployment: str = "default"
) -> Future[httpx.Response]:
    """A delivery whose run has begun, and which is not answered yet."""
    answer = pool.submit(receiver.deliver, message_id, deployment)
    receiver.until(lambda: message_id in receiver.prefect.message_ids, "the run")
    time.sleep(0.7)
    assert not answer.done()
    return answer


def test_what_is_stored_is_answered_with_how_much_and_the_actions(inline: Receiver, pool: ThreadPoolExecutor) -> None:
    """When the run has completed, and not before."""
    answer = waiting(inline, pool, "a")
    inline.prefect.end("a", "COMPLETED", message=STORED)
    assert answer.result().status_code == 200
    assert answer.result().json() == {"status": "success", "message": "Saved 2 file(s).", "actions": [TAG, FIELDS]}
    assert inline.depth == 0


def test_a_deployment_without_actions_asks_for_none(inline: Receiver, pool: ThreadPoolExecutor) -> None:
    """It waits as long as the option says."""
    answer = waiting(inline, pool, "a", "plain")
    inline.prefect.end("a", "COMPLETED", message="The message has no attachments.")
    assert answer.result().json() == {"status": "success", "message": "Saved 0 file(s)."}


def test_a_failure_that_can_pass_is_left_to_emailgistics(inline: Receiver, pool: ThreadPoolExecutor) -> None:
    """503, without actions; the next attempt waits for a run of its own."""
    answer = waiting(inline, pool, "a")
    inline.prefect.end("a", "FAILED", "FailedForNow", "Emailgistics does not answer.")
    assert answer.result().status_code == 503
    assert answer.result().json()["status"] == "error"
    again = pool.submit(inline.deliver, "a")
    inline.until(lambda: len(inline.prefect.message_ids) == 2, "the second run")
    inline.prefect.end("a", "COMPLETED", message=STORED)
    assert again.result().json()["message"] == "Saved 2 file(s)."


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_a_failure_that_stays_is_told_and_not_tried_again(
    inline: Receiver, pool: ThreadPoolExecutor, state: str
) -> None:
    """200 and the word `error`, after which nothing is retried; no actions, and no text of the run's."""
    answer = waiting(inline, pool, "a")
    inline.prefect.end("a", state, message="canary")
    assert answer.result().status_code == 200
    assert answer.result().json().keys() == {"status", "message"}
    assert answer.result().json()["status"] == "error"
    assert "canary" not in answer.result().text


def test_a_crash_can_pass(inline: Receiver, pool: ThreadPoolExecutor) -> None:
    """It says nothing about the message."""
    answer = waiting(inline, pool, "a")
    inline.prefect.end("a", "CRASHED")
    assert answer.result().status_code == 503


def test_past_the_deadline_it_is_still_downloading(inline: Receiver) -> None:
    """Success without actions; the run goes on."""
    started = time.monotonic()
    answer = inline.deliver("a", "hasty")
    assert time.monotonic() - started > 0.9
    assert answer.json() == {"status": "success", "message": "Still downloading."}


def test_while_prefect_is_away_the_delivery_is_kept(inline: Receiver) -> None:
    """The answer does not depend on Prefect: it is in the inbox, and goes on from there."""
    inline.prefect.stop()
    assert inline.deliver("a", "hasty").json()["message"] == "Still downloading."
    assert inline.depth == 1
    inline.prefect.start()
    inline.until_empty()
    assert inline.prefect.message_ids == ["a"]


def test_two_deliveries_of_one_message_wait_for_one_run(inline: Receiver, pool: ThreadPoolExecutor) -> None:
    """A duplicate is told the same; and a later attempt at a delivery whose run has ended is told at once."""
    inline.prefect.delay = 0.5
    deliver = partial(inline.deliver, "a", timestamp="2026-11-30T12:00:00.123Z")
    answers = [pool.submit(deliver) for _ in range(4)]
    inline.until(lambda: "a" in inline.prefect.message_ids, "the run")
    inline.prefect.end("a", "COMPLETED", message=STORED)
    assert {answer.result().json()["message"] for answer in answers} == {"Saved 2 file(s)."}
    assert deliver().json()["message"] == "Saved 2 file(s)."
    assert len(inline.prefect.runs) == 1


def test_many_that_wait_cost_one_look(inline: Receiver, pool: ThreadPoolExecutor) -> None:
    """Twice a second for all of them, and none when nobody waits."""
    answers = [pool.submit(inline.deliver, f"m{n}") for n in range(8)]
    inline.until(lambda: len(inline.prefect.runs) == 8, "the runs")
    before, started = inline.prefect.looks, time.monotonic()
    inline.until(lambda: inline.prefect.looks - before >= 3, "some looks")
    assert inline.prefect.looks - before <= 2 * (time.monotonic() - started) + 1
    for n in range(8):
        inline.prefect.end(f"m{n}", "COMPLETED", message=STORED)
    assert all(answer.result().is_success for answer in answers)
    before = inline.prefect.looks
    time.sleep(1.5)
    assert inline.prefect.looks == before


def test_an_answer_at_once_asks_for_its_actions(inline: Receiver) -> None:
    """Also for a duplicate, since Emailgistics may not have got the first answer."""
    for _ in range(2):
        document = inline.deliver("a", "at-once").json()
        assert document["status"] == "success"
        assert document["actions"] == [TAG]


def test_nothing_to_do_asks_for_nothing(inline: Receiver) -> None:
    """A message without attachments was not saved."""
    assert inline.deliver("a", hasAttachments=False).json().keys() == {"status", "message"}


WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([], "the whole"),
    "unknown field": ({"default": {"wiat": 3}}, r"default\.wiat"),
    "too long": ({"default": {"wait": 99}}, r"default\.wait"),
    "unknown action": ({"default": {"actions": [{"type": "forwardMessage", "value": {}}]}}, "setCustomFields"),
    "no tags": ({"default": {"actions": [{"type": "tag", "value": {"tags": []}}]}}, "tags"),
    "an empty tag": ({"default": {"actions": [{"type": "tag", "value": {"tags": [" "]}}]}}, "tags"),
    "a number": ({"default": {"actions": [{"type": "setCustomFields", "value": {"a": 1}}]}}, "string"),
    "101 characters": (
        {"default": {"actions": [{"type": "setCustomFields", "value": {"a": "x" * 101}}]}},
        "100 characters",
    ),
    "no fields": ({"default": {"actions": [{"type": "setCustomFields", "value": {}}]}}, "value"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_answers_that_break_the_contract_are_refused(tmp_path: Path, kind: str) -> None:
    """At the start, naming the place: Emailgistics would drop them without a word."""
    document, told = WRONG[kind]
    path = tmp_path / "answers.yaml"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidResponses, match=told) as refused:
        load_responses(path, 0)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a: [", b"a: 1\n b: 2"])
def test_a_file_that_is_none_is_said_in_one_line(make: Callable[..., Receiver], tmp_path: Path, content: bytes) -> None:
    """The receiver does not start, and says which file."""
    path = tmp_path / "answers.yaml"
    if content is not None:
        path.write_bytes(content)
    receiver = make(options=("--answers", str(path)))
    with pytest.raises(RuntimeError):
        receiver.process.start()
    assert f"The file {path}" in receiver.log
    assert "Traceback" not in receiver.log


def test_what_the_file_does_not_say_is_the_default(tmp_path: Path) -> None:
    """An empty file is fine; a deployment that it does not name waits as the option says."""
    path = tmp_path / "answers.yaml"
    path.write_text("# nothing yet\n")
    assert load_responses(path, 5.0).of("default") == WebhookResponse(5.0)
    path.write_text("default: {actions: []}\nother: {wait: 0}\n")
    assert load_responses(path, 5.0).of("default") == WebhookResponse(5.0)
    assert load_responses(path, 5.0).of("other") == WebhookResponse(0.0)
