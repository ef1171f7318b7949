"""Names in the paths of Prefect's API."""

from urllib.parse import quote


def path_part(name: str) -> str:
    """A name as a part of a path. Prefect's client puts names there as they are, and `?` or `#` would end the path."""
    return quote(name, safe="")
