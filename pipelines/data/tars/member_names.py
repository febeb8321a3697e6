"""Parses the names of files in tars and folders: keys and extensions, hidden files, paths that leave a folder."""

from __future__ import annotations

_SYSTEM_FILES = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin")
"""What systems put beside a user's files, beside names that begin with a dot; in lower case."""


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into (key, lower-case extension) by WebDataset's rule: the base name's first dot ends the
    key.

    None for a name without extension, for a hidden file, and for WebDataset's ``__name__`` metadata. A leading ``./``,
    as ``tar -c .`` writes it, is no part of the key.
    """
    if is_hidden_path(name):
        return None
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or (name.startswith("__") and name.endswith("__")):
        return None
    return folder + slash + stem, extension.lower()


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this base name is hidden, or is one that operating systems create."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM_FILES


def is_hidden_path(path: str) -> bool:
    """Whether a tar member is hidden, or lies in the folder that macOS adds to archives."""
    folder, _, base = path.rpartition("/")
    return is_hidden(base) or "__MACOSX" in folder.split("/")


def path_leaves_folder(name: str) -> bool:
    """Whether extracting a tar member with this name would write outside the target folder: an absolute path, or one
    with ``..``.
    """
    return name.startswith("/") or ".." in name.replace("\\", "/").split("/") or name[1:3] in (":\\", ":/")
