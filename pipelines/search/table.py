"""Formats the results of many trainings as one table, for the terminal and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from pipelines.search.grid import GridCell, format_value, short_setting_name
from pipelines.search.results import SearchTrial, TrainingResult, sample_standard_deviation

Row = dict[str, Any]
_MAX_CELL = 60


def ablation_table_rows(
    cells: Sequence[GridCell[Any]], seeds: Sequence[int], results: Mapping[tuple[str, int], TrainingResult], metric: str
) -> list[Row]:
    """Make a table row for each cell, in the order of the grid: mean and sample standard deviation over its seeds.

    Args:
        results: by the cell's slug and the seed.
    """
    rows = []
    for cell in cells:
        by_seed = {seed: results[cell.slug, seed] for seed in seeds}
        scored = [result for result in by_seed.values() if result.score is not None]
        scores = [result.score for result in scored if result.score is not None]
        row: Row = _settings_columns(cell.settings)
        row[metric] = statistics.fmean(scores) if scores else None
        row["spread"] = sample_standard_deviation(scores)
        row |= {f"seed {seed}": result.score for seed, result in by_seed.items()}
        for name in ("parameters", "seconds", "images_per_s"):
            row[name.replace("_per_", "/")] = statistics.fmean(getattr(r, name) for r in scored) if scored else None
        row["status"] = "; ".join(dict.fromkeys(map(describe_training_status, by_seed.values())))
        rows.append(row)
    return rows


def tuning_table_rows(trials: Sequence[SearchTrial], results: Mapping[int, TrainingResult], metric: str) -> list[Row]:
    """Make a table row for each trial, the best first."""
    rows = []
    for trial in trials:
        result = results[trial.number]
        row: Row = {"trial": trial.number + 1}
        row |= _settings_columns(trial.settings)
        row |= {metric: result.score, "best epoch": result.best_epoch, "epochs": result.epochs}
        row |= {"parameters": result.parameters, "seconds": result.seconds, "images/s": result.images_per_s}
        rows.append(row | {"status": describe_training_status(result)})
    return sorted(rows, key=lambda row: (row[metric] is None, -(row[metric] or 0.0)))


def describe_training_status(result: TrainingResult) -> str:
    """Describe the status of a training, with the first line of its reason."""
    return f"{result.status}: {result.reason.splitlines()[0]}" if result.reason else result.status


def markdown_table(rows: Sequence[Row]) -> str:
    """Format rows as a table with aligned columns, readable as Markdown and on a terminal. Long reasons are
    shortened.
    """
    columns = list(rows[0])
    lines = [columns, *([_format_cell(column, row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    numeric = [all(isinstance(row[column], int | float | None) for row in rows) for column in columns]

    def join_table_cells(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (w - 1)}:" if right else "-" * w for w, right in zip(widths, numeric, strict=True)]
    return "\n".join([join_table_cells(lines[0]), join_table_cells(rule), *map(join_table_cells, lines[1:])])


def _settings_columns(settings: Mapping[str, Any]) -> Row:
    # Fractions as they were typed; the other columns have four decimals.
    return {
        short_setting_name(key): value if isinstance(value, int) else format_value(value)
        for key, value in settings.items()
    }


def _format_cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column == "parameters":
        return f"{value:,.0f}"
    if column in ("seconds", "images/s"):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4f}"
    return shorten(str(value), _MAX_CELL, placeholder=" …").replace("|", "\\|")
