"""A storage folder that was moved, restored or copied: its tracking database holds absolute addresses of its files."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

FILES = "mlartifacts"
"""Where in a storage folder MLflow keeps the files of runs and models."""

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_PARTS = re.compile(rf"(file:.*/{FILES})(/.*)?")


def relocate(database: Path) -> None:
    """Let the addresses in a storage folder's database lead to the files beside it, and say so.

    An address is changed only where it began with a place whose files lie beside the database now: other addresses in
    it, of experiments that were begun with another storage folder, are right. The folder under another name, by a link
    or a mount, is no other place.

    Raises:
        sqlite3.Error: the database cannot be read or written; it is as it was.
    """
    here = (database.parent / FILES).as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        places = _places(connection)
        moved = [place for place in places if place != here and _lies_in(database, place, places[place])]
        if not moved:
            return
        connection.execute("BEGIN IMMEDIATE")
        changed = 0
        for place in moved:
            for table, column in _ADDRESSES:
                after = len(place) + 1
                changed += connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here, after, place, after, f"{place}/"),
                ).rowcount
        connection.execute("COMMIT")
    log.warning(
        "the files that %s tells of lay in %s and are in %s now: %d addresses in it were changed",
        database, ", ".join(moved), here, changed,
    )  # fmt: skip


def _places(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Places of files that the database names, and what it names below each."""
    places: dict[str, set[str]] = {}
    for table, column in _ADDRESSES:
        for (address,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}"):
            if parts := _PARTS.fullmatch(address or ""):
                places.setdefault(parts[1], set()).add((parts[2] or "").strip("/"))
    return places


def _lies_in(database: Path, place: str, rests: set[str]) -> bool:
    """Whether files of a place that was elsewhere lie beside the database."""
    files, former = database.parent / FILES, Path(unquote(urlsplit(place).path))
    with contextlib.suppress(OSError):
        if former.samefile(files):
            return False
    return any(rest and (files / rest).exists() for rest in rests)
