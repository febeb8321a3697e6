"""Builds configurations that differ from a base in a few settings, and the cells of a grid of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vlmodel.config import ConfigError, ConfigSection, PartConfig, find_part_config_class, parse_config

S = TypeVar("S", bound=ConfigSection)

_MAX_SLUG = 120


@dataclass(frozen=True)
class GridCell(Generic[S]):
    """One combination of the values of a grid's settings.

    Attributes:
        slug: readable name, a function of the settings alone, so that a repeated grid finds its cells again.
        settings: what differs from the base.
        config: the whole configuration; None if the combination is invalid.
        refused: the message of the ConfigError, if it is invalid.
    """

    slug: str
    settings: dict[str, Any]
    config: S | None
    refused: str = ""


def override_settings(config: S, settings: Mapping[str, Any]) -> S:
    """Return a copy of ``config`` with other values for some dotted settings.

    A part that changes its ``kind`` keeps those explicit settings (from the file or the command line) that the new
    kind has as well, such as a width: cells of a grid then differ in the kind and not in their sizes.

    Raises:
        ConfigError: a setting that does not exist, or an invalid value or combination.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    for key, value in sorted(settings.items(), key=lambda item: override_sort_key(item[0])):
        *parents, leaf = key.split(".")
        node: Any = tree
        for step in parents:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise ConfigError(f"unknown key {key!r}: {step!r} is a value, not a section")
        if leaf == "kind" and (part := settings_class_of_part(config, key, value)) is not None:
            for name in node.keys() - part.model_fields.keys():
                del node[name]
        node[leaf] = value
    return parse_config(type(config), tree)


def settings_class_of_part(config: ConfigSection, key: str, kind: str) -> type[PartConfig] | None:
    """Return the settings class of the part that ``key = kind`` would choose; None if ``key`` is not the kind of a
    part.

    Raises:
        ConfigError: there is no part of this kind.
    """
    owner: Any = config
    for step in key.split(".")[:-1]:
        owner = owner.get(step) if isinstance(owner, Mapping) else getattr(owner, step, None)
    if not isinstance(owner, PartConfig) or not key.endswith(".kind"):
        return None
    return find_part_config_class(type(owner).__module__.rpartition(".")[0], kind)


def grid_cells(config: S, grid: Mapping[str, Sequence[Any]], setting: str) -> list[GridCell[S]]:
    """List every combination of the grid; the last key's values change fastest.

    Args:
        setting: the one that holds the grid, for messages.

    Raises:
        ConfigError: there is no grid; a key does not exist; a kind does not exist; or no combination is valid.
    """
    check_grid(config, grid, setting)
    return list(_grid_cells(config, grid, setting))


def check_grid(config: ConfigSection, grid: Mapping[str, Sequence[Any]], setting: str) -> None:
    """Raise the errors of ``grid_cells``, stopping at the first valid combination."""
    refused: dict[str, None] = {}
    for cell in _grid_cells(config, grid, setting):
        if cell.config is not None:
            return
        refused[cell.refused] = None
    raise ConfigError(f"{setting}: no combination can be trained:\n" + "\n".join(refused))


def first_valid_cells(
    config: S, grid: Mapping[str, Sequence[Any]], setting: str, section: str
) -> Iterator[GridCell[S]]:
    """Find for each combination of the settings of ``section`` the first valid cell of the whole grid, if any is valid.

    This finds all values of ``section`` without trying every combination with the other settings.
    """
    varied = {key: values for key, values in grid.items() if f"{key}.".startswith(f"{section}.")}
    for values in itertools.product(*varied.values()):
        fixed = {**grid, **{key: [value] for key, value in zip(varied, values, strict=True)}}
        yield from itertools.islice(
            (cell for cell in _grid_cells(config, fixed, setting) if cell.config is not None), 1
        )


def override_sort_key(key: str) -> tuple[bool, int]:
    """The sort key of overrides: a part's kind comes before its other settings, an outer part's before an inner
    one's.
    """
    return not key.endswith(".kind"), key.count(".") if key.endswith(".kind") else 0


def short_setting_name(key: str) -> str:
    """Return the short name of a setting for the columns of tables.

    >>> short("model.fusion.kind"), short("train.optimizer.head_lr"), short("seed")
    ('fusion', 'optimizer.head_lr', 'seed')
    """
    return ".".join(key.removesuffix(".kind").split(".")[-1 if key.endswith(".kind") else -2 :])


def format_value(value: Any) -> str:
    """Format the value of a setting as text in tables, names and command lines."""
    return value if isinstance(value, str) else json.dumps(value)


def combination_name(settings: Mapping[str, Any]) -> str:
    """Make a readable name for a combination, safe for file names; it ends with a hash if characters had to be replaced
    or cut.

    >>> combination_name({"model.topology.kind": "dual", "model.fusion.width": 64})
    'fusion.width-64-topology-dual'
    """
    whole = "-".join(f"{short_setting_name(key)}-{format_value(value)}" for key, value in sorted(settings.items()))
    safe = re.sub(r"[^A-Za-z0-9_.\-]+", "_", whole)[:_MAX_SLUG]
    if safe == whole:
        return safe
    return f"{safe}-{hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:8]}"


def _grid_cells(config: S, grid: Mapping[str, Sequence[Any]], setting: str) -> Iterator[GridCell[S]]:
    if not grid:
        raise ConfigError(f'{setting} is empty; name what varies, as in {setting}={{"model.fusion.kind"=["concat"]}}')
    for key, values in grid.items():
        for value in values if key.endswith(".kind") else []:
            try:
                settings_class_of_part(config, key, value)
            except ConfigError as error:
                raise ConfigError(f"{setting}: {key}: {error}") from None
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        try:
            yield GridCell(combination_name(settings), settings, override_settings(config, settings))
        except ConfigError as error:
            yield GridCell(combination_name(settings), settings, None, str(error))
