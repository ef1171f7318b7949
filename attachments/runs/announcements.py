"""Events that must reach Prefect: each is sent by a request with a response, and is then read back.

`prefect.events.emit_event` sends in the background, over a connection that does not report whether an event arrived. A
request reports that Prefect has accepted it. But the open-source server keeps events in memory until it writes them
some seconds later, so a server that is killed, or drops a batch (docs/upstream), loses accepted events. Therefore
`announce` waits until the event is in Prefect's database, and sends it again if it does not appear. Prefect Cloud's
response is the confirmation, so nothing is read back there.

Each event's id is derived from its content, so an event that is sent twice is one event.
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

FIRST_PAUSE, LONGEST_PAUSE = 0.6, 2.0  # seconds between reads, growing by half each time; a read costs a request
LOOKS = 18  # about half a minute in all, without the time in which Prefect does not respond
SEND_AGAIN = 6  # reads after which a missing event is sent again
PAGE = 50  # events in one response of Prefect
AROUND = timedelta(days=2)  # maximum difference of clocks
KEPT = timedelta(days=366)  # how far back an event is searched
TAGS = 50  # tags of the run that an event has; Prefect rejects an event with a hundred related resources


def event(name: str, *, about: str, subject: str, event_id: UUID, payload: Mapping[str, object]) -> Event:
    """An event about `emailgistics.<about>.<subject>`, related to the flow run that sends it, like Prefect's own
    events."""
    return Event(
        event=name,
        resource={"prefect.resource.id": f"emailgistics.{about}.{subject}", "prefect.resource.name": subject},
        related=_related(),
        payload=dict(payload),
        id=event_id,
    )


def send(events: Iterable[Event]) -> None:
    """Send events in one request, and retry until Prefect accepts it. Raises `PrefectLost` if it stays unavailable."""
    body = [each.model_dump(mode="json") for each in events]
    if body:
        retry_until_available(lambda: get_client(sync_client=True).request("POST", "/events", json=body))


def announce(events: Iterable[Event], *, look_first: bool = False) -> bool:
    """Send events, and return once they are in Prefect's database.

    With `look_first`, for events that may have been sent before, those in the database are not sent again. If an event
    does not appear although Prefect accepts it repeatedly, a warning is logged: automations have received it, but a
    server that keeps no events cannot return it.

    Returns whether all of them are in the database.

    Raises:
        PrefectLost: Prefect has not responded for a long time.
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
        "Prefect has accepted %s, but does not return them. Check that its event persister is enabled and its database "
        "writable.",
        counted(len(left), "event"),
    )
    return False


def _known(client: SyncPrefectClient, ids: Iterable[UUID]) -> set[UUID]:
    """The events of these that are in Prefect's database."""
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
    """The same related resources as `emit_event`. Only the deployment's name needs a request, and it is cached."""
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
