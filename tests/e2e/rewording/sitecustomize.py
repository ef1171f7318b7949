"""Python imports this by itself where `PYTHONPATH` leads to it: the whole process makes states in other words."""

import prefect.states

from tests.rewording import MAKERS, rewording

for name in MAKERS:
    setattr(prefect.states, name, rewording(getattr(prefect.states, name)))
