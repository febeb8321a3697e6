"""Shows the progress of a job and the time left: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TextIO, cast

from tqdm import tqdm

_LINE_EVERY_S = 5.0
_LOG_COLUMNS = 80
_BAR_COLUMNS, _ROWS = 12, 20


class Progress:
    """Shows the progress of a job when it is called with (done, total). Use as a context manager.

    Args:
        name: of the work.
        unit: what is counted.
        out: standard error if not given.
    """

    def __init__(self, name: str, unit: str = "shard", out: TextIO | None = None) -> None:
        self._name, self._unit, self._out = name, unit, out or sys.stderr
        self._is_terminal = self._out.isatty()
        self._bar: tqdm[None] | None = None
        self._start = self._last_line = time.monotonic()
        self._first: int | None = None
        self._stack = contextlib.ExitStack()

    def __call__(self, done: int, total: int, facts: Sequence[str] = (), left_s: float | None = None) -> None:
        """Show how much of the work is done.

        Args:
            facts: texts to show beside it, the most important first; those for which there is no room are left out.
            left_s: seconds that are left; by default as the work has gone so far.
        """
        seconds = time.monotonic() - self._start
        if self._first is None:
            self._first = done  # What was done before this start says nothing of the speed.
        if left_s is None and self._first < done:
            left_s = seconds / (done - self._first) * (total - done)
        parts = [f"{self._name}  {self._unit} {done}/{total}"]
        if done == total:
            parts.append(f"took {format_duration(seconds)}")
        elif left_s is not None:
            parts.append(f"left {format_duration(left_s)}")
        if self._is_terminal:
            self._show_bar(done, total, [*parts, *facts])
        elif done == total or self._start + seconds - self._last_line >= _LINE_EVERY_S:
            self._last_line = self._start + seconds
            print(join_parts_that_fit([*parts, *facts], _LOG_COLUMNS), file=self._out, flush=True)

    def _show_bar(self, done: int, total: int, parts: Sequence[str]) -> None:
        columns = shutil.get_terminal_size().columns - 1
        if self._bar is None:
            # A terminal that tells no size has 0 rows, and tqdm would show nothing.
            self._bar = tqdm(total=total, file=self._out, bar_format="{desc}  {bar}", ncols=columns, nrows=_ROWS)
            for redirect, stream in (
                (contextlib.redirect_stdout, sys.stdout),
                (contextlib.redirect_stderr, sys.stderr),
            ):
                if stream.isatty():
                    self._stack.enter_context(redirect(cast(TextIO, _StreamAboveBar(stream, self._bar))))
        self._bar.ncols = columns
        self._bar.set_description_str(join_parts_that_fit(parts, columns - _BAR_COLUMNS), refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._bar is not None:
            self._bar.close()


class _StreamAboveBar:
    """A terminal's stream whose lines appear above the progress bar, and not at the bar's end."""

    def __init__(self, stream: TextIO, bar: tqdm[None]) -> None:
        self._stream, self._bar, self._held = stream, bar, ""

    def write(self, text: str) -> int:
        lines, newline, self._held = f"{self._held}{text}".rpartition("\n")
        if newline:
            self._bar.clear()
            self._stream.write(f"{lines}\n")
            self._stream.flush()
            self._bar.refresh()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def reported_wait(name: str, at_most_s: float, every_s: float = _LINE_EVERY_S) -> Iterator[None]:
    """Print a line to standard error now and then while the block waits for what cannot say how far it is.

    Args:
        name: of what is waited for.
        at_most_s: seconds after which the block gives up.
    """
    ended, begun = threading.Event(), time.monotonic()

    def report() -> None:
        while not ended.wait(every_s):
            waited = format_duration(time.monotonic() - begun)
            print(f"{name}  for {waited}, of at most {format_duration(at_most_s)}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def join_parts_that_fit(parts: Sequence[str], columns: int) -> str:
    """Join the first part and as many of those after it as fit into a line."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) <= columns:
            line = f"{line}  {part}"
    return line


def format_duration(seconds: float) -> str:
    """Format seconds as 1:02:03, or as 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
