"""One picture of a retraining under load: what went on, how good and how quick the answers were, who gave them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullLocator,
    PercentFormatter,
)
from numpy.typing import NDArray
from scipy import stats

from pipelines.report.training_pictures import BLUE, GREY, ORANGE, VERMILLION

SPAN = 200
"""Answers that the moving accuracy looks back on."""
LEAST = 50
"""Answers before it is shown."""
CONFIDENCE = 0.95
BIN_S = 10.0

COLOURS = ((BLUE, BLUE), (ORANGE, "#8A5E00"))
"""Of the versions: of areas and lines, and a darker one for words."""
SHADES = ("#DCE6EE", "#BCCFDF")
# Of the text over the bars, at 9 points and 100 dots an inch.
_LETTER_PX, _GAP_PX, _WIDTH_PX = 6.6, 8.0, 830.0


@dataclass(frozen=True)
class Request:
    """What came of a request.

    Attributes:
        at: when it ended, in seconds since the load began.
        seconds: that it took.
        version: of the model that answered; "" where it failed.
        right: whether the answer is.
    """

    at: float
    seconds: float
    version: str
    right: bool


@dataclass(frozen=True)
class Phase:
    """A stretch of the retraining, in seconds since the load began."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Loop:
    """A retraining under load.

    Attributes:
        requests: in the order in which they ended.
        arrived: when the new tars came, in seconds since the load began.
        phases: of the retraining, each from the end of the one before.
    """

    requests: Sequence[Request]
    arrived: float
    phases: Sequence[Phase]

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def open(cls, file: Path) -> Self:
        tree = json.loads(file.read_text(encoding="utf-8"))
        requests = [Request(**request) for request in tree["requests"]]
        return cls(requests, tree["arrived"], [Phase(**phase) for phase in tree["phases"]])


def draw(loop: Loop) -> Figure:
    """What went on, and below it accuracy, requests/s and latency, over one axis of time; to be read at 900 pixels."""
    figure = Figure(figsize=(9, 7.4), layout="constrained")
    failed = sum(not request.version for request in loop.requests)
    title = f"Retrained and swapped under load: {len(loop.requests):,} requests, {failed or 'none'} failed"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    panels = figure.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": [0.8, 2.3, 1.2, 1.5]})
    for axes, panel in zip(panels, (_phases, _accuracy, _rate, _latency), strict=True):
        panel(axes, loop)
    for axes in panels[1:]:
        _plain(axes)
        for moment in (loop.arrived, *(phase.end for phase in loop.phases)):
            axes.axvline(moment, color="#CCCCCC", linewidth=0.8, zorder=0)
    last = panels[-1]
    last.set_xlabel("minutes under load")
    last.set_xlim(0, _end(loop))
    last.xaxis.set_major_locator(MultipleLocator(60.0 * max(1, round(_end(loop) / 600))))
    last.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{second / 60:g}"))
    return figure


def _phases(axes: Axes, loop: Loop) -> None:
    """A bar for each phase. A name that is longer than its bar stands above, to the left of a line to it, and above the
    lines that it would cross.
    """
    axes.set_axis_off()
    axes.set_ylim(0, 3.4)
    spans = [Phase("tars arrive", loop.arrived, loop.arrived), *loop.phases]
    lines: list[tuple[float, int]] = []  # where the lines to the bars are, and in which row of names they end
    per_px = _end(loop) / _WIDTH_PX
    for number, phase in enumerate(spans):
        middle, length = (phase.start + phase.end) / 2, phase.end - phase.start
        width = len(phase.name) * _LETTER_PX * per_px
        if length:
            colour = SHADES[number % 2]
            axes.barh(0.45, length, left=phase.start, height=0.9, color=colour, edgecolor="white", linewidth=0.8)
        else:
            axes.plot([middle], [0.45], marker="v", color="black", markersize=7, clip_on=False)
        if width < length:
            axes.text(middle, 0.43, phase.name, ha="center", va="center", fontsize=9)
            continue
        row = max((row + 1 for at, row in lines if at + _GAP_PX * per_px > middle - width), default=0)
        lines.append((middle, row))
        height = 1.1 + 0.8 * row
        axes.plot([middle, middle], [0.9, height + 0.6], color=GREY, linewidth=0.8)
        axes.text(middle - 0.4 * _GAP_PX * per_px, height, phase.name, ha="right", va="bottom", fontsize=9)


