"""What all entry points share: the command line, and errors told as one message."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs import signals
from jobs.cluster import ClusterError
from jobs.config import JobConfig
from pipelines.data.errors import DataError, printable
from pipelines.registry.errors import ArtifactError, RegistryError, SmokeError
from pipelines.retrain.errors import RetrainError
from pipelines.search.errors import SearchError
from pipelines.serve.errors import ServeError
from pipelines.train.checkpoint import CheckpointError
from pipelines.train.errors import LostWorkerError, RunInUseError
from pipelines.train.step import NonFiniteLossError
from pipelines.train.tracking import TrackingError
from vlmodel.config import ConfigError, dump, explain_keys, load
from vlmodel.parts import WeightsError

EXPECTED = (
    ArtifactError, CheckpointError, ClusterError, ConfigError, DataError, LostWorkerError, NonFiniteLossError,
    RegistryError, RetrainError, RunInUseError, SearchError, ServeError, SmokeError, TrackingError, WeightsError,
)  # fmt: skip
"""Errors that say by themselves what is wrong and what to do."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(
    run: Callable[[JobConfig], Any],
    name: str,
    argv: Sequence[str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> int:
    """Parse the command line, run the job, and return its exit status: 0, 1 for a failure, 2 for wrong usage, 128 +
    the number of the signal that ended it (130 for Ctrl-C, 143 for SIGTERM).

    Args:
        flags: short forms of settings that are this job's own, such as ``{"--report": "data.index.report=true"}``.
    """
    _print_everything()
    arguments = _parser(run, name, flags or {}).parse_args(argv)
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
        run(config)
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


def expected_cause(error: BaseException | None) -> BaseException | None:
    """An error that needs no traceback (one of ours, or a full disk), or that is inside those that Ray wraps around
    what its workers raise.
    """
    seen: set[int] = set()
    pending = [error]
    while pending:
        here = pending.pop()
        if here is None or id(here) in seen:
            continue
        seen.add(id(here))
        # Ray's copy of an error is of the same type, and its text is a traceback.
        inner = getattr(here, "cause", None)
        if isinstance(inner, BaseException) and not isinstance(inner, type(here)):
            here = inner
        if isinstance(here, EXPECTED) or _is_full(here):
            return here
        failures = getattr(here, "worker_failures", None)
        pending += [here.__cause__, here.__context__, getattr(here, "cause", None)]
        pending += list(failures.values()) if isinstance(failures, dict) else []
    return None


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def message_of(error: BaseException) -> str:
    """What a user is told of an error that ``expected_cause`` gave."""
    remedy = "; make room and start the job again: it continues from the last whole checkpoint or shard"
    # Ray Data adds how often it tried, and how to have it try again.
    text = str(error).partition("\nFailed to apply UDF transform after")[0]
    lines = f"{text}{remedy if _is_full(error) else ''}".split("\n")
    return "\n".join(printable(line) for line in lines)  # names of files and keys may hold control characters


class _Help(argparse.Action):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            parser.print_help()
            print("\nsettings (key, default, meaning):")
            width = _width()
            for key, default, doc in explain_keys(JobConfig):
                shown = default if len(default) <= 40 else f"{default[:37]}..."
                print(textwrap.fill(f"{key} = {shown}  {doc}", width, initial_indent="  ", subsequent_indent="      "))
            sys.stdout.flush()
        except BrokenPipeError:  # The reader (head, a pager that was left) has what it wants.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit()


def _width() -> int:
    """Of help, in letters: the terminal's, up to what reads well."""
    return min(118, shutil.get_terminal_size().columns - 2)


def _parser(run: Callable[[JobConfig], Any], name: str, flags: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{name}",
        description="\n\n".join(
            textwrap.fill(" ".join(paragraph.split()), _width())
            for paragraph in (sys.modules[run.__module__].__doc__ or "").split("\n\n")
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
