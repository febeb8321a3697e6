"""The manifest of a model's folder: the sha256 of each file, as MLflow stores no checksums of artifacts.

It covers every file, whatever its name: Python runs bytecode in place of the source beside it, so a file that a
manifest skips could replace all that it covers.

This file is stored with each model, which verifies itself with it. So it imports only the standard library and
errors.py, which is stored too.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pipelines.registry.errors import ArtifactError

MANIFEST = "manifest.json"
# MLflow writes this into a model that it loads as models:/NAME/VERSION. A file of just these two lines is skipped.
_ORIGIN = "registered_model_meta"
_ORIGIN_LINES = re.compile(r"model_name: [^\n]*\nmodel_version: [^\n]*\n")


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file in ``folder`` by its relative path, without the manifest itself.

    Raises:
        ArtifactError: a link, which could point anywhere, or what is neither a file nor a folder.
    """
    hashes: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ArtifactError(f"model folder {str(folder)!r}: {name!r} is a link; store the file")
        if path.is_dir() or name == MANIFEST or (name == _ORIGIN and _is_origin(path)):
            continue
        if not path.is_file():
            raise ArtifactError(f"model folder {str(folder)!r}: {name!r} is neither a file nor a folder; delete it")
        with path.open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def digest(folder: Path) -> str:
    """One hash of the names and contents of all files in ``folder``."""
    return hashlib.sha256(_manifest_text(digests(folder))).hexdigest()


def write(folder: Path) -> str:
    """Write the manifest of ``folder`` into it and return the manifest's sha256."""
    text = _manifest_text(digests(folder))
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def verify(folder: Path, expected: str | None = None) -> None:
    """Check that each file of ``folder`` matches its manifest, and that none is missing or added.

    Args:
        expected: sha256 of the manifest, stored where those who can write to ``folder`` cannot write. Without it,
            damage is detected, but not a manifest that was rewritten together with the files.

    Raises:
        ArtifactError: something differs; the message names up to five files.
    """
    remedy = "delete what was added and restore the rest from a backup, or register the model again"
    try:
        text = (folder / MANIFEST).read_bytes()
        listed = json.loads(text)
    except FileNotFoundError:
        raise ArtifactError(f"model folder {str(folder)!r} has no {MANIFEST}; {remedy}") from None
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, dict):
        raise ArtifactError(f"{MANIFEST} of model folder {str(folder)!r} is damaged; {remedy}")
    actual = digests(folder)
    different = sorted(name for name in listed.keys() | actual.keys() if listed.get(name) != actual.get(name))
    if expected is not None and hashlib.sha256(text).hexdigest() != expected:
        different.insert(0, MANIFEST)
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ArtifactError(
            f"model folder {str(folder)!r} is not what was registered: changed, missing or added: "
            f"{', '.join(different[:5])}{more}; {remedy}"
        )


def _is_origin(file: Path) -> bool:
    return file.is_file() and _ORIGIN_LINES.fullmatch(file.read_bytes().decode(errors="replace")) is not None


def _manifest_text(hashes: dict[str, str]) -> bytes:
    return json.dumps(hashes, indent=1, sort_keys=True).encode()
