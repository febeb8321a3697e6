"""Reads from a pretrained CLIP or SigLIP the projections and the temperature by which it compares images and texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vlmodel.weights import (
    WeightsError,
    open_any_transformers_config,
    open_transformers_model,
    refuse_missing_weights,
)

_SETTING = "task.pretrained"
_PROJECTIONS = {"image": "visual_projection.weight", "text": "text_projection.weight"}
_SCALE = "logit_scale"


@dataclass(frozen=True)
class EmbeddingSpace:
    """The projections of images and texts into the shared space of a CLIP or SigLIP, and its temperature.

    Attributes:
        projections: by "image" and "text" the linear maps (width of the space, width of the tower); {} if the towers
            give vectors of the space themselves.
        log_scale: logarithm of the factor by which cosines are multiplied before their softmax (or sigmoid).
    """

    projections: Mapping[str, Tensor]
    log_scale: float


def read_embedding_space(source: str) -> EmbeddingSpace:
    """Read the projections and the temperature of a pretrained CLIP or SigLIP in a folder or on the hub.

    Raises:
        WeightsError: it cannot be loaded, or is no model of images and texts.
    """
    from transformers import AutoModel

    config = open_any_transformers_config(_SETTING, source)
    model, missing = open_transformers_model(AutoModel, _SETTING, source, config)
    state = model.state_dict()
    if _SCALE not in state:
        raise WeightsError(
            f"{_SETTING}={source!r} is a {config.model_type!r}, which compares no images and texts; name a CLIP or "
            "SigLIP"
        )
    refuse_missing_weights(_SETTING, source, missing)
    projections = {what: state[name] for what, name in _PROJECTIONS.items() if name in state}
    return EmbeddingSpace(projections, float(state[_SCALE]))
