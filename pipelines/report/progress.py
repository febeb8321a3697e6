"""Progress of a job: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_LINE_EVERY_S = 5.0


class Progress:
    """Shows progress when called with (done, total). Use as a context manager.

    Args:
        name: of the work.
        unit: what is counted.
        out: standard error if not given.
    """

    def __init__(self, name: str, unit: str = "shard", out: TextIO | None = None) -> None:
        self._name, self._unit, self._out = name, unit, out or sys.stderr
        self._is_terminal = self._out.isatty()
        self._bar: tqdm[None] | None = None
        self._start = time.monotonic()
        self._last_line = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        if self._is_terminal:
            if self._bar is None:
                self._bar = tqdm(total=total, desc=self._name, unit=self._unit, file=self._out, dynamic_ncols=True)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if done == total or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            meter = tqdm.format_meter(done, total, now - self._start, prefix=self._name, unit=self._unit)
            print(meter, file=self._out, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
