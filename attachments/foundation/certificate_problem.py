"""Explains why a server's certificate was not accepted, and what to do."""

import ssl

NOT_ITS_NAME = (62, 64)
"""OpenSSL's codes: the certificate is for another host, or for another address."""
EXPIRED = 10


def certificate_problem(error: BaseException) -> tuple[str, str] | None:
    """The problem and the remedy for a connection error caused by TLS; None for any other error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"The TLS handshake failed ({cause.reason or type(cause).__name__}).",
            "Check that the server uses HTTPS on this port; if it uses plain HTTP, begin the URL with http://.",
        )
    what = f"The server's certificate is not accepted here ({cause.verify_message})."
    if cause.verify_code in NOT_ITS_NAME:
        return what, "Use a host name that the certificate covers."
    if cause.verify_code == EXPIRED:
        return what, "Renew the server's certificate."
    return what, (
        "To trust it, set SSL_CERT_FILE to a PEM file with this certificate, or with that of the issuing authority."
    )
