"""What the Prefect UI shows beside a block."""

from prefect.settings import PREFECT_UI_URL
from pydantic import HttpUrl, TypeAdapter, ValidationError

PATH = "ico/android-chrome-512x512.png"
"""Prefect's own icon, which its server brings along: it shows without internet access."""


def logo() -> HttpUrl | None:
    """An image on Prefect's server, None where its address is not known.

    Without one the UI shows a broken image. Prefect takes no `data:` URL and no path for it.
    """
    try:
        return TypeAdapter(HttpUrl).validate_python(f"{(PREFECT_UI_URL.value() or '').rstrip('/')}/{PATH}")
    except ValidationError:
        return None
