"""Lists the settings of a configuration section as plain data, for ``--help`` and docs/SETTINGS.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypedDict

from vlmodel.config import (
    ConfigSection,
    PartMarker,
    find_part_config_class,
    find_section_class,
    list_part_kinds,
    part_markers_of_field,
)


class SettingDoc(TypedDict):
    """The documentation of one setting.

    Attributes:
        key: dotted; NAME stands for a name that the user chooses.
        default: as JSON, or "required".
        doc: what it means, in one line.
        package: of a part, which holds a file for each kind; "" for a plain value. The default is then a kind.
    """

    key: str
    default: str
    doc: str
    package: str


def list_settings(section: type[ConfigSection], prefix: str = "") -> Iterator[SettingDoc]:
    """List the settings of a section and of its subsections, in order; an optional section is also listed itself. The
    settings of a part are not listed, as they depend on its kind.
    """
    for name, field in section.model_fields.items():
        key, doc = f"{prefix}{name}", " ".join((field.description or "").split())
        marker, item = part_markers_of_field(field)
        inner = find_section_class(field.annotation)
        if item is not None:
            key = f"{key}.NAME"
            marker, inner = (item, None) if isinstance(item, PartMarker) else (None, item)
        if marker is not None:
            yield SettingDoc(key=key, default=marker.default, doc=doc, package=marker.package)
        elif inner is not None:
            if item is None and not field.is_required() and field.default is None:
                yield SettingDoc(key=key, default="null", doc=doc, package="")
            yield from list_settings(inner, f"{key}.")
        else:
            default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
            yield SettingDoc(key=key, default=default, doc=doc, package="")


def list_settings_of_part(package: str, kind: str) -> list[SettingDoc]:
    """List the settings of one kind of part, without ``kind`` itself."""
    return [setting for setting in list_settings(find_part_config_class(package, kind)) if setting["key"] != "kind"]


def list_part_packages(section: type[ConfigSection]) -> list[str]:
    """List the packages whose parts a section holds, and those that these parts hold, in the order of their
    first use.
    """
    found: list[str] = []
    waiting = [setting["package"] for setting in list_settings(section)]
    while waiting:
        package = waiting.pop(0)
        if package and package not in found:
            found.append(package)
            waiting += [s["package"] for kind in list_part_kinds(package) for s in list_settings_of_part(package, kind)]
    return found
