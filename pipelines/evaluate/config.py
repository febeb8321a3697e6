"""Settings of answering a data set. Answering imports Ray and torch; reading the settings must not."""

from __future__ import annotations

from pydantic import Field, field_validator

from vlmodel.config import ConfigSection
from vlmodel.locations import Location
from vlmodel.zero_shot import make_prompts


class PredictConfig(ConfigSection):
    """Settings of how a model answers the texts of a data set."""

    workers: int = Field(1, ge=1)
    """Copies of the model."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that each copy reserves, each with a thread of torch."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs, or the share of one, that each copy reserves; above 0 the model runs there."""
    batch: int = Field(64, ge=1)
    """Images of a batch. Results may differ in the last bits between batch sizes, never between numbers of workers."""
    top_k: int = Field(5, ge=1)
    """Answers stored for each row."""
    generation: dict[str, bool | int | float] = {}
    """For tasks that write texts: settings of transformers' GenerationConfig, such as num_beams or max_new_tokens."""


class ZeroShotConfig(ConfigSection):
    """Settings of zero-shot classification by a contrastive model, for samples that have a class
    (``source.classes=folder``).
    """

    templates: list[str] = []
    """Given, as ["a photo of a {}."], the evaluate job judges this in the place of the model's own tasks: each class is
    put into every template, and the mean of the texts' vectors stands for it."""
    names: Location = ""
    """JSON file with the names of the classes, as {"n01440764": "tench"}; the model then chooses among all of these. ""
    takes the classes of the split as they are, with blanks for _."""
    top_k: int = Field(5, ge=1)
    """Classes stored for each sample."""

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: list[str]) -> list[str]:
        make_prompts(("",), templates)
        return templates
