"""What the environment says of proxies and certificates, to every client of ours at once. Knows nothing of the rest."""

import httpx


def settings_problem() -> tuple[str, str] | None:
    """What is wrong with the environment's proxies or certificates, and the remedy; None when clients can use them.

    A proxy that needs a missing package raises ImportError elsewhere, which is reported there.
    """
    try:
        httpx.Client().close()
    except (OSError, ValueError, httpx.InvalidURL) as error:
        return (
            f"The proxy or the certificates that the environment names cannot be used ({type(error).__name__}).",
            "Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
        )
    except ImportError:
        return None
    return None
