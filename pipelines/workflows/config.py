"""The configuration tree of all jobs. Each section is defined beside the code that it configures, and only
joined here.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

from pydantic import Field, field_validator, model_validator

from pipelines.data.index.config import IndexConfig
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.mixture import MixedSource
from pipelines.data.texts.config import VocabularyConfig
from pipelines.embeddings.config import EmbedConfig
from pipelines.evaluate.config import PredictConfig, ZeroShotConfig
from pipelines.knowledge.config import KnowledgeConfig
from pipelines.registry.config import RegistryConfig
from pipelines.registry.export import ExportConfig
from pipelines.retrain.config import RetrainConfig
from pipelines.search.config import AblateConfig, TuneConfig
from pipelines.serve.config import ServeConfig
from pipelines.tracking.address import TrackingConfig
from pipelines.train.config import TrainConfig
from pipelines.workflows.cluster import ClusterConfig
from vlmodel.config import MAY_CHANGE, ConfigError, ConfigSection, part_field, settings_changeable_on_resume
from vlmodel.encoder_parts import TEXT
from vlmodel.locations import Location
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig


class DataConfig(ConfigSection):
    """Settings of the tars from which samples are read."""

    tars: Location = Field("build/data", json_schema_extra=MAY_CHANGE)
    """Folder or URI (s3://...) of the tars; import_data writes there, all other jobs read."""
    mix: dict[str, MixedSource] = {}
    """Train on these in place of data.tars, which is then what models are judged on; a name for each."""
    mix_temperature: list[float] = [1.0]
    """Shares in the mix are in proportion to weight^(1/T): T = 1 leaves the weights, a greater T evens them out. Of
    several, T goes from one to the next over the training."""
    index: IndexConfig = IndexConfig()

    @field_validator("mix")
    @classmethod
    def _check_mix(cls, mix: dict[str, MixedSource]) -> dict[str, MixedSource]:
        for name in mix:
            if not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
                raise ValueError(f"{name!r}: a source's name has letters, digits, _ and - only")
        without = sorted(name for name, source in mix.items() if source.weight is None)
        if 0 < len(without) < len(mix):
            raise ValueError(f"{', '.join(without)} without a weight; give every source a weight, or none")
        return mix

    @field_validator("mix_temperature")
    @classmethod
    def _check_temperatures(cls, temperatures: list[float]) -> list[float]:
        if not temperatures or not all(0 < temperature < math.inf for temperature in temperatures):
            raise ValueError(f"{temperatures!r}: name at least one temperature, all above 0")
        return temperatures

    @model_validator(mode="after")
    def _check_one_kind_for_each(self) -> DataConfig:
        known = {self.tars: ("data.index.inputs", self.index.inputs)}
        for name, source in self.mix.items():
            other, inputs = known.setdefault(source.tars, (f"data.mix.{name}.inputs", source.inputs))
            if inputs != source.inputs:
                raise ValueError(
                    f"{source.tars} has one index, and data.mix.{name}.inputs={list(source.inputs)} says another thing "
                    f"of it than {other}={list(inputs)}; make them equal"
                )
        return self

    def inputs_by_tars(self) -> dict[str, tuple[str, ...]]:
        """Map each folder of tars to the inputs that its samples must have: ``tars`` first, then the sources of the
        mix.
        """
        return {self.tars: self.index.inputs} | {source.tars: source.inputs for source in self.mix.values()}


class EvaluateConfig(ConfigSection):
    """Settings of which model the evaluate and predict jobs use, and which texts it answers."""

    model: Location = ""
    """"" takes the run's registered version, "champion" the deployed one; else a version number or a model folder."""
    split: str = "test"
    """Split to answer; "" takes all samples."""
    task: str = ""
    """The predict job's task, of a model with several; "" takes its first. The evaluate job judges all."""
    out: Location = ""
    """Parquet file of the answers; "" puts it into the run's folder."""
    training: bool = True
    """Also answer as many samples of the training split, drawn by hash, to show how far both figures are apart; this
    takes as long as the split itself."""
    zero_shot: ZeroShotConfig = ZeroShotConfig()


class JobConfig(ConfigSection):
    """The settings of all jobs."""

    name: str = Field("vqa", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    """Name of the run; if not given, that of the folder in data.tars. The same name continues, or finds finished, what
    an earlier job began."""
    seed: int = Field(0, ge=0)
    """Of weights, order, dropout and augmentation."""
    storage: Location = Field("build/runs", json_schema_extra=MAY_CHANGE)
    """Folder or URI for runs and checkpoints; shared by all nodes where there are several."""
    cluster: ClusterConfig = Field(ClusterConfig(), json_schema_extra=MAY_CHANGE)
    source: part_field("pipelines.data.importers", "scenes") = Field(  # type: ignore[valid-type]
        {}, validate_default=True, json_schema_extra=MAY_CHANGE
    )
    """What import_data reads."""
    data: DataConfig = DataConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    prepare: PrepareConfig = PrepareConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    processor: ProcessorConfig = ProcessorConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    stream: StreamConfig = Field(StreamConfig(), json_schema_extra=MAY_CHANGE)
    predict: PredictConfig = Field(PredictConfig(), json_schema_extra=MAY_CHANGE)
    evaluate: EvaluateConfig = Field(EvaluateConfig(), json_schema_extra=MAY_CHANGE)
    embed: EmbedConfig = Field(EmbedConfig(), json_schema_extra=MAY_CHANGE)
    tracking: TrackingConfig = Field(TrackingConfig(), json_schema_extra=MAY_CHANGE)
    registry: RegistryConfig = Field(RegistryConfig(), json_schema_extra=MAY_CHANGE)
    export: ExportConfig = Field(ExportConfig(), json_schema_extra=MAY_CHANGE)
    serve: ServeConfig = Field(ServeConfig(), json_schema_extra=MAY_CHANGE)
    ablate: AblateConfig = Field(AblateConfig(), json_schema_extra=MAY_CHANGE)
    tune: TuneConfig = Field(TuneConfig(), json_schema_extra=MAY_CHANGE)
    retrain: RetrainConfig = Field(RetrainConfig(), json_schema_extra=MAY_CHANGE)

    @model_validator(mode="before")
    @classmethod
    def _check_run_name(cls, tree: Any) -> Any:
        data, tracking = (tree.get(section, {}) for section in ("data", "tracking"))
        if not isinstance(data, dict) or not isinstance(tracking, dict):
            return tree
        tars = data.get("tars", cls.model_fields["data"].default.tars)
        folder = re.sub(r"[^\w.\-]+", "-", str(tars).rstrip("/").rpartition("/")[2], flags=re.ASCII).strip("-._")
        if not folder:
            return tree
        named = {"name": folder} if "tars" in data else {}
        return {**named, **tree, "tracking": {"model_name": folder, **tracking}}

    @model_validator(mode="after")
    def _check_parts_fit(self) -> JobConfig:
        self.model.check_processor(self.processor)
        if reason := self.model.vision.describe_unused_setting():
            raise ValueError(f"model.vision.{reason}")
        return self

    @model_validator(mode="after")
    def _check_dropped_inputs_are_read(self) -> JobConfig:
        read = [encoding.input for encoding in self.model.encoders_by_stream().values() if encoding.input != TEXT]
        if unknown := sorted(self.train.drop_streams.keys() - set(read)):
            raise ValueError(
                f"train.drop_streams.{unknown[0]}: the model reads no such input; its inputs are {', '.join(read)}"
            )
        return self

    @model_validator(mode="after")
    def _check_texts_can_be_written(self) -> JobConfig:
        predict = self.predict
        try:
            # A limit that follows the data is known only when these are read; it is at most what the decoder can write.
            most = (
                self.processor.max_target_tokens
                or self.processor.resolve_settings(
                    target_limit=self.model.task.max_generated_tokens(), longest_target=sys.maxsize
                ).max_target_tokens
            )
            self.model.task.check_generation(predict.generation, predict.top_k, most)
        except ConfigError as error:
            raise ValueError(f"predict.generation: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_compilation_settings(self) -> JobConfig:
        groups = self.processor.length_groups
        if self.train.step.compile and groups > 1:
            raise ValueError(
                f"processor.length_groups={groups} cuts the texts of each batch otherwise, and train.step.compile=true "
                "would compile each cut anew, and after a few give up; set length_groups=1, or compile=false"
            )
        return self

    @model_validator(mode="after")
    def _check_features_can_be_cached(self) -> JobConfig:
        if self.train.feature_cache != "off" and not self.streams_with_cacheable_features():
            raise ValueError(self._explain_why_nothing_is_cacheable())
        return self

    def keys_changeable_on_resume(self) -> tuple[str, ...]:
        """The dotted keys of settings that may differ when a run is continued: those marked ``MAY_CHANGE``, and where
        the sources of a mix are.
        """
        return (*settings_changeable_on_resume(JobConfig), *(f"data.mix.{name}.tars" for name in self.data.mix))

    def streams_with_cacheable_features(self) -> tuple[str, ...]:
        """List the model's streams whose features can be cached: their encoder is frozen, and its inputs do not
        change.
        """
        augment = self.train.augment
        changed = {"vision": augment.is_active, "language": augment.changes_texts}
        changed |= {name: encoder.has_augmentation() for name, encoder in self.model.inputs.items()}
        return tuple(stream for stream in self.model.frozen_streams() if not changed.get(stream))

    def _explain_why_nothing_is_cacheable(self) -> str:
        kept = f"train.feature_cache={self.train.feature_cache!r} keeps what frozen encoders give"
        augment = self.train.augment
        if not self.model.frozen_streams():
            further = self.model.inputs
            settings = (
                f"model.{'inputs.' if name in further else ''}{name}" for name in self.model.encoders_by_stream()
            )
            trained = " and ".join(f"{setting}.frozen=false" for setting in settings)
            return (
                f"{kept}, and with {trained} training changes that; set one of them to true, or train.feature_cache=off"
            )
        return (
            f"{kept} of each image and text, and train.augment ({augment.describe()}) or the augment of model.inputs "
            "changes these in each epoch; leave it out, or set train.feature_cache=off"
        )
