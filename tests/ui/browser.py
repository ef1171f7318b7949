"""Chromium without a screen, on the Prefect UI of a running installation."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator, Page, ViewportSize, sync_playwright

CHROMIUM = "/usr/bin/chromium"
OFFLINE = [
    "--no-sandbox",  # tests run as root, on machines of their own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WINDOW: ViewportSize = {"width": 1280, "height": 900}
PATIENCE = 120_000
"""Milliseconds for a page on a busy machine."""


UI = "/v2"
"""The interface that Prefect's server opens by itself."""


@contextmanager
def opened(base_url: str) -> Iterator[Page]:
    """A page whose paths are relative to this address of Prefect's server."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        try:
            context = browser.new_context(base_url=base_url, viewport=WINDOW, locale="en-GB", timezone_id="UTC")
            context.set_default_timeout(PATIENCE)
            yield context.new_page()
        finally:
            browser.close()


def log_in(page: Page, password: str) -> None:
    """Give the UI Prefect's password, which it asks for and then remembers."""
    page.goto("/")
    asked = page.locator("input[type=password]")
    asked.fill(password)
    page.keyboard.press("Enter")
    asked.wait_for(state="hidden")


def show(page: Page, path: str, *, until: str) -> None:
    """Open a path and wait until this text can be seen."""
    page.goto(f"{UI}{path}")
    page.get_by_text(until).first.wait_for()
    page.wait_for_load_state("networkidle")


def field(page: Page, parameter: str) -> Locator:
    """The part of a deployment's run form that belongs to one parameter: its label, description and inputs."""
    label = page.locator("label").filter(has_text=re.compile(rf"^{parameter}( \(Optional\))?$"))
    return label.locator("xpath=ancestor::div[contains(concat(' ', @class, ' '), ' group ')][1]")


def fill(page: Page, parameter: str, value: Any, *, kind: str | None = None) -> None:
    """Type a value into a parameter's field, after choosing its kind where the form offers several."""
    if kind is not None:
        choose(page, parameter, kind)
    field(page, parameter).locator("textarea, input, [contenteditable=true]").first.fill(str(value))


def choose(page: Page, parameter: str, kind: str) -> None:
    """Choose which kind of value a parameter gets."""
    part = field(page, parameter)
    part.get_by_role("tab", name=kind, exact=True).click()
    part.get_by_role("tab", name=kind, exact=True, selected=True).wait_for()
    page.wait_for_timeout(2000)  # until then Submit does nothing, and nothing on the page says so
