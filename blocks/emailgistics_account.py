"""The block of an Emailgistics account: the API's address, key, limits and timeouts."""

from functools import cache, lru_cache

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr, field_validator

from attachments.emailgistics import EmailgisticsClient
from attachments.emailgistics.client import checked_base_url, checked_key
from attachments.prefect_api.logo import logo
from attachments.rate_limit.pacer import PrefectPacer


class EmailgisticsAccount(Block):
    """An account on Emailgistics, from which attachments are downloaded.

    Example:
        ```python
        from attachments.blocks import EmailgisticsAccount

        account = EmailgisticsAccount.load("BLOCK_NAME")
        account.client().list_attachments(message_id)
        ```
    """

    _block_type_name = "Emailgistics Account"
    _block_type_slug = "emailgistics-account"
    _description = "An account on Emailgistics, from which mail attachments are downloaded."
    _logo_url = logo()
    _documentation_url = "https://apidocs.emailgistics.com"  # type: ignore[assignment]  # as Prefect's own blocks do

    model_config = ConfigDict(hide_input_in_errors=True)  # an error must not show the key

    base_url: str = Field(
        default="https://c1.emailgistics.com/api/v1",
        title="Base URL",
        description="The API of your region, as Emailgistics Admin shows it. HTTPS only.",
    )
    api_key: SecretStr = Field(
        default=...,
        title="API key",
        description="An API key with the scopes messages:read and messages:content, created in Emailgistics Admin.",
    )
    limit_name: str = Field(
        default="emailgistics-api",
        title="Pacing limit",
        description=(
            "The Prefect global concurrency limit whose slots the calls take: calls in any 60 seconds. "
            "Each Emailgistics account needs its own."
        ),
    )
    backlog_limit_name: str = Field(
        default="emailgistics-backfill",
        title="Backfill's pacing limit",
        description=(
            "The Prefect global concurrency limit whose slots the calls of a backfill take as well: the rest of the "
            "pacing limit is reserved for live mail."
        ),
    )
    list_timeout: float = Field(
        default=30, gt=0, title="Listing time-out", description="Seconds to wait for a message's list of attachments."
    )
    download_timeout: float = Field(
        default=300,
        gt=0,
        title="Download time-out",
        description="Seconds without a byte before a download is aborted.",
    )
    download_deadline: float = Field(
        default=1800, gt=0, title="Download deadline", description="Seconds that a whole download may take."
    )

    @field_validator("base_url")
    @classmethod
    def _base_url_is_safe(cls, value: str) -> str:
        if checked_base_url(value).path.strip("/") == "":
            raise ValueError("The base URL lacks its path: write it as https://c1.emailgistics.com/api/v1")
        return value

    @field_validator("api_key")
    @classmethod
    def _api_key_is_sane(cls, value: SecretStr) -> SecretStr:
        checked_key(value.get_secret_value())
        return value

    def client(self) -> EmailgisticsClient:
        """The client of this account: one for each process and configuration, so that connections are reused. Threads
        may share it. Its calls stay within the limits."""
        return _client(
            self.base_url,
            self.api_key.get_secret_value(),
            self.limit_name,
            self.backlog_limit_name,
            self.list_timeout,
            self.download_timeout,
            self.download_deadline,
        )


@lru_cache(maxsize=32)
def _client(
    base_url: str,
    api_key: str,
    limit_name: str,
    backlog_limit_name: str,
    list_timeout: float,
    download_timeout: float,
    download_deadline: float,
) -> EmailgisticsClient:
    return EmailgisticsClient(
        base_url,
        api_key,
        pacer=_pacer(limit_name, backlog_limit_name),
        list_timeout=list_timeout,
        download_timeout=download_timeout,
        download_deadline=download_deadline,
    )


@cache  # never dropped, because each has a thread and two connections
def _pacer(limit_name: str, backlog_limit_name: str) -> PrefectPacer:
    return PrefectPacer(limit_name, backlog_limit_name)
