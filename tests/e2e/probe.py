"""A flow for the soak: what the warm worker's process holds, as seen from a run in it."""

import gc
from typing import Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed


@flow(name="probe", persist_result=False)
def probe() -> State[None]:
    """The layers of this run's own client, the clients that there are, and all objects: `layers clients objects`."""
    gc.collect()
    transport: Any = get_client(sync_client=True)._client._transport
    layers = 1
    while (transport := getattr(transport, "inner", None)) is not None:
        layers += 1
    clients = sum(isinstance(found, SyncPrefectClient) for found in gc.get_objects())
    return Completed(message=f"{layers} {clients} {len(gc.get_objects())}")
