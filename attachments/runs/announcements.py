"""Events that must reach Prefect: each is sent by a request that Prefect answers, and is then read back.

`prefect.events.emit_event` sends in the background, over a connection that says nothing of what becomes of an event.
A request says that Prefect has taken it. But the open-source server keeps events in memory until it writes them some
seconds later, and a server that is killed, or drops a batch (docs/upstream), loses what it has taken. So whoever has
to be sure waits until the event stands in Prefect's database, and sends it again when it does not come to stand there.
Prefect Cloud's answer is the confirmation, so nothing is read back there.

Each event has an id of its own that is made from what it tells of: sent twice, it is one event.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect import runtime
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext
from prefect.events import Event
from prefect.events.filters import EventFilter, EventIDFilter, EventOccurredFilter
from prefect.events.related import tags_as_related_resources
from prefect.events.schemas.events import RelatedResource
from prefect.logging import get_run_logger

from attachments.foundation import cancellation
from attachments.foundation.numerals import counted
from attachments.runs.errors import retry_until_available

FIRST_PAUSE, LONGEST_PAUSE = 0.6, 2.0  # seconds between looks, half as long again each time; a look costs a request
LOOKS = 18  # about half a minute in all, not counting a Prefect that does not answer
SEND_AGAIN = 6  # looks after which an event that is not there yet is sent again
PAGE = 50  # events in one answer of Prefect's
AROUND = timedelta(days=2)  # by which clocks may differ
KEPT = timedelta(days=366)  # how far back an event is looked for
TAGS = 50  # that an event names of its run's; Prefect refuses an event that names a hundred things


def event(name: str, *, about: str, subject: str, event_id: UUID, payload: Mapping[str, object]) -> Event:
    """An event about `emailgistics.<about>.<subject>`, related to the flow run that tells it as Prefect's own are."""
    return Event(
        event=name,
        resource={"prefect.resource.id": f"emailgistics.{about}.{subject}", "prefect.resource.name": subject},
        related=_related(),
        payload=dict(payload),
        id=event_id,
    )


def send(events: Iterable[Event]) -> None:
    """Send events, in one request, until Prefect has taken them. Raises `PrefectLost` when it stays away."""
    body = [each.model_dump(mode="json") for each in events]
    if body:
        retry_until_available(lambda: get_client(sync_client=True).request("POST", "/events", json=body))


def announce(events: Iterable[Event], *, look_first: bool = False) -> bool:
    """Send events, and return once they stand in Prefect's database.

    With `look_first`, for what may have been sent before, those that stand there are not sent again. Where one does
    not come to stand there although Prefect takes it again and again, there is a warning: it has been taken, and
    automations have had it, but a Prefect that keeps no events cannot show it.

    Returns whether all of them stand there.

    Raises:
        PrefectLost: Prefect has not answered for a long while.
    """
    left = {each.id: each for each in events}
    if not left:
        return True
    client = get_client(sync_client=True)
    if client.server_type == ServerType.CLOUD:
        send(left.values())
        return True
    pause = FIRST_PAUSE
    for look in range(LOOKS):
        if look or look_first:
            for known in _known(client, left):
                del left[known]
        if not left:
            return True
        if look % SEND_AGAIN == 0:
            send(left.values())
        cancellation.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.5)
    get_run_logger().warning(
        "Prefect has taken %s, but does not show that. Is its event persister on, and its database writable?",
        counted(len(left), "event"),
    )
    return False


def _known(client: SyncPrefectClient, ids: Iterable[UUID]) -> set[UUID]:
    """Those of these events that stand in Prefect's database."""
    event_ids, known = list(ids), set[UUID]()
    now = datetime.now(UTC)
    for at in range(0, len(event_ids), PAGE):
        page = EventFilter(
            id=EventIDFilter(id=event_ids[at : at + PAGE]),
            occurred=EventOccurredFilter(since=now - KEPT, until=now + AROUND),
        )
        found = retry_until_available(lambda page=page: client.read_events(page, limit=PAGE))  # type: ignore[misc]  # bound now
        known.update(each.id for each in found.events)
    return known


def _related() -> list[RelatedResource]:
    """What `emit_event` relates an event to. No request is made for it but for a deployment's name, which is kept."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if context is None or run is None:
        return []
    things = [
        ("flow-run", run.id, run.name),
        ("flow", run.flow_id, context.flow.name if context.flow else None),
        ("deployment", run.deployment_id, retry_until_available(lambda: runtime.deployment.name)),
        ("work-queue", run.work_queue_id, run.work_queue_name),
        ("work-pool", run.work_pool_id, run.work_pool_name),
    ]
    return [
        *(_resource(kind, thing, name) for kind, thing, name in things if thing),
        *tags_as_related_resources(sorted(run.tags)[:TAGS]),
    ]


def _resource(kind: str, thing: UUID, name: str | None) -> RelatedResource:
    named = {"prefect.resource.name": name} if name else {}
    return RelatedResource({"prefect.resource.id": f"prefect.{kind}.{thing}", "prefect.resource.role": kind, **named})
