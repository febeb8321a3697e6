"""Draws pictures of a grid and of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipelines.report.training_pictures import BLUE, GREY, VERMILLION, style_axes
from pipelines.search.config import TuneConfig
from pipelines.search.grid import GridCell, format_value, short_setting_name
from pipelines.search.results import SearchTrial, TrainingResult, sample_standard_deviation

_BLUES = LinearSegmentedColormap.from_list("scores", ["#EAF3FA", "#9ECAE1", BLUE, "#08306B"])


def draw_ablation(
    grid: Mapping[str, Sequence[Any]],
    cells: Sequence[GridCell[Any]],
    seeds: Sequence[int],
    results: Mapping[tuple[str, int], TrainingResult],
    metric: str,
) -> Figure:
    """Draw the results of a grid: a heat map if exactly two settings vary, else a row for each cell with a dot for each
    seed.

    Args:
        results: by the cell's slug and the seed.
    """
    varied = [key for key, values in grid.items() if len(values) > 1]
    scores = {
        cell.slug: [s for s in (results[cell.slug, seed].score for seed in seeds) if s is not None] for cell in cells
    }
    statuses = {cell.slug: results[cell.slug, seeds[-1]].status for cell in cells}
    title = f"{metric.capitalize()}, mean" + (f" of {len(seeds)} seeds ± standard deviation" if len(seeds) > 1 else "")
    if len(varied) == 2:
        return _draw_heat_map(grid, varied[0], varied[1], cells, scores, statuses, title)
    return _draw_dot_plot(varied or list(grid), cells, scores, statuses, metric)


def draw_trials(
    config: TuneConfig, trials: Sequence[SearchTrial], results: Mapping[int, TrainingResult], metric: str
) -> Figure:
    """Draw the score of each trial against each setting of the search space. Full dots were trained to the end, hollow
    ones stopped early.
    """
    shown = [(trial, result) for trial in trials if (result := results[trial.number]).score is not None]
    columns = min(3, len(config.space))
    lines = -(-len(config.space) // columns)
    figure = Figure(figsize=(max(6.4, 4.4 * columns + 0.4), 3.5 * lines + 0.7), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    best = max(shown, key=lambda pair: pair[1].score or 0.0, default=None)
    for axes, (key, distribution) in zip(panels, config.space.items(), strict=False):
        (kind,) = distribution
        names = [format_value(value) for value in distribution[kind]]
        if kind == "choice":
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.6, len(names) - 0.4)
        elif kind == "loguniform":
            axes.set_xscale("log")

        def x_position(trial: SearchTrial, key: str = key, kind: str = kind, names: list[str] = names) -> float:
            value = trial.settings[key]
            return float(names.index(format_value(value))) if kind == "choice" else float(value)

        for ended, label in ((True, "trained to the end"), (False, "stopped early")):
            pairs = [(t, r) for t, r in shown if (r.status != "stopped") == ended]
            axes.scatter(
                [x_position(t) for t, _ in pairs], [r.score or 0.0 for _, r in pairs], s=46, linewidths=1.5,
                facecolors=BLUE if ended else "none", edgecolors=BLUE, alpha=0.85, label=label, zorder=2,
            )  # fmt: skip
        if best is not None:
            axes.scatter(
                [x_position(best[0])], [best[1].score or 0.0], s=190, facecolors="none", edgecolors=VERMILLION,
                linewidths=2, label=f"best: trial {best[0].number + 1}, {best[1].score:.4f}", zorder=3,
            )  # fmt: skip
        axes.set_xlabel(short_setting_name(key))
        style_axes(axes)
    for axes in list(figure.axes)[len(config.space) :]:
        axes.set_axis_off()
    for row in range(lines):
        figure.axes[row * columns].set_ylabel(metric)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return figure


def _draw_heat_map(
    grid: Mapping[str, Sequence[Any]],
    down: str,
    across: str,
    cells: Sequence[GridCell[Any]],
    scores: Mapping[str, Sequence[float]],
    statuses: Mapping[str, str],
    title: str,
) -> Figure:
    rows, columns = list(grid[down]), list(grid[across])
    means = np.full((len(rows), len(columns)), np.nan)
    notes: dict[tuple[int, int], str] = {}
    for cell in cells:
        x_position = rows.index(cell.settings[down]), columns.index(cell.settings[across])
        if values := scores[cell.slug]:
            means[x_position] = np.mean(values)
            deviation = sample_standard_deviation(values)
            notes[x_position] = f"{means[x_position]:.4f}" + ("" if deviation is None else f"\n± {deviation:.4f}")
        else:
            notes[x_position] = statuses[cell.slug]
    figure = Figure(figsize=(1.6 * len(columns) + 2.6, 0.85 * len(rows) + 1.9), layout="constrained")
    axes = figure.add_subplot()
    known = means[np.isfinite(means)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    # The colour scale spans at least 0.01, so that cells which hardly differ have the same colour.
    middle, half = (low + high) / 2, max((high - low) / 2, 0.005)
    image = axes.imshow(means, cmap=_BLUES, vmin=middle - half, vmax=middle + half, aspect="auto")
    for (row, column), note in notes.items():
        value = means[row, column]
        if not np.isfinite(value):
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="#F2F2F2", edgecolor="#C8C8C8", hatch="//", lw=0)
            )
        dark = np.isfinite(value) and value > middle + 0.1 * half
        box = None if np.isfinite(value) else {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(
            column, row, note, ha="center", va="center", fontsize=11, color="white" if dark else "black", bbox=box,
            weight="bold" if value == high else "normal",
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), [format_value(value) for value in columns])
    axes.set_yticks(range(len(rows)), [format_value(value) for value in rows])
    axes.set_xlabel(short_setting_name(across))
    axes.set_ylabel(short_setting_name(down))
    axes.set_title(title, fontsize=11, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, shrink=0.9)
    return figure


def _draw_dot_plot(
    keys: Sequence[str],
    cells: Sequence[GridCell[Any]],
    scores: Mapping[str, Sequence[float]],
    statuses: Mapping[str, str],
    metric: str,
) -> Figure:
    figure = Figure(figsize=(8.5, 0.42 * len(cells) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(cells, key=lambda cell: np.mean(scores[cell.slug]) if scores[cell.slug] else -1.0)
    several = any(len(values) > 1 for values in scores.values())
    known = [value for values in scores.values() for value in values]
    for row, cell in enumerate(ordered):
        if values := scores[cell.slug]:
            axes.scatter(
                values, [row] * len(values), s=38, color=BLUE, alpha=0.7, linewidths=0, zorder=2,
                label="a seed" if row == len(ordered) - 1 and several else None,
            )  # fmt: skip
            mean = float(np.mean(values))
            if several:
                label = "mean" if row == len(ordered) - 1 else None
                axes.plot([mean] * 2, [row - 0.3, row + 0.3], color=VERMILLION, linewidth=2.5, zorder=3, label=label)
            axes.text(1.01, row, f"{mean:.4f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        elif known:
            style: dict[str, Any] = {"va": "center", "color": GREY, "fontsize": 9, "style": "italic"}
            axes.text(0.5, row, statuses[cell.slug], transform=axes.get_yaxis_transform(), ha="center", **style)
    names = [
        "  ".join(f"{short_setting_name(key)} {format_value(cell.settings[key])}" for key in keys) for cell in ordered
    ]
    axes.set_yticks(range(len(ordered)), names)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(metric)
    if several:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9)
    style_axes(axes)
    return figure
