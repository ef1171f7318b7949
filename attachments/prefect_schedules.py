"""Lets Prefect's server make the runs of schedules with SQLAlchemy 2.1.

Prefect 3.8.8 inserts them by dictionaries that hold the run's state besides its columns. SQLAlchemy 2.0 left out what
is no column; 2.1 refuses a hybrid property that does not say what becomes of its value ("Can't evaluate bulk DML
statement"). The server then makes no run of any schedule, and says so in its own log alone. SQLAlchemy below 2.1 is no
way out: with SQLite, such a server stands still for a minute now and then (docs/decisions.md).

The server loads every package that brings workers, so this reaches it wherever we are installed beside it.
"""

import sys
from collections.abc import MutableMapping
from typing import Any

MODELS = "prefect.server.database.orm_models"


def mend_schedules() -> None:
    """Say that the state of a run is left out there, unless Prefect says something. Does nothing but in a server."""
    models = sys.modules.get(MODELS)
    state = vars(models.FlowRun).get("state") if models is not None else None
    changes: Any = getattr(state, "inplace", None)
    if hasattr(changes, "bulk_dml") and getattr(state, "bulk_dml_setter", None) is None:
        changes.bulk_dml(_left_out)


def _left_out(_: type, __: MutableMapping[str, Any], ___: object) -> None:
    """The server writes the states by a statement of their own."""
