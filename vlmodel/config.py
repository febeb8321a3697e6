"""Reads the configuration: strictly typed sections, one TOML file, dotted overrides, and parts chosen by the name of
their file.

A section is a frozen pydantic model that sits beside what it configures. The layers are, weakest first: the
defaults of the sections, one TOML file, ``a.b.c=value`` overrides. An unknown key or a wrong type is refused with
the key, the value and what would be valid.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from vlmodel.errors import ExpectedError

S = TypeVar("S", bound="ConfigSection")


PARTS = "VLMODEL_PARTS"
"""Environment variable that names packages with further parts."""


_MOST_MEANT = 3


class ConfigError(ExpectedError, ValueError):
    """The configuration cannot be used. The message names the key, the value and the remedy."""


class ConfigSection(BaseModel):
    """The base class of all configuration sections: immutable, strictly typed, and without unknown keys.

    The string under a field is its documentation and its line in ``--help``.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, use_attribute_docstrings=True
    )


class PartConfig(ConfigSection):
    """The base class of sections that build an exchangeable part of the model; ``kind`` is the name of the
    part's file.
    """

    kind: str


MAY_CHANGE: dict[str, Any] = {"may_change": True}
"""``json_schema_extra`` of a setting that may differ when a run continues: it changes how the run works, and not what
it learns. Of a field that holds a section it means all settings of that section.
"""


def settings_changeable_on_resume(section: type[ConfigSection], prefix: str = "") -> Iterator[str]:
    """List the dotted keys of the settings that may change when a run is resumed: those marked ``MAY_CHANGE``."""
    for name, field in section.model_fields.items():
        if field.json_schema_extra == MAY_CHANGE:
            yield f"{prefix}{name}"
        elif (inner := find_section_class(field.annotation)) is not None:
            yield from settings_changeable_on_resume(inner, f"{prefix}{name}.")


def find_public_modules(package: str) -> dict[str, str]:
    """Map the names of the public modules of ``package`` to the modules, sorted. Packages that the environment variable
    ``VLMODEL_PARTS`` names (comma-separated) add the modules of their sub-packages of the same name.

    Raises:
        ConfigError: such a package is not installed, or has a module that is there already.
    """
    found: dict[str, str] = {}
    for home in (package, *_find_external_packages(package)):
        for module in pkgutil.iter_modules(importlib.import_module(home).__path__):
            if module.name.startswith("_"):
                continue
            if (other := found.setdefault(module.name, f"{home}.{module.name}")) != f"{home}.{module.name}":
                raise ConfigError(f"{other} and {home}.{module.name} have one name; rename the file of {PARTS}")
    return dict(sorted(found.items()))


def _find_external_packages(package: str) -> Iterator[str]:
    root, _, sub_package = package.partition(".")
    for name in os.environ.get(PARTS, "").split(",") if root == "vlmodel" else ():
        if not name.strip():
            continue
        if importlib.util.find_spec(name.strip()) is None:
            raise ConfigError(
                f"{PARTS} names {name.strip()!r}, which is not installed; install it, or correct the name"
            )
        if importlib.util.find_spec(home := f"{name.strip()}.{sub_package}") is not None:
            yield home


def list_part_kinds(package: str) -> list[str]:
    """List the names of the part kinds in ``package``, sorted (see ``find_public_modules``)."""
    return list(find_public_modules(package))


def find_part_config_class(package: str, kind: str) -> type[PartConfig]:
    """Import the ``Config`` class of the part ``kind`` of ``package``.

    Raises:
        ConfigError: there is no such file; the message lists those that exist.
    """
    module = find_public_modules(package).get(kind)
    if module is None:
        close = difflib.get_close_matches(kind, list_part_kinds(package), 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"kind {kind!r} is not a part of {package}; {meant}choose one of {', '.join(list_part_kinds(package))}, or "
            f"name the package that has it in {PARTS}"
        )
    config: type[PartConfig] = importlib.import_module(module).Config
    return config


