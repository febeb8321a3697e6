"""Caches features of frozen encoders (``train.feature_cache``), computing the missing ones, for all jobs that
encode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.index.index import Index
from pipelines.data.stream.feature_build import SPLITS, EncoderResources, build_features, open_feature_cache
from pipelines.data.stream.feature_cache import FeatureCache
from pipelines.report.progress import Progress
from pipelines.workflows.workspace import Workspace
from vlmodel.config import parse_config
from vlmodel.model_config import ModelConfig
from vlmodel.processor import VLProcessor

if TYPE_CHECKING:
    from vlmodel.model import VLModel
    from vlmodel.saved_config import VLConfig


def cache_features(
    work: Workspace,
    indexes: Iterable[Index],
    streams: Sequence[str],
    model: VLModel,
    processor: VLProcessor,
    label: str,
    splits: Sequence[str] = SPLITS,
) -> tuple[FeatureCache, ...]:
    """Compute the missing features of the encoders of ``streams`` and return their caches.

    Args:
        label: what the lines of progress begin with.
        splits: whose samples are encoded.
    """
    train = work.config.train
    resources = EncoderResources(
        train.workers, train.cpus_per_worker, train.gpus_per_worker, train.threads, train.evaluation_batch
    )
    tree, precision = _model_config(model.config), train.feature_cache
    assert precision != "off"
    cached = []
    for stream in streams:
        of_stream = open_feature_cache(stream, model, tree, processor, f"{work.storage}/_features", precision)
        needed = tree.encoders_by_stream()[stream].input
        for index in {index.hash: index for index in indexes if needed in index.input_requirements}.values():
            with Progress(f"{label}  features of {stream}") as progress:
                build_features(of_stream, index, model, tree, processor, resources, splits, progress)
        cached.append(of_stream)
    return tuple(cached)


def cache_features_of_saved_model(
    work: Workspace, index: Index, splits: Sequence[str], folder: str | Path, label: str
) -> tuple[FeatureCache, ...]:
    """Cache the features of the frozen encoders of a saved model; returns none if nothing is to be cached.

    Args:
        splits: whose samples are encoded; "" among them for all.
    """
    from vlmodel.model import VLModel
    from vlmodel.saved_config import VLConfig

    if work.config.train.feature_cache == "off":
        return ()
    saved: VLConfig = VLConfig.from_pretrained(str(folder), local_files_only=True)
    streams = _model_config(saved).frozen_streams() if saved.model is not None else ()
    if not streams:
        return ()
    model = VLModel.from_pretrained(str(folder), local_files_only=True)
    chosen = list(index.counts()) if "" in splits else list(dict.fromkeys(splits))
    return cache_features(work, [index], streams, model, VLProcessor.from_pretrained(folder), label, chosen)


def _model_config(config: Any) -> ModelConfig:
    return parse_config(ModelConfig, config.model)
