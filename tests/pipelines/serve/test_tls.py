"""The service's certificate: files that cannot be used are named, and who trusts what."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from pipelines.serve.client import Client, is_reachable, is_ready
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ServeError
from pipelines.serve.http.app import create_app
from pipelines.serve.tls import TLSConfig, check_tls_files, ssl_context_for_own_certificate
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, error_code, http
from tests.pipelines.serve.server import self_signed, served
from vlmodel.config import ConfigError, load_config


def missing(good: TLSConfig, folder: Path) -> TLSConfig:
    return good.model_copy(update={"certificate": str(folder / "none.crt")})


def without_key(good: TLSConfig, folder: Path) -> TLSConfig:
    return good.model_copy(update={"key": str(folder / "none.key")})


def folder_as_key(good: TLSConfig, folder: Path) -> TLSConfig:
    return good.model_copy(update={"key": str(folder)})


def no_certificate(good: TLSConfig, folder: Path) -> TLSConfig:
    return good.model_copy(update={"certificate": good.key})


def no_key(good: TLSConfig, folder: Path) -> TLSConfig:
    return good.model_copy(update={"key": good.certificate})


def of_another(good: TLSConfig, folder: Path) -> TLSConfig:
    return good.model_copy(update={"key": self_signed(folder, "other").key})


def expired(good: TLSConfig, folder: Path) -> TLSConfig:
    return self_signed(folder, "expired", begins=timedelta(days=-2), ends=timedelta(seconds=-1))


def of_tomorrow(good: TLSConfig, folder: Path) -> TLSConfig:
    return self_signed(folder, "tomorrow", begins=timedelta(hours=1))


def locked(good: TLSConfig, folder: Path) -> TLSConfig:
    return self_signed(folder, "locked", passphrase=b"secret")


def open_to_all(good: TLSConfig, folder: Path) -> TLSConfig:
    other = self_signed(folder, "open")
    Path(other.key).chmod(0o644)
    return other


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"none\.crt' of serve\.tls\.certificate does not exist; .* every node"),
        (without_key, r"none\.key' of serve\.tls\.key does not exist"),
        (folder_as_key, r"of serve\.tls\.key cannot be read \(Is a directory\)"),
        (no_certificate, r"own\.key' of serve\.tls\.certificate holds no certificate in PEM"),
        (no_key, r"own\.crt' cannot be used as the key of .* must be a private key"),
        (of_another, r"other\.key' is not the key of the first certificate in .*own\.crt'"),
        (expired, r"expired\.crt' expired at .*; renew it"),
        (of_tomorrow, r"tomorrow\.crt' is valid from .* on; set this machine's clock"),
        (open_to_all, r"open\.key' of serve\.tls\.key has mode 644: .* chmod 600"),
        (locked, r"locked\.key' needs a passphrase, .* openssl pkey"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, spoil: Callable[[TLSConfig, Path], TLSConfig], message: str
) -> None:
    good = self_signed(tmp_path)
    check_tls_files(good)
    with pytest.raises(ServeError, match=message):
        check_tls_files(spoil(good, tmp_path))


def test_without_a_certificate_there_is_nothing_to_check_or_to_trust() -> None:
    check_tls_files(TLSConfig())
    assert ssl_context_for_own_certificate(TLSConfig()) is None
    for half in ("certificate", "key"):
        with pytest.raises(ConfigError, match="certificate and key belong together"):
            load_config(ServeConfig, overrides=[f"tls.{half}=x.pem"])


def test_this_machine_trusts_the_certificate_itself_and_others_trust_names(
    tmp_path: Path, service: FakeService
) -> None:
    own, other = self_signed(tmp_path), self_signed(tmp_path, "other")
    authority = self_signed(tmp_path, "authority", address="127.0.0.1")

    def vouched(config: TLSConfig) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=config.certificate)

    for files, ssl_context, reached in (
        (own, ssl_context_for_own_certificate(own), True),
        (own, ssl_context_for_own_certificate(other), False),
        (own, None, False),
        (own, vouched(own), False),  # its name is another
        (authority, vouched(authority), True),
    ):
        certificate, key = files.files
        app = create_app(service, ServeConfig(tls=files))
        with (
            served(app, ssl_certfile=certificate, ssl_keyfile=key) as at,
            Client(f"https://{at}", ssl_context=ssl_context) as client,
        ):
            assert is_ready(f"https://{at}", ssl_context) == is_reachable(f"https://{at}", ssl_context) == reached
            assert not is_reachable(f"http://{at}")
            if reached:
                assert client.ask(IMAGE, ["A?"]).model.version == "7"
            else:
                with pytest.raises(ServeError, match="certificate verify failed"):
                    client.ask(IMAGE, ["A?"])


def test_the_chain_in_the_file_is_not_what_is_trusted(tmp_path: Path, service: FakeService) -> None:
    """Who has another certificate of the same authority is a stranger."""
    own, authority = self_signed(tmp_path), self_signed(tmp_path, "authority")
    own.files[0].write_bytes(own.files[0].read_bytes() + authority.files[0].read_bytes())
    check_tls_files(own)
    certificate, key = authority.files
    with served(create_app(service, ServeConfig()), ssl_certfile=certificate, ssl_keyfile=key) as at:
        assert is_reachable(f"https://{at}", ssl_context_for_own_certificate(authority))
        assert not is_reachable(f"https://{at}", ssl_context_for_own_certificate(own))


def test_with_a_certificate_plain_http_is_refused_whoever_started_the_server(
    tmp_path: Path, service: FakeService
) -> None:
    app = create_app(service, ServeConfig(tls=self_signed(tmp_path)))

    async def get(base: str, path: str) -> httpx.Response:
        async with http(app, base=base) as client:
            return await client.get(path)

    for path in ("/", "/docs", "/healthz", "/v1/model"):
        refused = asyncio.run(get("http://127.0.0.1", path))
        assert (refused.status_code, error_code(refused)) == (403, "not_encrypted")
        assert re.search("https://", refused.json()["error"]["message"])
        assert asyncio.run(get("https://127.0.0.1", path)).status_code == 200