def parse_part_config(package: str, tree: Mapping[str, Any]) -> Any:
    """Parse the settings of a part of ``package`` from a plain dictionary, whose ``kind`` names the part's class.

    Raises:
        ConfigError: there is no such part, or as ``parse_config``.
    """
    return parse_config(find_part_config_class(package, str(tree.get("kind", ""))), tree)


class PartMarker:
    """Marks a field of a section as a part of ``package``; ``default`` is the kind that is used if none is named."""

    def __init__(self, package: str, default: str) -> None:
        self.package, self.default = package, default

    def parse_value(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        try:
            return find_part_config_class(self.package, value.get("kind", self.default))(
                **{"kind": self.default, **value}
            )
        except ConfigError as error:
            raise ValueError(str(error)) from None


def part_field(package: str, default: str) -> Any:
    """The type annotation of a field that holds a part of ``package``: ``vision: part_field("vlmodel.vision", "cnn") =
    {}``.

    ``dict[str, part(...)]`` holds several, each under a name that the user chooses.
    """
    marker = PartMarker(package, default)
    return Annotated[PartConfig, marker, BeforeValidator(marker.parse_value), SerializeAsAny()]  # type: ignore[type-arg]


def parse_config(section: type[S], tree: Mapping[str, Any]) -> S:
    """Build the configuration section ``section`` from a plain dictionary.

    Raises:
        ConfigError: with one line for each key that is unknown or has an unfit value.
    """
    try:
        return section.model_validate(dict(tree))
    except ValidationError as error:
        lines = [_explain_validation_error(section, tree, detail) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def dump_config(section: ConfigSection) -> dict[str, Any]:
    """Convert a configuration section to plain JSON values; ``parse_config(type(section), dump_config(section))``
    equals ``section``.
    """
    return section.model_dump(mode="json")


def load_config(section: type[S], file: str | Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Load a configuration: the defaults, then the values of the TOML ``file``, then overrides ``a.b.c=value`` (values
    in TOML syntax or bare words).

    An override of a part's ``kind`` drops what the file says of that part, which was meant for another kind.

    Raises:
        ConfigError: the file is missing or not TOML, an override has no ``=``, or the tree does not parse.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        try:
            tree = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"configuration file {str(file)!r} does not exist; name one with --config") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration file {str(file)!r} is not valid TOML: {error}") from None
    for override in sorted(overrides, key=_override_precedence):
        _apply_override(section, tree, override)
    return parse_config(section, tree)


def _apply_override(section: type[ConfigSection], tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r} is not of the form a.b.c=value")
    *parents, leaf = path.split(".")
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key!r} is a value, not a section")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    holder, _ = _locate_setting(section, tree, parents)
    if leaf == "kind" and isinstance(holder, PartMarker) and node.get("kind", holder.default) != value:
        node.clear()
    owner = _resolve_section_class(holder, node)
    field = owner.model_fields.get(leaf) if owner else None
    if field is not None and field.annotation is str and not isinstance(value, str):
        value = text  # a name may look like a number
    node[leaf] = value


def _override_precedence(override: str) -> tuple[bool, int]:
    """The sort key of overrides: kinds of parts come first, outer before inner ones, as they decide which other keys
    exist.
    """
    path = override.partition("=")[0]
    return (False, path.count(".")) if path.endswith(".kind") else (True, 0)


def part_markers_of_field(field: FieldInfo) -> tuple[PartMarker | None, PartMarker | type[ConfigSection] | None]:
    """Find the part markers of a field: of its own value and, if the field is a dictionary, of the dictionary's
    values.
    """
    own = _part_marker_in_metadata(field.metadata)
    if typing.get_origin(field.annotation) is not dict:
        return own, None
    _, values = typing.get_args(field.annotation)
    return own, _part_marker_in_metadata(typing.get_args(values)[1:]) or find_section_class(values)


def _part_marker_in_metadata(metadata: Sequence[Any]) -> PartMarker | None:
    return next((m for m in metadata if isinstance(m, PartMarker)), None)


def find_section_class(annotation: Any) -> type[ConfigSection] | None:
    """Find the section class in a type annotation, alone or in a union with None; None if there is none."""
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, ConfigSection):
            return candidate
    return None


