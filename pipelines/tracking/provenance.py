"""Records the provenance of a run: flat settings without secrets, and the commit of the code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vlmodel.locations import redact_secrets

_SECRET_WORDS = frozenset({"password", "passwd", "secret", "token", "apikey", "credential", "credentials"})


def without_secrets(tree: Any, key: str = "") -> Any:
    """Return the tree with redacted addresses and with ``***`` under each key that names a secret.

    Settings should hold no secrets (they come from the environment); this is a second line of defence.
    """
    if isinstance(tree, Mapping):
        return {str(name): without_secrets(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_secrets(value, key) for value in tree]
    if isinstance(tree, str):
        words = set(re.split(r"[^a-z]+", re.sub(r"api[_-]?key", "apikey", key.lower())))
        return "***" if tree and words & _SECRET_WORDS else redact_secrets(tree)
    return tree


def flatten_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a tree of settings to dotted keys and texts: strings stay as they are, everything else becomes JSON.

    >>> flatten({"a": {"b": 1, "c": [True, None]}, "d": "x", "e": {}})
    {'a.b': '1', 'a.c': '[true, null]', 'd': 'x', 'e': '{}'}
    """
    flat: dict[str, str] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten_settings(value, f"{key}."))
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return flat


def has_dotted_prefix(key: str, prefixes: Collection[str]) -> bool:
    """Whether a dotted key is one of ``prefixes`` or below one.

    >>> among("a.b.c", ["a.b"]), among("a.bc", ["a.b"])
    (True, False)
    """
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def truncate_with_hash(text: str, limit: int) -> str:
    """Truncate a text to ``limit`` characters; a longer text ends with its hash, so that different texts stay
    different.
    """
    if len(text) <= limit:
        return text
    mark = f" ... sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text[: limit - len(mark)] + mark


def git_state(folder: Path) -> dict[str, str]:
    """Return the tags ``mlflow.source.git.commit`` (hash) and ``git.dirty`` (true if tracked files differ from the
    commit).

    Empty without git or a commit, as in the working directory of a submitted job, and if git ignores the folder, as for
    a package installed in a virtual environment inside some repository.
    """
    if _git_output(folder, "check-ignore", "-q", ".") is not None:
        return {}
    commit = _git_output(folder, "rev-parse", "--verify", "-q", "HEAD")
    if commit is None:
        return {}
    dirty = bool(_git_output(folder, "status", "--porcelain", "--untracked-files=no"))
    return {"mlflow.source.git.commit": commit, "git.dirty": json.dumps(dirty)}


def _git_output(folder: Path, *arguments: str) -> str | None:
    """Return the standard output of git in ``folder``; None if it fails or is not installed."""
    # Without the variables of a calling hook (GIT_DIR, ...), which would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
