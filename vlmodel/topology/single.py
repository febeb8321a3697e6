"""Single stream: the tokens of all inputs are concatenated and encoded together by one Transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from vlmodel.layer_settings import AttentionSettings
from vlmodel.part_configs import TopologyPart

if TYPE_CHECKING:
    from vlmodel import parts
    from vlmodel.topology._single import SingleEncoder


class Config(AttentionSettings, TopologyPart):
    """Settings of one Transformer over the concatenated streams; only the embeddings of the language encoder
    are used.
    """

    encodes_text: ClassVar[bool] = True

    kind: Literal["single"] = "single"
    depth: int = Field(4, ge=1)
    """Number of layers."""

    def fusion_widths(self, widths: Mapping[str, int]) -> Mapping[str, int]:
        return dict.fromkeys(widths, self.width)

    def build(self, fusion: parts.Fusion, widths: Mapping[str, int]) -> SingleEncoder:
        from vlmodel.topology._single import SingleEncoder

        return SingleEncoder(self, fusion, widths)