def _explain_validation_error(section: type[ConfigSection], tree: Mapping[str, Any], detail: ErrorDetails) -> str:
    location = [str(step) for step in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        owner = _resolve_section_class(*_locate_setting(section, tree, location[:-1]))
        names = sorted(owner.model_fields) if owner else []
        where = ".".join(location[:-1]) or "the top level"
        close = difflib.get_close_matches(location[-1], names, 1) or _suggest_nested_keys(
            section, tree, location, names
        )
        similar = " or ".join(repr(".".join([*location[:-1], name])) for name in close)
        meant = f"did you mean {similar}? " if close else ""
        other_kinds = "" if close else _suggest_kinds(section, tree, location)
        return f"unknown key {key!r}; {meant}valid keys of {where}: {', '.join(names) or '?'}{other_kinds}"
    if detail["type"] == "missing":
        return f"key {key!r} is required"
    reason = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key}: {reason}" if key else reason
    return f"{key} = {detail['input']!r}: {reason}"


def _suggest_nested_keys(
    section: type[ConfigSection], tree: Mapping[str, Any], location: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Suggest, for an unknown key, keys of the sections ``names`` that end in it: somebody may have left the section's
    name out. The result is [] if many sections have such a key.
    """
    found = []
    for name in names:
        with suppress(ConfigError):  # the section's own kind may be unknown
            below = _resolve_section_class(*_locate_setting(section, tree, [*location[:-1], name]))
            if below is not None and location[-1] in below.model_fields:
                found.append(f"{name}.{location[-1]}")
    return found if len(found) <= _MOST_MEANT else []


def _suggest_kinds(section: type[ConfigSection], tree: Mapping[str, Any], location: Sequence[str]) -> str:
    """Say which other kinds of the part have the unknown key: somebody may have left its kind out. "" if none has."""
    holder, node = _locate_setting(section, tree, location[:-1])
    if not isinstance(holder, PartMarker):
        return ""
    having = []
    for kind in list_part_kinds(holder.package):
        with suppress(ConfigError, ImportError):  # what a kind needs may not be installed
            if location[-1] in find_part_config_class(holder.package, kind).model_fields:
                having.append(kind)
    chosen = f"{'.'.join(location[:-1])}.kind={node.get('kind', holder.default)}"
    return f". This is {chosen}; {', '.join(having)} {'have' if having[1:] else 'has'} that key" if having else ""


def _locate_setting(
    section: type[ConfigSection], tree: Mapping[str, Any], location: Sequence[str]
) -> tuple[type[ConfigSection] | PartMarker | None, Any]:
    """Find the section or part at ``location`` by following the kinds that ``tree`` names, and its node in ``tree``;
    for an unknown key, the section that lacks it.
    """
    current: type[ConfigSection] | PartMarker | None = section
    item: PartMarker | type[ConfigSection] | None = None
    node: Any = tree
    for step in location:
        if item is not None:
            current, item = item, None
        else:
            owner = _resolve_section_class(current, node)
            field = owner.model_fields.get(step) if owner else None
            if field is None:
                return owner, node
            marker, item = part_markers_of_field(field)
            current = marker or find_section_class(field.annotation)
        node = node.get(step, {}) if isinstance(node, Mapping) else {}
    return current, node


def _resolve_section_class(
    holder: type[ConfigSection] | PartMarker | None, node: Mapping[str, Any]
) -> type[ConfigSection] | None:
    """Return the section class of the holder that ``_locate_setting`` found."""
    return (
        find_part_config_class(holder.package, node.get("kind", holder.default))
        if isinstance(holder, PartMarker)
        else holder
    )
