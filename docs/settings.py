"""Write docs/SETTINGS.md and jobs/settings.json from the classes of the settings (``make docs``)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pipelines.workflows.config import JobConfig
from vlmodel.config import list_part_kinds
from vlmodel.explain import SettingDoc, list_part_packages, list_settings, list_settings_of_part

FILE = Path(__file__).with_name("SETTINGS.md")
HELP = Path(__file__).parents[1] / "jobs" / "settings.json"

HEAD = """# Settings

Written by `make docs` from the classes in the code; do not edit. Each line is a setting of the TOML file and of the
command line (`train.epochs=3`), its default, and its meaning. A part (`model.vision`, `source`, ...) has the settings
of its `kind`.
"""


def main() -> None:
    """Write both files."""
    FILE.write_text(text(), encoding="utf-8")
    HELP.write_text(json.dumps(stored(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def text() -> str:
    """The document as it should be."""
    lines, settings = [HEAD], list(list_settings(JobConfig))
    plain = [setting for setting in settings if not setting["package"]]
    for section, of_section in groupby(plain, key=lambda s: s["key"].split(".")[0] if "." in s["key"] else ""):
        lines += [f"## {section or 'Top level'}\n", *_lines(of_section), ""]
    for package in list_part_packages(JobConfig):
        keys = [f"`{s['key']}`" for s in settings if s["package"] == package]
        lines.append(f"## {package}\n")
        lines.append(f"{' and '.join(keys) or 'Parts of parts'}: one file a kind in `{package.replace('.', '/')}/`.")
        lines += [f"Default: `{s['default']}`. {s['doc']}" for s in settings if s["package"] == package]
        for kind in list_part_kinds(package):
            lines += [
                "",
                f"### {package.rpartition('.')[2]}.kind={kind}\n",
                *_lines(list_settings_of_part(package, kind)),
            ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def stored() -> dict[str, Any]:
    """The file as it should be that ``--help`` reads."""
    packages = {
        package: {kind: list_settings_of_part(package, kind) for kind in list_part_kinds(package)}
        for package in list_part_packages(JobConfig)
    }
    return {"settings": list(list_settings(JobConfig)), "packages": packages}


def _lines(settings: Iterable[SettingDoc]) -> Iterator[str]:
    for setting in settings:
        yield f"- `{setting['key']}` = `{setting['default']}`. {setting['doc']}"


if __name__ == "__main__":
    main()
