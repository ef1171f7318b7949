"""Names in the paths of Prefect's API."""

from urllib.parse import quote


def path_part(name: str) -> str:
    """A name as a part of a path. Prefect's client puts names there as they are, and `?` or `#` would end the path."""
    quoted = quote(name, safe="")
    # RFC 3986, section 5.2.4: these would be removed on the way, and with them what stands before.
    return quoted.replace(".", "%2E") if name in {".", ".."} else quoted
