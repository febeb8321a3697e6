"""Write docs/SETTINGS.md from the settings classes: ``python docs/settings.py`` (``make docs``)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pipelines.workflows.config import JobConfig
from vlmodel.config import explain_keys, explain_parts, kinds, part_config

FILE = Path(__file__).with_name("SETTINGS.md")

HEAD = """# Settings

Written by `make docs` from the classes in the code; do not edit. Each line is a setting of the TOML file and of the
command line (`train.epochs=3`), its default, and its meaning. A part (`model.vision`, `source`, ...) has the settings
of its `kind`.
"""


def main() -> None:
    """Write the file."""
    FILE.write_text(text(), encoding="utf-8")


def text() -> str:
    """The document as it should be."""
    parts = dict(explain_parts(JobConfig))
    lines = [HEAD]
    own = [entry for entry in explain_keys(JobConfig) if not _of_a_part(entry[0], parts)]
    for section, entries in groupby(own, key=lambda entry: entry[0].split(".")[0] if "." in entry[0] else ""):
        lines += [f"## {section or 'Top level'}\n", *_settings(entries), ""]
    for key, marker in parts.items():
        lines += [
            f"## {key}\n",
            f"One file a kind in `{marker.package.replace('.', '/')}/`; default `{marker.default}`.\n",
        ]
        for kind in kinds(marker.package):
            settings = [
                (f"{key}.{name}", default, doc)
                for name, default, doc in explain_keys(part_config(marker.package, kind))
            ]
            lines += [f"### {key}.kind={kind}\n", *_settings(e for e in settings if e[0] != f"{key}.kind"), ""]
    return "\n".join(lines).rstrip() + "\n"


def _of_a_part(key: str, parts: dict[str, object]) -> bool:
    return any(key.startswith(f"{part}.") for part in parts)


def _settings(entries: object) -> Iterator[str]:
    for key, default, doc in entries:  # type: ignore[attr-defined]
        yield f"- `{key}` = `{default}`. {doc}"


if __name__ == "__main__":
    main()
