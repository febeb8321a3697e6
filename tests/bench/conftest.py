"""Every test of this folder is a benchmark, and records what it measured with the fixture ``figure``.

`make bench` prints the figures as a table and writes each as one JSON line to build/bench.jsonl, with the keys name,
value, unit, peer, ratio_to_peer, ratio_to_limit.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

_FIGURES = pytest.StashKey[list[dict[str, str | float | None]]]()
_KEYS = ("name", "value", "unit", "peer", "ratio_to_peer", "ratio_to_limit")


class Figure(Protocol):
    """Records one measurement.

    ``peer`` names what it is compared with and ``peer_value`` is that one's measurement in the same run and unit;
    ``limit`` is the best that the machine allows, likewise. The ratios are value / peer_value and value / limit.
    """

    def __call__(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        peer: str | None = None,
        peer_value: float | None = None,
        limit: float | None = None,
    ) -> None: ...


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray cluster of the size of this machine, for there is no other test to share it with."""
    import ray

    ray.init(
        address="local",
        object_store_memory=1 << 30,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    figures = request.config.stash.setdefault(_FIGURES, [])

    def record(
        name: str,
        value: float,
        unit: str,
        *,
        peer: str | None = None,
        peer_value: float | None = None,
        limit: float | None = None,
    ) -> None:
        if not math.isfinite(value):
            raise ValueError(f"{name} = {value}: not a measurement")
        if (peer is None) != (peer_value is None):
            raise ValueError(f"{name}: peer and peer_value belong together, got {peer!r} and {peer_value!r}")
        ratio_to_peer = None if peer_value is None else value / peer_value
        ratio_to_limit = None if limit is None else value / limit
        figures.append(dict(zip(_KEYS, (name, value, unit, peer, ratio_to_peer, ratio_to_limit), strict=True)))

    return record


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("bench")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, [])
    if not figures:
        return
    file = config.rootpath / "build" / "bench.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(figure) + "\n" for figure in figures), encoding="utf-8")

    rows = [_KEYS, *(tuple(_cell(figure[key]) for key in _KEYS) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section(f"{len(figures)} figures, {file.relative_to(config.rootpath)}")
    for row in rows:
        terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"
