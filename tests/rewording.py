"""Every sentence of a run's state in other words: letters, digits and stops are replaced, one for one.

Twice reworded, a sentence is as it was. In a process of its own, `sitecustomize` of `tests/e2e/rewording` does it.
"""

import pkgutil
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from string import ascii_letters, ascii_lowercase, ascii_uppercase
from typing import Any

import prefect.states
import prefect.workers.base
import pytest

MAKERS = ("Cancelled", "Completed", "Crashed", "Failed", "Pending", "Running", "Scheduled")
"""What makes the states of all our runs, in `prefect.states`."""
_ROTATED = ascii_lowercase[13:] + ascii_lowercase[:13] + ascii_uppercase[13:] + ascii_uppercase[:13]
_OTHERS = dict(zip("0123456789.:;-", "٠١٢٣٤٥٦٧٨٩·∶⁏‐", strict=True))
_TABLE = str.maketrans(
    dict(zip(ascii_letters, _ROTATED, strict=True)) | _OTHERS | {other: known for known, other in _OTHERS.items()}
)


def reword(sentence: str) -> str:
    """The sentence without any of its words, digits and stops."""
    return sentence.translate(_TABLE)


def rewording(make: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of states whose messages are reworded."""

    @wraps(make)
    def made(*arguments: Any, message: str | None = None, **options: Any) -> Any:
        return make(*arguments, message=message and reword(message), **options)

    return made


def reword_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every module of the product make states with reworded messages."""
    product = import_module("attachments")
    for module in pkgutil.walk_packages(product.__path__, "attachments."):
        if not module.name.startswith(("attachments.sandbox", "attachments.demo")) and "__main__" not in module.name:
            import_module(module.name)
    makers = {name: getattr(prefect.states, name) for name in MAKERS}
    modules = [module for name, module in sys.modules.items() if name.startswith("attachments.")]
    for module in [*modules, prefect.workers.base]:
        for name, make in makers.items():
            if getattr(module, name, None) is make:
                monkeypatch.setattr(module, name, rewording(make))
