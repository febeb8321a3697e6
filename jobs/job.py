"""What all jobs share: the command line, and printing expected errors as one message.

What is slow to import (torch, Ray, MLflow) is imported by what uses it, so that ``--help``, a wrong setting and the
first line of work come at once. ``tests/jobs/test_start.py`` says who may import what until then.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs import _python, help
from pipelines.workflows import signals

CONFIGS = Path(__file__).with_name("configs")


def main(
    name: str,
    argv: Sequence[str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    sections: Sequence[str] = (),
    doc: str | None = None,
    again: str = "the same command continues",
    run: Callable[[Any], Any] | None = None,
) -> int:
    """Parse the command line, run the job, and return its exit status: 0, 1 for a failure, 2 for wrong usage, 128 +
    the number of the signal that ended it (130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal).

    Args:
        name: of the job, whose work is ``pipelines.workflows.NAME.run``.
        flags: short forms of settings that are this job's own, such as ``{"--report": "data.index.report=true"}``; one
            that ends in = takes a text.
        sections: of the settings, those that the job is about: ``--help`` shows them first.
        doc: what the job does, for ``--help``.
        again: what the same command does after a signal ended the job.
        run: does the work in place of the workflow, for tests.
    """
    signals.raise_interrupt_on_signals(f"{name}: stopped by {{signal}}; {again}")
    try:
        status = _run(name, argv, flags or {}, sections, doc or "", run)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "jobs", "pipelines", "vlmodel"):
            raise
        print(
            f"{name}: the package {missing!r} is not installed; jobs need more than the model does: "
            'pip install "raylm[cluster]"',
            file=sys.stderr,
        )
        status = 1
    except BaseException:
        # Whatever the clean-up after a signal raises follows from the signal.
        if signals.last_received_signal() is None:
            raise
    if signals.last_received_signal() is not None:
        signals.end_by_signal()
    return status


def _run(
    name: str,
    argv: Sequence[str] | None,
    flags: Mapping[str, str],
    sections: Sequence[str],
    doc: str,
    run: Callable[[Any], Any] | None,
) -> int:
    _python.check_python_version()
    _escape_unencodable_output()
    arguments = _argument_parser(name, doc, flags).parse_args(argv)
    if arguments.help:
        _print_help(arguments, sections)
        return 0
    # The libraries read these when they are imported. Without a network the hub's client would print each of its
    # attempts twice; the error at their end says what to do.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    from pipelines.errors import find_expected_cause, message_for_user
    from pipelines.workflows.config import JobConfig
    from vlmodel.config import ConfigError, dump_config, load_config

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        file = find_config_file(arguments.config)
        if file is not None and not Path(file).exists():
            raise ConfigError(_missing_file_message(file))
        config = load_config(JobConfig, file, [*arguments.flags, *arguments.override])
    except ConfigError as error:
        print(f"{name}: {error}\n(settings: {_program(name)} --help)", file=sys.stderr)
        return 2
    if arguments.print:
        print(render_settings(dump_config(config)))
        return 0
    from pipelines.workflows.workspace import Workspace

    try:
        (run or importlib.import_module(f"pipelines.workflows.{name}").run)(Workspace(config))
    except Exception as error:
        if signals.last_received_signal() is not None or (known := find_expected_cause(error)) is None:
            raise
        print(f"{name}: {message_for_user(known)}", file=sys.stderr)
        return 1
    return 0


def find_config_file(named: str | None) -> str | None:
    """Find the configuration file that ``--config`` names: a path, or the name of a file of ``configs/`` such as
    "demo".
    """
    if named is None or Path(named).exists():
        return named
    packaged = CONFIGS / f"{named}.toml"
    return str(packaged) if Path(named).name == named and packaged.is_file() else named


def _missing_file_message(named: str) -> str:
    packaged = sorted(file.stem for file in CONFIGS.glob("*.toml"))
    close = difflib.get_close_matches(Path(named).stem, packaged, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"configuration file {named!r} does not exist; {meant}packaged are {', '.join(packaged)}"


def _escape_unencodable_output() -> None:
    """Escape a character that the terminal's encoding lacks, where Python would raise UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def render_settings(tree: dict[str, Any], prefix: str = "") -> str:
    """Render the tree as ``a.b.c = value`` lines, which are valid overrides."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines.append(render_settings(value, f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key} = {value!r}")
    return "\n".join(lines)


def _print_help(arguments: argparse.Namespace, sections: Sequence[str]) -> None:
    chosen = help.find_chosen_kinds(find_config_file(arguments.config), [*arguments.flags, *arguments.override])
    try:
        print(arguments.usage_text)
        print("settings: key = default, meaning (KEY.kind=... before --help: another kind's)")
        for paragraph in help.describe_settings_as_paragraphs(chosen, sections):
            print(paragraph)
        sys.stdout.flush()
    except BrokenPipeError:  # The reader (head, a pager that was left) has what it wants.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _argument_parser(name: str, doc: str, flags: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(name),
        description=help.format_docstring_for_terminal(doc),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    # An option like the others: the kinds that the line chooses after it count too.
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings, and exit")
    parser.add_argument("--version", action="version", version=describe_version(), help="show the version, and exit")
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, or the name of a packaged one: demo")
    parser.add_argument("--print", action="store_true", help="print the resolved settings, and exit")
    parser.set_defaults(flags=[])
    for flag, override in flags.items():
        kind: dict[str, Any] = {"action": "append_const", "const": override, "help": f"the same as {override}"}
        if override.endswith("="):
            quoted = partial(_quote_override, override)
            kind = {"action": "append", "metavar": "TEXT", "type": quoted, "help": f"the same as {override}TEXT"}
        parser.add_argument(flag, dest="flags", **kind)
    parser.add_argument("override", nargs="*", metavar="a.b=value", help="settings that override those of the file")
    parser.set_defaults(usage_text=parser.format_help())
    return parser


def _program(name: str) -> str:
    """The command of a job as the user gave it: ``raylm NAME`` or ``python -m jobs.NAME``."""
    return f"raylm {name}" if Path(sys.argv[0]).name == "raylm" else f"python -m jobs.{name}"


def _quote_override(override: str, text: str) -> str:
    """Return ``override`` with its text quoted, so that it is read as a text, whatever it looks like."""
    return f"{override}{json.dumps(text, ensure_ascii=False)}"


def describe_version() -> str:
    """Return the name and the version of the distribution."""
    try:
        return f"raylm {version('raylm')}"
    except PackageNotFoundError:
        return "raylm (not installed)"
