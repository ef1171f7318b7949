"""A person runs each deployment from the Prefect UI, without reading code."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.e2e.installation import Installation, installation
from tests.ui.browser import choose, field, fill, log_in, opened, show

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("ui")) as running:
        yield running


@pytest.fixture
def page(everything: Installation) -> Iterator[Page]:
    with opened(everything.stack.api_url.removesuffix("/api")) as page:
        log_in(page, ":".join(everything.stack.prefect_password))
        yield page


def test_every_parameter_of_every_deployment_has_a_field_and_says_what_it_is(
    everything: Installation, page: Page
) -> None:
    """What the form shows beside a field is the flow's own description of the parameter."""
    deployments = everything.deployments()
    assert len(deployments) >= 2
    for deployment in deployments:
        show(page, f"/deployments/deployment/{deployment['id']}/run", until="Run Name")
        for name, schema in deployment["parameter_openapi_schema"]["properties"].items():
            part = field(page, name)
            part.wait_for()
            what = f"{deployment['name']}: {name}"
            assert schema.get("description"), what
            # The form renders Markdown: the text without its marks must be there.
            assert schema["description"].replace("`", "").split("\n")[0][:40] in part.inner_text(), what


def test_a_message_is_downloaded_from_the_form(everything: Installation, page: Page) -> None:
    """An id is typed, a filter is chosen, Submit: the run does what was typed."""
    message = everything.sandbox.control.add_message(attachments=[{"name": "form.pdf", "bytes": 1000}])
    deployment = everything.deployment("download-attachments/default")
    show(page, f"/deployments/deployment/{deployment['id']}/run", until="Run Name")
    fill(page, "message_id", message["id"])
    fill(page, "mailbox", "invoices@example.com", kind="str")
    choose(page, "filter", "Filter")
    page.get_by_role("button", name="Submit").click()
    manifest = everything.complete_manifest(message)
    assert manifest.mailbox == "invoices@example.com"
    assert len(everything.files(message)) == 1
