"""Names the inputs of a sample: which tar member holds which input, and which inputs a sample must have.

``KEY.jpg`` is the input "image": a member without a name of its own takes that of its medium (``vlmodel/media/``).
``KEY.imu.npy`` is the input "imu", and ``KEY.row.json`` is the input "row". ``KEY.json``, ``KEY.txt`` and ``KEY.cls``
(WebDataset's class) are the input "text".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator

from vlmodel.media.registry import all_media, medium_of_extension
from vlmodel.sample import TEXTS

TEXT = "text"
TEXT_EXTENSIONS = ("json", "txt", "cls")
PAIRS = ("image", TEXT)
"""An image with its texts."""

_NAME = re.compile(r"[a-z_][a-z0-9_]*")
# Beside the names of inputs these say what a sample has (``vlmodel.sample.Sample.present``).
_RESERVED = tuple(sorted(TEXTS))


class MemberInput(NamedTuple):
    """The input that a tar member holds: its name, and the name of its medium ("text" for texts)."""

    name: str
    medium: str


@lru_cache(maxsize=4096)
def input_of_extension(extension: str) -> MemberInput | None:
    """Return the input of tar members with this lower-case extension ("jpg", "imu.npy"); None for other members."""
    name, _, last = extension.rpartition(".")
    if not name and last in TEXT_EXTENSIONS:
        return MemberInput(TEXT, TEXT)
    medium = medium_of_extension(last)
    if medium is None or (name and not _is_input_name(name)) or (name in all_media() and name != medium.name):
        return None
    return MemberInput(name or medium.name, medium.name)


def member_extension(name: str, extension: str) -> str:
    """Return the extension of an input's tar member, which follows the key; the inverse of ``input_of_extension``."""
    medium = medium_of_extension(extension)
    has_own_name = medium is not None and medium.name == name and extension not in TEXT_EXTENSIONS
    return extension if has_own_name else f"{name}.{extension}"


def describe_known_extensions(name: str) -> str:
    """Describe, for messages, which file name endings an input's members can have."""
    if name == TEXT:
        return " or ".join(f".{extension}" for extension in TEXT_EXTENSIONS)
    own = all_media().get(name)
    extensions = [extension for medium in ([own] if own else all_media().values()) for extension in medium.extensions]
    return ", ".join(
        f".{extension}" if own and extension not in TEXT_EXTENSIONS else f".{name}.{extension}"
        for extension in extensions
    )


def input_requirements(inputs: Iterable[str]) -> dict[str, bool]:
    """Map the named inputs to whether every sample must have them (names that end in ``?`` are optional)."""
    return {name.removesuffix("?"): not name.endswith("?") for name in inputs}


def _is_input_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name not in _RESERVED


def _require_tuple(value: Any) -> Any:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    return tuple(value) if isinstance(value, list) else value


def _check_input_names(inputs: tuple[str, ...]) -> tuple[str, ...]:
    names = [name.removesuffix("?") for name in inputs]
    if not names:
        raise ValueError('name at least one input, as ["image", "text"]')
    for name in names:
        if not _is_input_name(name):
            raise ValueError(
                f"{name!r} is no name of an input: it has small letters, digits and _, as the part imu of KEY.imu.npy, "
                f"and is none of {', '.join(_RESERVED)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice; name it once, with ? where it may be missing")
    return tuple(sorted(inputs, key=lambda name: name.removesuffix("?")))


InputNames = Annotated[tuple[str, ...], BeforeValidator(_require_tuple), AfterValidator(_check_input_names)]
"""A setting: names of inputs, sorted; those that end in ``?`` may be missing. Also one string with commas."""
