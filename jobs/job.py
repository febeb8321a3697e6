"""What all entry points share: the command line, and expected errors printed as one message."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.errors import expected_cause, message_of
from pipelines.workflows import signals
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError, dump, explain_keys, load


def main(
    run: Callable[[Workspace], Any],
    name: str,
    argv: Sequence[str] | None = None,
    flags: Mapping[str, str] | None = None,
    doc: str | None = None,
) -> int:
    """Parse the command line, run the job, and return its exit status: 0, 1 for a failure, 2 for wrong usage, 128 +
    the number of the signal that ended it (130 for Ctrl-C, 143 for SIGTERM).

    Args:
        flags: short forms of settings that are this job's own, such as ``{"--report": "data.index.report=true"}``.
        doc: what the job does, for ``--help``.
    """
    _print_everything()
    arguments = _argument_parser(name, doc or "", flags or {}).parse_args(argv)
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = load(JobConfig, arguments.config, [*arguments.flags, *arguments.override])
    except ConfigError as error:
        print(f"{name}: {error}\n(settings: python -m jobs.{name} --help)", file=sys.stderr)
        return 2
    if arguments.print:
        print(render(dump(config)))
        return 0
    signals.handle()
    try:
        run(Workspace(config))
    except KeyboardInterrupt:
        number = signals.received()
        print(f"\n{name}: stopped by {number.name}; the same command keeps what was finished", file=sys.stderr)
        return 128 + number
    except Exception as error:
        if (known := expected_cause(error)) is None:
            raise
        print(f"{name}: {message_of(known)}", file=sys.stderr)
        return 1
    return 0


def _print_everything() -> None:
    """Escape a character that the terminal's encoding lacks, where Python would raise UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def render(tree: dict[str, Any], prefix: str = "") -> str:
    """The tree as ``a.b.c = value`` lines, which are valid overrides."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines.append(render(value, f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key} = {value!r}")
    return "\n".join(lines)


class _Help(argparse.Action):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            parser.print_help()
            print("\nsettings (key, default, meaning):")
            width = _help_width()
            for key, default, doc in explain_keys(JobConfig):
                shown = default if len(default) <= 40 else f"{default[:37]}..."
                print(textwrap.fill(f"{key} = {shown}  {doc}", width, initial_indent="  ", subsequent_indent="      "))
            sys.stdout.flush()
        except BrokenPipeError:  # The reader (head, a pager that was left) has what it wants.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit()


def _help_width() -> int:
    """Of help, in letters: the terminal's, up to what reads well."""
    return min(118, shutil.get_terminal_size().columns - 2)


def _argument_parser(name: str, doc: str, flags: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{name}",
        description="\n\n".join(
            textwrap.fill(" ".join(paragraph.split()), _help_width()) for paragraph in doc.split("\n\n")
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_Help, help="show this help with all settings, and exit")
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, such as jobs/configs/demo.toml")
    parser.add_argument("--print", action="store_true", help="print the resolved settings, and exit")
    parser.set_defaults(flags=[])
    for flag, override in flags.items():
        parser.add_argument(flag, dest="flags", action="append_const", const=override, help=f"the same as {override}")
    parser.add_argument("override", nargs="*", metavar="a.b=value", help="settings that override those of the file")
    return parser
