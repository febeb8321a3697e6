"""Settings of the job ``embed``."""

from __future__ import annotations

from pydantic import Field

from vlmodel.config import ConfigSection
from vlmodel.locations import Location


class EmbedConfig(ConfigSection):
    """Settings of what the embed job turns into vectors. The model is that of evaluate.model; predict.workers,
    predict.cpus_per_worker and predict.gpus_per_worker set the number of its copies and their resources, predict.batch
    the number of samples in a batch.
    """

    split: str = ""
    """Split of which the samples are embedded; "" takes all."""
    task: str = ""
    """The contrastive task, of a model with several; "" takes the first."""
    inputs: list[str] = []
    """What is embedded of each sample that has it: "text" (its captions), and the input that the task compares with
    them, such as "image". [] takes both."""
    out: Location = ""
    """Folder or URI of the vectors; "" is `embeddings` in the run's folder. Vectors of tars that did not change are
    kept."""
    samples_per_file: int = Field(4096, ge=1)
    """Most samples of one Parquet file; a file has samples of one tar. A job that was stopped goes on after the last
    file."""
