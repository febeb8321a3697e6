"""Settings that the text encoders of transformers share. torch is not imported here."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlmodel.layer_settings import check_heads_divide_width
from vlmodel.lora import LoraSettings
from vlmodel.part_configs import LanguagePart

SETTING = "language.pretrained"


class EncoderConfig(LanguagePart):
    """Settings that the text encoders of transformers share."""

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset(
        {"pretrained", "projection", "output", "frozen", "lora"}
    )

    pretrained: str = ""
    """Folder or hub name of a pretrained encoder (safetensors); "" builds one from scratch by the settings below."""
    width: int = Field(256, ge=1)
    """From scratch: width of the tokens."""
    depth: int = Field(2, ge=1)
    """From scratch: number of layers."""
    heads: int = Field(4, ge=1)
    """From scratch: attention heads."""
    expansion: int = Field(4, ge=1)
    """From scratch: width of the feed-forward layers, in multiples of ``width``."""
    output: Literal["tokens", "pooled"] = "tokens"
    """All tokens of the text, or its pooled vector as the only token, which makes the fusion cheaper."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the tokens; null for none."""
    frozen: bool = False
    """Do not train the encoder (its projection is always trained)."""
    lora: LoraSettings | None = None
    """Low-rank adapters in the encoder, which is frozen but for them; null for none."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the encoder; filled in when the model is created, and stored with it."""

    @model_validator(mode="after")
    def _check_shared_settings(self) -> Self:
        partly = next((name for name in ("frozen", "frozen_layers") if getattr(self, name, 0)), None)
        if self.lora is not None and partly is not None:
            raise ValueError(f"lora trains adapters in an encoder that is frozen but for them; leave {partly} out")
        if not self.pretrained and self.resolved is None:
            check_heads_divide_width(self.width, self.heads)
        return self

    def is_frozen(self) -> bool:
        return self.frozen

    def outputs_tokens(self) -> bool:
        return self.output == "tokens"
