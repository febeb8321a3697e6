"""Encrypts the service's own port by TLS; the certificate's files are checked before anything starts.

A proxy or Kubernetes ingress usually encrypts, and then this is not set. It stays because a laptop or a single machine
without such a proxy has no other way to keep API keys and images from the network, and because it costs little: this
file, two settings, and a few lines of the deployment, as HAProxy or Serve's proxy do the encryption.
"""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import model_validator

from pipelines.serve.errors import ServeError
from vlmodel.config import ConfigSection


class TLSConfig(ConfigSection):
    """Settings of TLS at the service's own port, if no proxy before it encrypts."""

    certificate: str = ""
    """PEM file of the certificate and the chain to its authority, on each node; "" serves plain HTTP."""

    key: str = ""
    """PEM file of the certificate's private key, without a passphrase, on each node."""

    @model_validator(mode="after")
    def _check_certificate_and_key(self) -> TLSConfig:
        if bool(self.certificate) != bool(self.key):
            missing = "key" if self.certificate else "certificate"
            raise ValueError(f"certificate and key belong together, and there is no {missing}; name both, or none")
        return self

    @property
    def is_active(self) -> bool:
        return bool(self.certificate)

    @property
    def files(self) -> tuple[Path, Path]:
        """The paths of certificate and key, absolute because Serve's proxies have other working directories."""
        return Path(self.certificate).expanduser().absolute(), Path(self.key).expanduser().absolute()


def check_tls_files(config: TLSConfig) -> None:
    """Raise an error for files that a server cannot use, or for a certificate that is expired or not yet valid.

    Raises:
        ServeError: naming the file and the remedy.
    """
    if not config.is_active:
        return
    certificate, key = config.files
    own = _load_own_certificate(certificate)
    now = datetime.now(UTC)
    if now >= own.not_valid_after_utc:
        raise ServeError(f"the certificate in '{certificate}' expired at {own.not_valid_after_utc}; renew it")
    if now < own.not_valid_before_utc:
        raise ServeError(
            f"the certificate in '{certificate}' is valid from {own.not_valid_before_utc} on; set this machine's "
            "clock, or take another"
        )
    _read_file(key, "serve.tls.key")

    def refuse_encrypted_key() -> NoReturn:
        raise ServeError(
            f"the key in '{key}' needs a passphrase, which a service cannot type; write it without one, readable "
            "by the service alone: openssl pkey -in KEY -out PLAIN"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=refuse_encrypted_key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ServeError(
                f"'{key}' is not the key of the first certificate in '{certificate}'; name its own key, and put the "
                "service's certificate before those of its authorities"
            ) from None
        raise ServeError(
            f"'{key}' cannot be used as the key of '{certificate}' ({error.reason or error}); it must be a private "
            "key in PEM"
        ) from None
    if (mode := stat.S_IMODE(key.stat().st_mode)) & 0o007:
        raise ServeError(
            f"'{key}' of serve.tls.key has mode {mode:o}: every user of this machine may read it; chmod 600 '{key}'"
        )


def ssl_context_for_own_certificate(config: TLSConfig) -> ssl.SSLContext | None:
    """Create an SSL context for this machine's own requests: it accepts exactly the service's certificate, whatever its
    names and authority.

    None without a certificate.

    Raises:
        ServeError: the file cannot be read.
    """
    if not config.is_active:
        return None
    # Only the first of the file: its chain would also vouch for other certificates of the same authority.
    own = _load_own_certificate(config.files[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=own.public_bytes(Encoding.DER))
    return context


def ssl_context_without_verification() -> ssl.SSLContext:
    """Create an SSL context that accepts any certificate, for requests without a secret whose answer is not
    relied on.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _load_own_certificate(file: Path) -> x509.Certificate:
    data = _read_file(file, "serve.tls.certificate")
    try:
        return x509.load_pem_x509_certificates(data)[0]
    except ValueError as error:
        raise ServeError(
            f"'{file}' of serve.tls.certificate holds no certificate in PEM ({error}); it begins with -----BEGIN "
            "CERTIFICATE-----"
        ) from None


def _read_file(file: Path, setting: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ServeError(f"'{file}' of {setting} does not exist; put it there, on every node") from None
    except OSError as error:
        raise ServeError(
            f"'{file}' of {setting} cannot be read ({error.strerror}); let the user of the service read it"
        ) from None
