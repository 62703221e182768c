"""The server's certificate and the client certificate authorities, reloaded when their files change."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc

from twofold_server.config.settings import TlsSettings
from twofold_server.security.file_watcher import FileWatcher

log = logging.getLogger(__name__)

T = TypeVar("T")


def load_certificates(settings: TlsSettings) -> Certificates | None:
    """Return the certificate files of a TLS server, or None for plaintext."""
    if settings.certificate is None or settings.key is None:
        return None
    return Certificates(settings.certificate, settings.key, settings.client_ca)


def credentials_of(settings: TlsSettings) -> grpc.ServerCredentials | None:
    """Return the credentials of a TLS port, or None for plaintext. Raises OSError or ValueError if a file is invalid.

    The files are checked when a connection begins, and read again if they changed.
    """
    if (certificates := load_certificates(settings)) is None:
        return None
    return grpc.dynamic_ssl_server_credentials(
        certificates.read(),
        certificates.read_if_changed,  # type: ignore[arg-type] # The stubs do not know that None means no change.
        require_client_authentication=settings.client_ca is not None,
    )


class Certificates:
    """The files of a certificate, its key and, optionally, the client certificate authorities."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._watcher = FileWatcher(*(path for path in (certificate, key, client_ca) if path))

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of an HTTPS port, which requires no client certificates.

        Raises OSError or ValueError that names the file and the problem.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password, OpenSSL would prompt on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as error:
            files = f"tls-certificate {self._certificate.name} and tls-key {self._key.name}"
            raise ValueError(
                f"{files}: {error.reason or 'not valid PEM'}; use a PEM chain, and the unencrypted key of its first certificate"
            ) from error
        return context

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read the files for gRPC. Raises OSError or ValueError that names the file and the problem."""
        context = self.context()
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise ValueError(
                    f"tls-client-ca {self._client_ca.name}: {error.reason}; use PEM certificates"
                ) from error
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        authorities = self._client_ca.read_bytes() if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration if the files changed and are valid; None makes gRPC keep the current one."""
        return self._if_changed(self.read)

    def context_if_changed(self) -> ssl.SSLContext | None:
        """Return the TLS context if the files changed and are valid, else None."""
        return self._if_changed(self.context)

    def _if_changed(self, read: Callable[[], T]) -> T | None:
        # Certificate and key do not match while only one of them is replaced; the next connection checks again.
        if not self._watcher.has_changed():
            return None
        try:
            certificates = read()
        except (OSError, ValueError) as error:
            log.error("TLS files are invalid; the previous ones stay in force", extra={"reason": str(error)})  # noqa: TRY400 -- no bug of ours.
            return None
        log.info("TLS files reloaded", extra={"certificate": self._certificate})
        return certificates


def expiry_of(certificate: Path, key: Path) -> dt.datetime:
    """Return the expiry time of a certificate. Raises ssl.SSLCertVerificationError if it is not valid now."""
    # The standard library decodes only a peer's certificate, so one side of an in-memory handshake presents it to
    # the other side, which trusts only this certificate.
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key, password="")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side, server_side = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for side in (client_side, server_side, client_side):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return dt.datetime.fromtimestamp(
        ssl.cert_time_to_seconds(str((client_side.getpeercert() or {})["notAfter"])), dt.UTC
    )
