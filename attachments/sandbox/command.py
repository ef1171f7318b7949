"""The sandbox's options. The sandbox is imported only when it runs, so that the help appears at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from cyclopts import Parameter


def _converted(convert: Callable[[str], Any], metavar: str) -> Parameter:
    return Parameter(converter=lambda _, tokens: convert(tokens[0].value), n_tokens=1, metavar=metavar)


def _limit(text: str) -> int | None:
    if text != "off" and not text.isdecimal():
        raise ValueError("give a number of calls, or 'off'")
    return None if text == "off" else int(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("give a number of seconds, such as 60") from None


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) not in range(2**16):
        raise ValueError("give a number from 0 to 65535")
    return int(text)


def _url(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        is_usable = url.scheme in ("http", "https") and url.port != 0 and bool((url.hostname or "").encode("idna"))
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError("give a URL such as http://127.0.0.1:8080/webhooks/default")
    return url


def sandbox(
    *,
    mail: Path | None = None,
    host: Annotated[str, Parameter(metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, _converted(_port, "PORT")] = 0,
    key: Annotated[str, Parameter(metavar="KEY")] = "sandbox-key",
    limit: Annotated[int | None, _converted(_limit, "CALLS")] = 100,
    window: Annotated[float, _converted(_seconds, "SECONDS")] = 60.0,
    deliver_to: Annotated[SplitResult | None, _converted(_url, "URL")] = None,
    port_file: Path | None = None,
) -> int:
    r"""Run a stand-in Emailgistics: its API, and a sender of webhooks.

    EMAILGISTICS_WEBHOOK_SECRET, or the file that EMAILGISTICS_WEBHOOK_SECRET_FILE
    names, contains the secret of the webhooks. For example:
      attachments sandbox --mail ~/some-mail --port 8025
      attachments sandbox --mail ~/some-mail \
        --deliver-to http://127.0.0.1:8080/webhooks/default

    Args:
        mail: A file, or a folder of .eml and .emlx files, mbox files, Maildir and MH folders.
        host: The address to listen on.
        port: The port to listen on; 0 lets the system choose.
        key: The API key, with every scope and mailbox.
        limit: The account's calls in a window, or 'off'.
        window: The length of a window.
        deliver_to: Deliver a webhook for every message of --mail once, as soon as something listens there.
        port_file: Write the port to this file once the sandbox listens.
    """
    from attachments.sandbox.run import Options, run  # noqa: PLC0415  its HTTP server takes a while to import

    return run(
        Options(
            mail=mail,
            host=host,
            port=port,
            key=key,
            limit=limit,
            window=window,
            deliver_to=deliver_to,
            port_file=port_file,
        )
    )
