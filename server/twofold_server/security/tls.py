"""The server's certificate, and the authorities of its callers', as the files have them now."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc

from twofold_server.config.settings import Config
from twofold_server.security.file_watcher import FileWatcher

log = logging.getLogger(__name__)

_Read = TypeVar("_Read")


def load_certificates(config: Config) -> Certificates | None:
    """Return the files of a server with TLS, or None for plaintext."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return Certificates(config.tls_certificate, config.tls_key, config.tls_client_ca)


def credentials_of(config: Config) -> grpc.ServerCredentials | None:
    """Return what a TLS port needs, or None for plaintext. Raises OSError or ValueError if a file is wrong.

    The files are looked at whenever a connection begins, and read again if they have changed.
    """
    if (certificates := load_certificates(config)) is None:
        return None
    return grpc.dynamic_ssl_server_credentials(
        certificates.read(),
        certificates.read_if_changed,  # type: ignore[arg-type] # The stubs do not know that None means no change.
        require_client_authentication=config.tls_client_ca is not None,
    )


class Certificates:
    """Read the files of a certificate, its key, and perhaps the authorities of client certificates."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._watched = FileWatcher(*(path for path in (certificate, key, client_ca) if path))

    def context(self) -> ssl.SSLContext:
        """Read the files for a port of HTTPS, which asks for no certificate of its callers.

        Raises OSError or ValueError that names the file and what is wrong.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password, it would ask the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as error:
            wrong = f"tls-certificate {self._certificate.name} and tls-key {self._key.name}"
            raise ValueError(
                f"{wrong}: {error.reason}; give a PEM chain and the unencrypted key of its first"
            ) from error
        return context

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read the files for gRPC. Raises OSError or ValueError that names the file and what is wrong."""
        context = self.context()
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise ValueError(
                    f"tls-client-ca {self._client_ca.name}: {error.reason}; give PEM certificates"
                ) from error
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        authorities = self._client_ca.read_bytes() if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Read the files again if they have changed. None, which lets gRPC go on with what it has, if not, or if they are wrong."""
        return self._if_changed(self.read)

    def context_if_changed(self) -> ssl.SSLContext | None:
        """Read the files again if they have changed. None if not, or if they are wrong."""
        return self._if_changed(self.context)

    def _if_changed(self, read: Callable[[], _Read]) -> _Read | None:
        # A certificate and its key are two files: between the two, they do not fit, and the next connection looks again.
        if not self._watched.has_changed():
            return None
        try:
            certificates = read()
        except (OSError, ValueError) as error:
            log.error("the TLS files are wrong, the old ones stay in force", extra={"reason": str(error)})  # noqa: TRY400 -- no bug of ours.
            return None
        log.info("TLS files read again", extra={"certificate": self._certificate})
        return certificates


def expiry_of(certificate: Path, key: Path) -> dt.datetime:
    """Return when a certificate ends. Raises ssl.SSLCertVerificationError that says so if it is not good now."""
    # The standard library shows a certificate only to whom it was presented: so one half of a handshake in memory
    # presents it, and the other one trusts nobody but it.
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key, password="")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, presenting = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for side in (asking, presenting, asking):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(str((asking.getpeercert() or {})["notAfter"])), dt.UTC)
