"""Settings of the jobs that train many times: which settings vary, and how many trainings run at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field, field_validator

from vlmodel.config import ConfigSection

RANGES = ("uniform", "loguniform", "randint")
SHARED = frozenset(
    {
        "name", "seed", "storage", "cluster", "source", "data", "tracking", "registry", "serve", "predict", "evaluate",
        "ablate", "tune", "retrain",
    }
)  # fmt: skip
"""Settings that all trainings of a search share; seeds are named beside the grid."""


class AblateConfig(ConfigSection):
    """Settings of a grid of trainings that differ only in the settings named here."""

    grid: dict[str, list[Any]] = {}
    """Dotted setting -> its values, as {"model.fusion.kind" = ["concat", "transformer"]}; every combination is run."""
    seeds: list[int] = [0]
    """Each combination is trained with each of these seeds."""
    concurrent: int = Field(1, ge=1)
    """Trainings at one time. The cluster needs the CPUs (GPUs) of their workers and of their streams together."""

    @field_validator("grid")
    @classmethod
    def _check_values_distinct(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        _refuse_shared_settings(grid)
        for key, values in grid.items():
            if not values or any(value in values[:n] for n, value in enumerate(values)):
                raise ValueError(f"{key!r} = {values!r}: name at least one value, and none of them twice")
        return grid

    @field_validator("seeds")
    @classmethod
    def _check_seeds_distinct(cls, seeds: list[int]) -> list[int]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"{seeds!r}: name at least one seed, none below 0 and none twice")
        return seeds


class TuneConfig(ConfigSection):
    """Settings of a search for good settings: random samples, of which the worst are stopped early (ASHA)."""

    space: dict[str, dict[str, list[Any]]] = {}
    """Dotted setting -> its distribution: {loguniform = [1e-4, 1e-2]}, {uniform = [low, high]}, {randint = [low, high]}
    (high excluded) or {choice = [a, b, c]}."""
    samples: int = Field(8, ge=1)
    """Trainings (trials)."""
    concurrent: int = Field(1, ge=1)
    """Trials at one time. The cluster needs the CPUs (GPUs) of their workers and of their streams together."""
    grace_epochs: int = Field(1, ge=1)
    """Epochs after which a trial can be stopped at the earliest."""
    reduction: int = Field(3, ge=2)
    """At each of ASHA's comparisons (after grace_epochs times 1, r, r^2, ... epochs) the best 1/r of the trials
    continue."""

    @field_validator("space")
    @classmethod
    def _check_distributions(cls, space: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
        _refuse_shared_settings(space)
        if "train.epochs" in space:
            raise ValueError("'train.epochs' is how long a trial may last; ASHA chooses among equal ones")
        for key, distribution in space.items():
            if problem := _describe_distribution_problem(distribution):
                raise ValueError(f"{key!r} = {distribution!r}: {problem}")
        return space


def _refuse_shared_settings(settings: Iterable[str]) -> None:
    for key in settings:
        if key.partition(".")[0] in SHARED:
            raise ValueError(f"{key!r} is the same for all trainings of a search; vary other settings")


def _describe_distribution_problem(distribution: dict[str, list[Any]]) -> str:
    if len(distribution) != 1:
        return f"name one distribution: choice, {', '.join(RANGES)}"
    ((kind, values),) = distribution.items()
    if kind == "choice":
        return "" if values else "name at least one value"
    if kind not in RANGES:
        return f"{kind!r} is unknown; use choice, {', '.join(RANGES)}"
    number = int if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(v, number) and not isinstance(v, bool) for v in values):
        return f"{kind} takes [low, high], two {'whole ' if kind == 'randint' else ''}numbers"
    if values[0] >= values[1]:
        return "low must be below high"
    if kind == "loguniform" and values[0] <= 0:
        return "loguniform needs bounds above 0"
    return ""
