"""Prints ``--help``: the settings of a job and, for each part, those of the kind that the command line or the file
chooses.

The settings are read from ``settings.json``, which ``make docs`` writes from the classes in the code: importing these
would import torch and take seconds.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmodel.explain import SettingDoc

FILE = Path(__file__).with_name("settings.json")
_MAX_WIDTH = 118


def help_width() -> int:
    """The width of the help in columns: the terminal's, up to what is easy to read."""
    return min(_MAX_WIDTH, shutil.get_terminal_size().columns - 2)


def describe_settings_as_paragraphs(chosen: Mapping[str, str], sections: Sequence[str] = ()) -> Iterator[str]:
    """Write a paragraph for each setting: key, default, meaning.

    Args:
        chosen: kinds of parts, by the dotted key of the part (``find_chosen_kinds``).
        sections: those that the job is about, whose settings come first.
    """
    width = help_width()
    explained = list(_explain_settings(_read_stored_settings()["settings"], "", chosen))
    rank = {section: number for number, section in enumerate(sections)}
    for key, default, doc in sorted(explained, key=lambda entry: rank.get(entry[0].partition(".")[0], len(rank))):
        shown = default if len(default) <= 40 else f"{default[:37]}..."
        yield textwrap.fill(
            f"{key} = {shown}  {doc.replace('``', '')}", width, initial_indent="  ", subsequent_indent="      "
        )


def format_docstring_for_terminal(doc: str) -> str:
    """Format a docstring for a terminal: paragraphs of its width, without code markup."""
    paragraphs = (" ".join(paragraph.split()).replace("``", "") for paragraph in doc.split("\n\n"))
    return "\n\n".join(textwrap.fill(paragraph, help_width()) for paragraph in paragraphs)


def find_chosen_kinds(find_config_file: str | None, overrides: Sequence[str]) -> dict[str, str]:
    """Find the kinds of parts that a configuration file and overrides name, by the dotted key of the part."""
    import tomllib  # Python 3.11: see ``_python``

    kinds: dict[str, str] = {}
    if find_config_file is not None:
        with suppress(OSError, ValueError):  # The job itself says what is wrong with it; help is shown anyway.
            _collect_kinds(tomllib.loads(Path(find_config_file).read_text(encoding="utf-8")), "", kinds)
    for override in overrides:
        key, _, value = override.partition("=")
        if key.endswith(".kind"):
            kinds[key.removesuffix(".kind")] = value.strip("\"'")
    return kinds


def _collect_kinds(tree: Mapping[str, Any], prefix: str, kinds: dict[str, str]) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _collect_kinds(value, f"{prefix}{name}.", kinds)
        elif name == "kind" and isinstance(value, str):
            kinds[prefix.removesuffix(".")] = value


def _explain_settings(
    settings: Sequence[SettingDoc], prefix: str, chosen: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Return (key, default, meaning) of each setting, those of chosen parts included."""
    for setting in settings:
        key, package = f"{prefix}{setting['key']}", setting["package"]
        if not package:
            yield key, setting["default"], setting["doc"]
            continue
        kinds = _read_stored_settings()["packages"][package]
        named = [part for part in chosen if part.rpartition(".")[0] == key.removesuffix(".NAME")]
        for part in named or [key] if key.endswith(".NAME") else [key]:
            kind = chosen.get(part, setting["default"])
            yield f"{part}.kind", kind, f"{setting['doc']} One of {', '.join(kinds)}."
            yield from _explain_settings(_describe_settings_of_kind(package, kind), f"{part}.", chosen)


def _describe_settings_of_kind(package: str, kind: str) -> Sequence[SettingDoc]:
    stored: Sequence[SettingDoc] | None = _read_stored_settings()["packages"][package].get(kind)
    if stored is not None:
        return stored
    # A kind of a package that the user installed, or none at all.
    from vlmodel.config import ConfigError
    from vlmodel.explain import list_settings_of_part

    try:
        return list_settings_of_part(package, kind)
    except ConfigError:
        return []


@cache
def _read_stored_settings() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return stored
