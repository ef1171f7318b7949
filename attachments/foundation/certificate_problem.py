"""Why a server's certificate was not accepted, and what to do. Knows nothing of the rest."""

import ssl

NOT_ITS_NAME = (62, 64)
"""OpenSSL's codes: the certificate is for another host, or for another address."""
EXPIRED = 10


def certificate_problem(error: BaseException) -> tuple[str, str] | None:
    """What is wrong and what to do, for an error of a connection whose cause is TLS; None for any other."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"No TLS connection comes about ({cause.reason or type(cause).__name__}).",
            "Check that HTTPS is spoken at this port; if it is plain HTTP, begin the URL with http://.",
        )
    what = f"The server's certificate is not accepted here ({cause.verify_message})."
    if cause.verify_code in NOT_ITS_NAME:
        return what, "Call the host by a name that the certificate is for."
    if cause.verify_code == EXPIRED:
        return what, "Renew it there."
    return what, (
        "To trust it, set SSL_CERT_FILE to a PEM file with this certificate, or with that of the authority that has "
        "issued it."
    )
