"""Cells of a grid: what they change, what they keep, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.search.grid import check_grid, combination_name, first_valid_cells, grid_cells, override_settings
from pipelines.workflows.config import JobConfig
from vlmodel.config import ConfigError, load_config

FILE = """
name = "base"
[model.fusion]
width = 48
rounds = 3
[train]
epochs = 2
"""


@pytest.fixture
def base(tmp_path: Path) -> JobConfig:
    file = tmp_path / "base.toml"
    file.write_text(FILE)
    return load_config(JobConfig, file)


def test_every_combination_is_a_cell_that_differs_in_nothing_else(base: JobConfig) -> None:
    grid = {"train.epochs": [1, 5], "train.optimizer.head_lr": [0.1, 0.2, 0.3]}
    found = grid_cells(base, grid, "ablate.grid")
    assert [(c.config.train.epochs, c.config.train.optimizer.head_lr) for c in found] == [
        (1, 0.1), (1, 0.2), (1, 0.3), (5, 0.1), (5, 0.2), (5, 0.3)
    ]  # fmt: skip
    for cell in found:
        assert cell.config is not None
        assert override_settings(
            cell.config, {"train.epochs": 2, "train.optimizer.head_lr": 1e-3}
        ) == override_settings(base, {"train.optimizer.head_lr": 1e-3})


def test_another_kind_keeps_the_settings_that_it_has_too(base: JobConfig) -> None:
    concat = override_settings(base, {"model.fusion.kind": "concat"}).model.fusion
    assert (concat.kind, concat.width) == ("concat", 48)
    transformer = override_settings(base, {"model.fusion.kind": "transformer"}).model.fusion
    assert (transformer.width, transformer.rounds) == (48, 3)


def test_a_setting_of_the_new_kind_may_stand_before_the_kind(base: JobConfig) -> None:
    fusion = override_settings(base, {"model.fusion.rounds": 7, "model.fusion.kind": "transformer"}).model.fusion
    assert (fusion.kind, fusion.rounds) == ("transformer", 7)


def test_a_refused_combination_says_why_and_leaves_the_others(base: JobConfig) -> None:
    grid = {"model.fusion.kind": ["concat", "transformer"], "model.fusion.rounds": [1]}
    refused, valid = grid_cells(base, grid, "ablate.grid")
    assert refused.config is None
    assert "unknown key 'model.fusion.rounds'; valid keys of model.fusion" in refused.refused
    assert valid.config.model.fusion.rounds == 1
    check_grid(base, grid, "tune.space")


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({}, "ablate.grid is empty"),
        (
            {"model.fusion.widht": [8]},
            r"'model.fusion.widht'; did you mean 'model.fusion.width'\?.* of model.fusion: .*width",
        ),
        (
            {"train.epoch": [1], "model.fusion.kind": ["concat"]},
            "unknown key 'train.epoch'; did you mean 'train.epochs'",
        ),
        ({"nonsense.a": [1]}, "unknown key 'nonsense'"),
        ({"train.epochs.x": [1]}, "'epochs' is a value, not a section"),
        ({"train.epochs": ["many"]}, "train.epochs = 'many'"),
        ({"model.fusion.kind": ["concat", "magic"]}, "ablate.grid: model.fusion.kind: kind 'magic'.*choose one of"),
    ],
)
@pytest.mark.parametrize("look", [grid_cells, check_grid])
def test_a_grid_that_cannot_be_run_is_refused(base: JobConfig, look, grid: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        look(base, grid, "ablate.grid")


def test_first_valid_cells_find_each_value_of_a_section(base: JobConfig) -> None:
    grid = {
        "train.epochs": [1, 2],
        "model.topology.kind": ["single", "dual"],
        "model.task.kind": ["vqa", "contrastive", "answer"],
    }
    found = [cell.settings for cell in first_valid_cells(base, grid, "tune.space", "model.task")]
    assert [(s["model.task.kind"], s["model.topology.kind"]) for s in found] == [
        ("vqa", "single"), ("contrastive", "dual"), ("answer", "single")
    ]  # fmt: skip
    assert {s["train.epochs"] for s in found} == {1}


def test_names_are_readable_safe_and_distinct() -> None:
    assert (
        combination_name({"model.topology.kind": "dual", "model.fusion.width": 64}) == "fusion.width-64-topology-dual"
    )
    assert combination_name({"a": 1, "b": 2}) == combination_name({"b": 2, "a": 1})
    awkward = [combination_name({"model.vision.name": name}) for name in ("a/b", "a b", "a_b", "x" * 300)]
    assert len(set(awkward)) == 4
    for name in awkward:
        JobConfig(name=f"run-{name}-s0")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ('ablate.grid={"train.epochs"=[]}', "at least one value"),
        ('ablate.grid={"train.epochs"=[1, 1]}', "none of them twice"),
        ('ablate.grid={"seed"=[1]}', "ablate.grid: 'seed' is the same for all"),
        ('ablate.grid={"storage"=["x"]}', "'storage' is the same for all"),
        ('tune.space={"data.tars"={choice=["x"]}}', "tune.space: 'data.tars' is the same for all"),
        ('tune.space={"train.epochs"={choice=[1, 2]}}', "'train.epochs' is how long a trial may last"),
        ("ablate.seeds=[]", "at least one seed"),
        ("ablate.seeds=[1, 1]", "none twice"),
        ('tune.space={"a.b"={}}', "name one distribution"),
        ('tune.space={"a.b"={normal=[0, 1]}}', "'normal' is unknown; use choice, uniform, loguniform, randint"),
        ('tune.space={"a.b"={loguniform=[0, 1]}}', "bounds above 0"),
        ('tune.space={"a.b"={uniform=[2, 1]}}', "low must be below high"),
        ('tune.space={"a.b"={randint=[0, 1.5]}}', "two whole numbers"),
        ('tune.space={"a.b"={choice=[]}}', "at least one value"),
    ],
)
def test_wrong_settings_are_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(JobConfig, None, [override])


def test_the_searches_that_are_here_can_be_run() -> None:
    config = load_config(JobConfig, Path(__file__).parents[3] / "jobs" / "configs" / "easy_vqa.toml")
    assert len([cell.config for cell in grid_cells(config, config.ablate.grid, "ablate.grid")]) == 12
    assert config.tune.space
    check_grid(config, {key: v for key, d in config.tune.space.items() for v in d.values()}, "tune.space")
