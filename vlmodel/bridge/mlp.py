"""A bridge that projects each token by linear layers with GELU between them (LLaVA, Liu et al. 2023,
arXiv:2310.03744).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vlmodel.text_head import BridgePart

if TYPE_CHECKING:
    from vlmodel.bridge._mlp import MLP


class Config(BridgePart):
    """Settings of a bridge that turns each token of a stream into one token of the language model."""

    kind: Literal["mlp"] = "mlp"
    layers: int = Field(2, ge=1)
    """Linear layers; with 1 the bridge is a linear projection."""

    def build(self, width: int, out_width: int) -> MLP:
        from vlmodel.bridge._mlp import MLP

        return MLP(width, out_width, self.layers)
