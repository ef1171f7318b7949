"""What a user fills into the Prefect UI's forms."""

import re
from pathlib import Path

import prefect
import pyrage
import pytest
from prefect.blocks.core import Block
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.prefect_api.logo import PATH
from attachments.prefect_api.logo import logo as block_logo
from attachments.runs.block_problems import reasons
from attachments.storage.errors import PlaintextRefused

RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())


@pytest.mark.parametrize("block", [EmailgisticsAccount, AttachmentStore])
class TestAsPrefectWantsBlocks(BlockStandardTestSuite):
    """Prefect's own suite: descriptions on every field, and an example."""

    test_has_a_valid_image = None  # Prefect's server has it, and the test would download it
    test_has_a_documentation_url = None  # see test_no_link_leads_to_other_peoples_documentation

    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:
        return block


@pytest.mark.parametrize("block", [EmailgisticsAccount, AttachmentStore])
def test_every_field_of_a_form_has_a_title_and_a_description(block: type[Block]) -> None:
    """A person can fill the form in without reading code."""
    fields = block.model_json_schema()["properties"]
    assert fields
    assert [name for name, field in fields.items() if not field.get("title") or not field.get("description")] == []


def test_the_key_is_masked() -> None:
    """The API key shows neither in a representation nor in a plain dump; Prefect knows it as a secret."""
    account = EmailgisticsAccount(api_key=SecretStr("very-secret"))
    assert "very-secret" not in repr(account) + str(account) + str(account.model_dump())
    assert EmailgisticsAccount.model_json_schema()["secret_fields"] == ["api_key"]


def test_storage_options_are_masked() -> None:
    """Options may hold credentials, so they are secret as a whole."""
    assert AttachmentStore.model_json_schema()["secret_fields"] == ["options.*"]


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"base_url": "http://c1.emailgistics.com/api/v1", "api_key": "k"}, "must start with https://"),
        ({"base_url": "https://c1.emailgistics.com", "api_key": "k"}, "lacks its path"),
        ({"base_url": "c1.emailgistics.com", "api_key": "k"}, "base URL"),
        ({"api_key": ""}, "API key is empty"),
        ({"api_key": "two words"}, "blanks"),
        ({"api_key": "k", "list_timeout": 0}, "greater than 0"),
    ],
)
def test_a_wrong_account_is_refused_with_what_to_change(fields: dict[str, object], remedy: str) -> None:
    """Validation says what is wrong in words for people, and never shows the key."""
    with pytest.raises(ValidationError) as refusal:
        EmailgisticsAccount(**fields)  # type: ignore[arg-type]
    assert remedy in str(refusal.value)
    assert "two words" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "empty"),
        ("github://x/y", "nothing could be written"),
        ("zip::file:///x", "chains"),
        ("file://srv/attachments", "write it as file:///srv/attachments"),
        ("srv/attachments", "write it as file:///srv/attachments"),
        ("s3:/bucket", "write it as s3://bucket"),
    ],
)
def test_a_wrong_store_is_refused_with_what_to_change(url: str, remedy: str) -> None:
    """A URL that cannot be written to atomically is refused when the block is made, not when mail arrives."""
    with pytest.raises(ValidationError, match=remedy):
        AttachmentStore(url=url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/srv/a", "file:///srv/a"),
        ("file://localhost/srv/a/", "file:///srv/a"),
        (" s3://bucket/x\n", "s3://bucket/x"),
        ("~/attachments", "~/attachments"),
    ],
)
def test_the_form_shows_where_the_folder_is(url: str, shown: str) -> None:
    """Except a home folder, which belongs to the worker's user."""
    assert AttachmentStore(url=url).url == shown


def test_options_that_the_store_does_not_take_are_refused() -> None:
    """Set-up must not say "all set" for a store that every run will refuse; values of options are not shown."""
    with pytest.raises(ValidationError, match="remove key from the store's options") as refusal:
        AttachmentStore(url="file:///srv/attachments", options={"key": "very-secret"})  # type: ignore[arg-type]
    assert "very-secret" not in str(refusal.value)


