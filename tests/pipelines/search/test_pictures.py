"""Pictures of grids and searches: that every number of the results is in them, at its place."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipelines.search.config import TuneConfig
from pipelines.search.grid import GridCell
from pipelines.search.pictures import draw_ablation, draw_trials
from pipelines.search.results import SearchTrial, TrainingResult

TOPOLOGY, FUSION = "model.topology.kind", "model.fusion.kind"


def grid_of(
    grid: dict[str, list[Any]], seeds: list[int]
) -> tuple[list[GridCell[Any]], dict[tuple[str, int], TrainingResult]]:
    found: list[GridCell[Any]] = []
    for n, values in enumerate(itertools.product(*grid.values())):
        found.append(GridCell(str(n), dict(zip(grid, values, strict=True)), None))
    return found, {
        (cell.slug, seed): TrainingResult("finished", score=0.6 + 0.03 * n + 0.004 * seed)
        for n, cell in enumerate(found)
        for seed in seeds
    }


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_grid_of_two_settings_is_a_heat_map_with_its_values(tmp_path: Path) -> None:
    grid = {TOPOLOGY: ["dual", "single"], FUSION: ["concat", "gated", "transformer"], "train.epochs": [4]}
    found, records = grid_of(grid, [0, 1])
    records["5", 0] = records["5", 1] = TrainingResult("refused", "does not fit")
    figure = draw_ablation(grid, found, [0, 1], records, "val accuracy")
    figure.savefig(tmp_path / "grid.png")
    axes = figure.axes[0]
    means = axes.images[0].get_array()
    assert means.shape == (2, 3)
    assert means[0, 1] == pytest.approx(0.632)
    assert np.ma.is_masked(means[1, 2])
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown[1, 0] == "0.6320\n± 0.0028"
    assert shown[2, 1] == "refused"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dual", "single"]


def test_any_other_grid_is_a_row_of_dots_for_each_cell(tmp_path: Path) -> None:
    grid = {FUSION: ["concat", "gated", "transformer"]}
    found, records = grid_of(grid, [0, 1, 2])
    for seed in range(3):
        records["0", seed] = TrainingResult("failed", "boom")
    figure = draw_ablation(grid, found, [0, 1, 2], records, "val accuracy")
    figure.savefig(tmp_path / "dots.png")
    (axes,) = figure.axes
    points = np.concatenate([c.get_offsets() for c in axes.collections])
    assert sorted(points[:, 0]) == pytest.approx([0.63, 0.634, 0.638, 0.66, 0.664, 0.668])
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "fusion concat",
        "fusion gated",
        "fusion transformer",
    ]
    assert {"0.6340", "0.6640", "failed"} <= set(texts(figure))


def test_trials_have_a_panel_for_each_setting(tmp_path: Path) -> None:
    config = TuneConfig(
        space={"train.optimizer.head_lr": {"loguniform": [1e-4, 1e-1]}, FUSION: {"choice": ["concat", "gated"]}}
    )
    found = [
        SearchTrial(n, {"train.optimizer.head_lr": 10.0 ** (n - 4), FUSION: ["concat", "gated"][n % 2]}, "")
        for n in range(4)
    ]
    records = {n: TrainingResult("stopped" if n < 2 else "finished", score=0.5 + 0.1 * n) for n in range(3)}
    records[3] = TrainingResult("failed", "boom")
    figure = draw_trials(config, found, records, "val accuracy")
    figure.savefig(tmp_path / "trials.png")
    rate, fusion = figure.axes
    assert rate.get_xscale() == "log"
    ended, stopped, best = (collection.get_offsets().tolist() for collection in rate.collections)
    assert ended == [[pytest.approx(1e-2), pytest.approx(0.7)]] == best
    assert stopped == [[pytest.approx(1e-4), 0.5], [pytest.approx(1e-3), 0.6]]
    assert fusion.collections[1].get_offsets().tolist() == [[0.0, 0.5], [1.0, 0.6]]


def test_a_search_without_any_score_has_a_picture_too() -> None:
    config = TuneConfig(space={"train.batch": {"randint": [1, 9]}})
    figure = draw_trials(
        config, [SearchTrial(0, {"train.batch": 4}, "boom")], {0: TrainingResult("failed", "boom")}, "val accuracy"
    )
    assert figure.axes
    grid = {FUSION: ["concat", "gated"]}
    cells, _ = grid_of(grid, [0])
    assert draw_ablation(grid, cells, [0], {(c.slug, 0): TrainingResult("failed") for c in cells}, "val accuracy").axes