def _accuracy(axes: Axes, loop: Loop) -> None:
    """Of each version, over its last answers, with the interval that chance leaves."""
    axes.set_title(
        f"Accuracy over HTTP on held-out questions, of the last {SPAN} answers; band: {CONFIDENCE:.0%} interval",
        loc="left", fontsize=10,
    )  # fmt: skip
    lowest = 1.0
    for (colour, dark), (version, requests) in zip(COLOURS, _by_version(loop), strict=False):
        at_N = np.array([request.at for request in requests])
        right_N = np.array([request.right for request in requests], np.float64)
        count_N = np.minimum(np.arange(1, len(right_N) + 1), SPAN)
        total_N = np.cumsum(right_N)
        hits_N = total_N - np.concatenate([np.zeros(min(SPAN, len(total_N))), total_N[:-SPAN]])
        shown = count_N >= min(LEAST, len(right_N))  # a handful of answers say nothing
        at_N, count_N, hits_N = at_N[shown], count_N[shown], hits_N[shown]
        low_N, high_N = _wilson(hits_N, count_N)
        axes.fill_between(at_N, low_N, high_N, color=colour, alpha=0.18, linewidth=0)
        axes.plot(at_N, hits_N / count_N, color=colour, linewidth=1.8)
        lowest = min(lowest, float(low_N.min()))
        label = f"version {version}: {right_N.mean():.1%} of {len(right_N):,} answers"
        # Below the band, at its end.
        axes.annotate(
            label, (at_N[-1], low_N[-1]), (0, -4), textcoords="offset points", ha="right", va="top", fontsize=10,
            color=dark, weight="bold",
        )  # fmt: skip
    axes.set_ylim(max(0.0, lowest - 0.12), 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _rate(axes: Axes, loop: Loop) -> None:
    """Answers of each version, and failures, stacked."""
    axes.set_title("Answers/s by version, and failures", loc="left", fontsize=10)
    edges = np.linspace(0.0, _end(loop), max(2, round(_end(loop) / BIN_S) + 1))
    below = np.zeros(len(edges) - 1)
    failed = [request for request in loop.requests if not request.version]
    groups = [(f"version {version}", requests, 0.45) for version, requests in _by_version(loop)]
    groups.append((f"{len(failed)} failed", failed, 1.0))
    colours = [colour for colour, _ in COLOURS[: len(groups) - 1]] + [VERMILLION]
    for colour, (name, requests, alpha) in zip(colours, groups, strict=True):
        if not requests:
            continue
        counts = np.histogram([request.at for request in requests], edges)[0] / np.diff(edges)
        axes.stairs(below + counts, edges, baseline=below, fill=True, color=colour, alpha=alpha, linewidth=0)
        middle = float(np.median([request.at for request in requests]))
        axes.text(middle, 1.04 * (below + counts).max(), name, ha="center", va="bottom", fontsize=10)
        below += counts
    axes.set_ylim(0, 1.45 * below.max())
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _latency(axes: Axes, loop: Loop) -> None:
    """Each answer as a dot, and the median."""
    axes.set_title("Latency of each answer, and the median (line)", loc="left", fontsize=10)
    for (colour, _), (_, requests) in zip(COLOURS, _by_version(loop), strict=False):
        at_N, seconds_N = (np.array([getattr(r, name) for r in requests]) for name in ("at", "seconds"))
        axes.scatter(at_N, seconds_N, s=5, color=colour, alpha=0.35, linewidths=0, rasterized=True)
    at_N, seconds_N = (np.array([getattr(r, name) for r in loop.requests if r.version]) for name in ("at", "seconds"))
    bins = (at_N // BIN_S).astype(int)
    medians = [(n + 0.5, float(np.median(seconds_N[bins == n]))) for n in np.unique(bins)]
    axes.plot([BIN_S * n for n, _ in medians], [median for _, median in medians], color="black", linewidth=1.4)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{second:g} s"))


def _by_version(loop: Loop) -> list[tuple[str, list[Request]]]:
    versions = dict.fromkeys(request.version for request in loop.requests if request.version)
    return [(version, [r for r in loop.requests if r.version == version]) for version in versions]


def _wilson(hits_N: NDArray[np.float64], count_N: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of a share (Wilson 1927), which stays within 0 and 1."""
    z = stats.norm.ppf((1 + CONFIDENCE) / 2)
    share_N = hits_N / count_N
    centre_N = (share_N + z**2 / (2 * count_N)) / (1 + z**2 / count_N)
    half_N = z / (1 + z**2 / count_N) * np.sqrt(share_N * (1 - share_N) / count_N + z**2 / (4 * count_N**2))
    return centre_N - half_N, centre_N + half_N


def _end(loop: Loop) -> float:
    return max(request.at for request in loop.requests)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
