"""The optimizer and its schedule: AdamW with one learning rate for the backbones and another for the rest."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from pydantic import Field
from torch import nn

from vlmodel.config import ConfigSection
from vlmodel.model import VLModel


class OptimizerConfig(ConfigSection):
    """AdamW (Loshchilov and Hutter, 2019) with linear warm-up and cosine decay."""

    backbone_lr: float = Field(1e-3, ge=0)
    """Peak learning rate of the encoders' backbones; use far less (1e-5 to 1e-4) for pretrained ones."""
    head_lr: float = Field(1e-3, ge=0)
    """Peak learning rate of projections, fusion and decoder, and of low-rank adapters."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Of pretrained backbones each layer's rate is this times that of the layer behind it, and ``backbone_lr`` that of
    what follows the last layer: what is near the input changes least (Clark et al. 2020, arXiv:2003.10555). 0.65 to 0.9
    for a Transformer of 12 layers; 1 for one rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of all weights of two or more dimensions: matrices, kernels and embeddings, including
    those of positions. Vectors, such as biases and the weights of norms, have none."""
    betas: list[float] = Field([0.9, 0.98], min_length=2, max_length=2)
    """Decay of the two moments."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of all steps over which the rate rises linearly from zero."""
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate at the end of the cosine."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the whole gradient."""


def build_optimizer(model: VLModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters. Each parameter group has its ``peak_lr``."""
    groups = []
    by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
    for layers in model.backbone_layers():
        for behind, parameters in enumerate(reversed(layers)):
            by_rate[config.backbone_lr * config.layer_decay**behind] += parameters
    for peak_lr, parameters in (*by_rate.items(), (config.head_lr, list(model.head_parameters()))):
        trained = [p for p in parameters if p.requires_grad]
        for decayed in (True, False):
            members = [p for p in trained if (p.ndim >= 2) == decayed]
            if members:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": members, "lr": peak_lr, "peak_lr": peak_lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]), fused=True)


def learning_rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the peak rate for the update after ``step`` finished ones. A pure function: it has no state to store."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
