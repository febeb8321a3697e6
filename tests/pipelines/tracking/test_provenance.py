from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipelines.tracking.provenance import flatten_settings, git_state, truncate_with_hash, without_secrets
from vlmodel.locations import redact_secrets


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_state_names_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {}, "a repository without a commit"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("venv/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path / "package") == {"mlflow.source.git.commit": commit, "git.dirty": "false"}
    (tmp_path / "package" / "a.py").write_text("a = 2\n")
    assert git_state(tmp_path / "package") == {"mlflow.source.git.commit": commit, "git.dirty": "true"}


def test_git_state_is_not_that_of_a_repository_that_ignores_the_folder(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("venv/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "venv" / "package").mkdir(parents=True)
    assert git_state(tmp_path / "venv" / "package") == {}


def test_git_state_heeds_no_variables_of_a_calling_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "-q")
    (tmp_path / "other" / "a").write_text("a")
    git(tmp_path / "other", "add", ".")
    git(tmp_path / "other", "commit", "-q", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    (tmp_path / "plain").mkdir()
    assert git_state(tmp_path / "plain") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://ann:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://ann:p%40w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://h/a?token=abc&b=1", "https://h/a?token=***&b=1"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
        ("s3://bucket/tars", "s3://bucket/tars"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact_secrets(text) == expected


def test_values_of_secret_names_are_redacted() -> None:
    tree = {
        "api_key": "k",
        "s3": {"secret": "k", "parts": [{"password": "k"}]},
        "max_tokens": 32,
        "tokens": "all",
        "token": "",
    }
    assert without_secrets(tree) == {
        "api_key": "***",
        "s3": {"secret": "***", "parts": [{"password": "***"}]},
        "max_tokens": 32,
        "tokens": "all",
        "token": "",
    }


def test_flatten_tells_texts_from_other_values_only_where_they_differ() -> None:
    tree = {"a": {"b": {"c": 0.1}}, "text": "x", "none": None, "list": ["é", 1], "empty": {}}
    assert flatten_settings(tree) == {"a.b.c": "0.1", "text": "x", "none": "null", "list": '["é", 1]', "empty": "{}"}


def test_shortened_texts_differ_where_the_texts_differ() -> None:
    assert truncate_with_hash("abc", 100) == "abc"
    one, other = truncate_with_hash("x" * 200 + "1", 100), truncate_with_hash("x" * 200 + "2", 100)
    assert len(one) == len(other) == 100
    assert one != other
