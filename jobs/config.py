"""The configuration tree of all jobs. Each section stands beside what it configures; here they are only joined."""

from __future__ import annotations

from pydantic import Field, model_validator

from jobs.cluster import ClusterConfig
from pipelines.data.index import IndexConfig
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.stream import StreamConfig
from pipelines.data.vocabulary import VocabularyConfig
from pipelines.evaluate.predict import PredictConfig
from pipelines.registry.config import RegistryConfig
from pipelines.search.config import AblateConfig, TuneConfig
from pipelines.serve.config import ServeConfig
from pipelines.train.loop import TrainConfig
from pipelines.train.tracking import TrackingConfig
from vlmodel.config import Section, part
from vlmodel.model import ModelConfig
from vlmodel.processor import ProcessorConfig


class DataConfig(Section):
    """The tars."""

    tars: str = "build/data"
    """Folder or URI (s3://...) of the tars; import_data writes there, all other jobs read."""
    index: IndexConfig = IndexConfig()


class EvaluateConfig(Section):
    """What the evaluate and predict jobs answer, and with which model."""

    model: str = ""
    """"" takes the run's registered version, "champion" the deployed one; else a version number or a model folder."""
    split: str = "test"
    """Split to answer; "" takes all samples."""
    task: str = ""
    """The predict job's task, of a model with several; "" takes its first. The evaluate job judges all."""
    out: str = ""
    """Parquet file of the answers; "" puts it into the run's folder."""
    examples: int = Field(12, ge=0)
    """Pictures on the page of right and wrong examples."""


class JobConfig(Section):
    """Settings of all jobs."""

    name: str = Field("vqa", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    """Name of the run. The same name continues, or finds finished, what an earlier job began."""
    seed: int = Field(0, ge=0)
    """Of weights, order, dropout and augmentation."""
    storage: str = "build/runs"
    """Folder or URI for runs and checkpoints; shared by all nodes where there are several."""
    cluster: ClusterConfig = ClusterConfig()
    source: part("pipelines.data.importers", "scenes") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """What import_data reads."""
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    processor: ProcessorConfig = ProcessorConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    stream: StreamConfig = StreamConfig()
    predict: PredictConfig = PredictConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    registry: RegistryConfig = RegistryConfig()
    serve: ServeConfig = ServeConfig()
    ablate: AblateConfig = AblateConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _features_stay(self) -> JobConfig:
        kept = f"train.feature_cache={self.train.feature_cache!r} keeps what the vision backbone gives of each image"
        if self.train.feature_cache == "off":
            return self
        if not self.model.vision.rests():
            raise ValueError(
                f"{kept}, and with model.vision.frozen=false training changes that; set model.vision.frozen=true, or "
                "train.feature_cache=off"
            )
        if self.train.augment.active:
            raise ValueError(
                f"{kept}, and train.augment (flip={self.train.augment.flip}, min_area={self.train.augment.min_area}) "
                "changes the images in each epoch; set flip=0.0 and min_area=1.0, or train.feature_cache=off"
            )
        return self
