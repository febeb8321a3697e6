"""Finds the media that exist by their files."""

from __future__ import annotations

import functools
import importlib

from vlmodel import media as package
from vlmodel.config import find_public_modules
from vlmodel.media.base import Medium

_OTHERS = ("base", "registry")


@functools.cache
def all_media() -> dict[str, Medium]:
    """Map each medium's name to it: the ``MEDIUM`` of each file of this package, and of packages in
    ``VLMODEL_PARTS``.
    """
    files = {name: module for name, module in find_public_modules(package.__name__).items() if name not in _OTHERS}
    return {name: importlib.import_module(module).MEDIUM for name, module in files.items()}


def medium_of_extension(extension: str) -> Medium | None:
    """Find the medium of files with this extension (without the dot, in any case); None for an unknown one."""
    return _media_by_extension().get(extension.lower())


@functools.cache
def _media_by_extension() -> dict[str, Medium]:
    return {extension: medium for medium in all_media().values() for extension in medium.extensions}
