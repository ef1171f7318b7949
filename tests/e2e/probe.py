"""A flow for the soak: what the warm worker's process holds, as seen from a run in it."""

import gc

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.states import Completed


@flow(name="probe", persist_result=False)
def probe() -> State[None]:
    """The clients that there are, and all objects: `clients objects`."""
    gc.collect()
    clients = sum(isinstance(found, SyncPrefectClient) for found in gc.get_objects())
    return Completed(message=f"{clients} {len(gc.get_objects())}")