AGE = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"url": "file:///srv/x", "s3_encryption": "SSE-S3"}, "not supported on a local folder"),
        ({"url": "s3://bucket/x", "kms_key": "k"}, "needs the encryption SSE-KMS"),
        ({"url": "s3://bucket/x", "azure_encryption_scope": "k"}, "not supported on S3"),
        ({"url": "ftp://x", "kms_key": "k"}, "use age recipients instead"),
        ({"url": "s3://bucket/x", "options": {"sekret": "very-secret"}}, "no option sekret"),
        ({"url": "file:///srv/x", "age_recipients": ["very-secret"]}, "age recipient 1 is not a public key"),
        ({"url": "file:///srv/x", "age_recipients": [AGE, "age1very-secret"]}, "age recipient 2 is mistyped"),
    ],
)
def test_encryption_that_the_store_cannot_do_is_refused(fields: dict[str, object], remedy: str) -> None:
    """Nobody must believe that mail is encrypted when it is not; and nothing secret is shown for it."""
    with pytest.raises(ValidationError) as refusal:
        AttachmentStore(**fields)  # type: ignore[arg-type]
    assert remedy in str(refusal.value)
    assert "very-secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("recipients", "said"),
    [
        ([""], "age recipient 1 is blank"),
        ([" \n"], "age recipient 1 is blank"),
        ([RECIPIENT, ""], "age recipient 2 is blank"),
        ([RECIPIENT, RECIPIENT[:-1]], "age recipient 2 is mistyped or incomplete"),
        (["age1" + "q" * 52 + "w5cu4q"], "age recipient 1 "),
    ],
    ids=["nothing", "blank", "second", "mistyped", "zeros"],
)
def test_a_recipient_that_cannot_be_used_is_refused_by_its_number(recipients: list[str], said: str) -> None:
    """In the form, and by a run whose block was saved unchecked: nothing is stored then."""
    with pytest.raises(ValidationError, match=said) as caught:
        AttachmentStore(url="file:///srv/attachments", age_recipients=recipients)
    assert reasons(caught.value).startswith("age recipient")


def test_a_block_without_recipients_stores_nothing_where_they_have_been_lost(tmp_path: Path) -> None:
    """Until plaintext is allowed explicitly; the process keeps one store for each of these."""
    url, message, attachment = tmp_path.as_uri(), "0" * 32, "1" * 32
    store = AttachmentStore(url=url, age_recipients=[f" {RECIPIENT} "]).store()
    assert store.write(message, attachment, "a.pdf", [b"x"]).key.endswith(".age")
    with pytest.raises(PlaintextRefused):
        AttachmentStore(url=url).store().write(message, "2" * 32, "a.pdf", [b"x"])
    allowed = AttachmentStore(url=url, allow_plaintext=True).store()
    assert allowed.write(message, "2" * 32, "a.pdf", [b"x"]).key.endswith("a.pdf")


def test_encryption_may_be_left_blank_in_the_form(tmp_path: Path) -> None:
    """A form sends an empty text for what was emptied: that is no encryption, not a wrong one."""
    block = AttachmentStore(url=str(tmp_path), s3_encryption="", kms_key=" ", azure_encryption_scope="")  # type: ignore[arg-type]
    assert (block.s3_encryption, block.kms_key, block.azure_encryption_scope) == (None, None, None)
    assert AttachmentStore(url=str(tmp_path), age_recipients=[f" {AGE}"]).store() is not block.store()


def test_a_client_and_a_store_are_made_once_for_a_configuration(tmp_path: Path) -> None:
    """Connections are reused between runs: equal blocks share one store."""
    first, second = AttachmentStore(url=str(tmp_path)), AttachmentStore(url=str(tmp_path))
    assert first.store() is second.store()


@pytest.mark.parametrize("block", [EmailgisticsAccount, AttachmentStore])
def test_a_form_shows_no_markdown_as_it_is_typed(block: type[Block]) -> None:
    """The Prefect UI shows the description of a field as plain text, and that of a block as Markdown."""
    for field in block.model_json_schema()["properties"].values():
        assert not re.search(r"[`*_]{1,2}\w", field["description"]), field["description"]


@pytest.mark.parametrize(
    ("api", "logo"),
    [
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/ico/android-chrome-512x512.png"),
        ("https://prefect.example.com/sub/api", "https://prefect.example.com/sub/ico/android-chrome-512x512.png"),
        ("nonsense", None),
        (None, None),
    ],
)
def test_a_block_has_a_logo_that_prefects_own_server_brings_along(api: str | None, logo: str | None) -> None:
    """It shows without internet access, and a wrong address keeps nobody from loading the block."""
    with temporary_settings({PREFECT_API_URL: api}, restore_defaults={PREFECT_UI_URL}):
        found = block_logo()
    assert (str(found) if found else None) == logo
    if logo:
        assert (Path(prefect.__ui_static_path__) / PATH).is_file()


def test_no_link_leads_to_other_peoples_documentation() -> None:
    """What a store needs is in this project's docs/stores.md, which has no public address."""
    assert AttachmentStore._documentation_url is None
    assert "docs/stores.md" in AttachmentStore.get_description()
    assert str(EmailgisticsAccount._documentation_url).startswith("https://apidocs.emailgistics.com")
