"""An ASGI application behind a real server, on loopback, without Ray; and a certificate for it."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pipelines.serve.tls import TLSConfig


@contextmanager
def served(app: Any, **ssl: Any) -> Iterator[str]:
    """Its address, host and port alone, while the block runs."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none", **ssl)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def self_signed(
    folder: Path,
    name: str = "own",
    *,
    address: str = "192.0.2.1",
    begins: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(days=1),
    passphrase: bytes = b"",
) -> TLSConfig:
    """Files of a key and of its certificate for one IP address, signed by itself.

    Args:
        begins, ends: when it is valid, from now on.
    """
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    config = TLSConfig(certificate=str(folder / f"{name}.crt"), key=str(folder / f"{name}.key"))
    config.files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    config.files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    config.files[1].chmod(0o600)
    return config
