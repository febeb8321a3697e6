"""Repairs the tracking database of a storage folder that was moved, restored or copied, as it contains absolute
addresses.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

FILES = "mlartifacts"
"""The folder in a storage folder where MLflow stores the files of runs and models."""

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_PARTS = re.compile(rf"(file:.*/{FILES})(/.*)?")


def relocate_artifacts(database: Path) -> None:
    """Change the addresses in a storage folder's database so that they point to the files beside it, and log it.

    An address is changed only if its files are beside the database now. Other addresses, of experiments that were
    created with another storage folder, are valid. The same folder under another path, by a link or mount, counts as
    unmoved.

    Raises:
        sqlite3.Error: the database cannot be read or written; it is unchanged.
    """
    current = (database.parent / FILES).as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        roots = _artifact_roots(connection)
        moved = [root for root in roots if root != current and _was_folder_moved(database, root, roots[root])]
        if not moved:
            return
        connection.execute("BEGIN IMMEDIATE")
        changed = 0
        for root in moved:
            for table, column in _ADDRESSES:
                after = len(root) + 1
                changed += connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (current, after, root, after, f"{root}/"),
                ).rowcount
        connection.execute("COMMIT")
    log.warning(
        "the files that %s tells of lay in %s and are in %s now: %d addresses in it were changed",
        database, ", ".join(moved), current, changed,
    )  # fmt: skip


def _artifact_roots(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Return the folders of files that the database names, and the paths that it names below each."""
    roots: dict[str, set[str]] = {}
    for table, column in _ADDRESSES:
        for (address,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}"):
            if parts := _PARTS.fullmatch(address or ""):
                roots.setdefault(parts[1], set()).add((parts[2] or "").strip("/"))
    return roots


def _was_folder_moved(database: Path, root: str, paths: set[str]) -> bool:
    """Whether the files of another root folder are beside the database now."""
    files, old = database.parent / FILES, Path(unquote(urlsplit(root).path))
    with contextlib.suppress(OSError):
        if old.samefile(files):
            return False
    return any(path and (files / path).exists() for path in paths)
