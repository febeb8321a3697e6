"""The module of the bridge ``mlp``."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from vlmodel import parts


class MLP(parts.Bridge):
    """Projects each token of a stream by linear layers with GELU between them; all layers but the first have the
    language model's width.
    """

    def __init__(self, width: int, out_width: int, layers: int) -> None:
        super().__init__()
        widths = [width, *[out_width] * layers]
        steps: list[nn.Module] = []
        for w, v in pairwise(widths):
            steps += [nn.Linear(w, v), nn.GELU()]
        self.layers = nn.Sequential(*steps[:-1])

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(x_BTD), mask_BT
