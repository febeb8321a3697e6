"""The optimizer and its schedule: AdamW with one learning rate for pretrained backbones and another for everything
else.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import nn

from pipelines.train.config import OptimizerConfig
from vlmodel.model import VLModel


def build_optimizer(model: VLModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """Create a fused AdamW over the trainable parameters. Each parameter group has its ``peak_lr``."""
    groups = []
    # A checkpoint numbers parameters in the order of the groups, and parts may name theirs in sets, whose order differs
    # from process to process.
    place = {id(parameter): n for n, parameter in enumerate(model.parameters())}
    by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
    for layers in model.backbone_layers():
        for behind, parameters in enumerate(reversed(layers)):
            by_rate[config.backbone_lr * config.layer_decay**behind] += parameters
    for peak_lr, parameters in (*by_rate.items(), (config.head_lr, list(model.head_parameters()))):
        trained = sorted((p for p in parameters if p.requires_grad), key=lambda p: place[id(p)])
        for decayed in (True, False):
            members = [p for p in trained if (p.ndim >= 2) == decayed]
            if members:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": members, "lr": peak_lr, "peak_lr": peak_lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]), fused=True)


def learning_rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Return the share of the peak learning rate for the update after ``step`` finished ones. A pure function, so no
    state needs to be stored.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
