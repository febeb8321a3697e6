"""Paths and addresses in settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.workflows.config import JobConfig
from vlmodel.config import ConfigError, load_config
from vlmodel.locations import redact_secrets


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("data.tars", lambda config: config.data.tars),
        ("storage", lambda config: config.storage),
        ("evaluate.out", lambda config: config.evaluate.out),
        ("prepare.out", lambda config: config.prepare.out),
        ("retrain.incoming", lambda config: config.retrain.incoming),
        ("stream.cache.folder", lambda config: config.stream.cache.folder),
        ("serve.feedback.folder", lambda config: config.serve.feedback.folder),
        ("model.vision.weights", lambda config: config.model.vision.weights),
    ],
)
def test_the_home_folder_is_expanded(key: str, read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(load_config(JobConfig, None, [f"{key}=~/a"])) == str(tmp_path / "a")
    assert read(load_config(JobConfig, None, [f"{key}=a~b"])) == "a~b"


def test_the_home_folder_of_a_source_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(JobConfig, None, ["source.kind=table", "source.file=~/t.csv", "data.mix={a={tars='~/b'}}"])
    assert config.source.file == str(tmp_path / "t.csv")  # type: ignore[attr-defined]
    assert config.data.mix["a"].tars == str(tmp_path / "b")


@pytest.mark.parametrize(
    "address",
    [
        "http://ann:pw@store/tars",
        "https://store/tars?X-Amz-Signature=ab12",
        "https://store/tars?access_token=ab12",
        "s3://ann:pw@bucket/tars",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(ConfigError, match=r"holds credentials.*environment") as error:
        load_config(JobConfig, None, [f"data.tars={address}"])
    assert "pw@" not in str(error.value)
    assert "ab12" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "access_token", "refresh_token", "id-token",
        "sig", "Signature", "AWSAccessKeyId", "AccountKey", "api_key", "apikey", "client_secret", "password", "passwd",
        "pwd", "token", "db_password", "GoogleAccessId_signature",
    ],
)  # fmt: skip
def test_secret_parameters_are_removed(name: str) -> None:
    assert redact_secrets(f"https://h/p?a=1&{name}=ab12&b=2") == f"https://h/p?a=1&{name}=***&b=2"
    assert redact_secrets(f"https://h/p?{name}=ab12") == f"https://h/p?{name}=***"


@pytest.mark.parametrize("name", ["keyword", "design", "signal", "monkey", "tokens_per_text", "page", "assign"])
def test_other_parameters_stay(name: str) -> None:
    assert redact_secrets(f"https://h/p?{name}=ab12") == f"https://h/p?{name}=ab12"
