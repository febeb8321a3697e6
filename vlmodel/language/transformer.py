"""Text encoders of the transformers library: BERT, RoBERTa, DistilBERT, ELECTRA, ... from anywhere or from scratch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.config import ConfigError
from vlmodel.layers import masked_mean
from vlmodel.tokens import Tokens

# These hand a four-dimensional mask on as it is. Given a two-dimensional one, transformers looks whether it is all
# True, for which a GPU must be waited for in each step.
_TAKES_4D_MASK = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
_FEED_FORWARD = ("intermediate_size", "hidden_dim", "d_inner", "d_ff")
_HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


class Config(parts.LanguagePart):
    """An encoder of the transformers library."""

    kind: Literal["transformer"] = "transformer"
    pretrained: str = ""
    """Folder or hub name of a pretrained encoder (safetensors); "" builds one from scratch by the settings below."""
    architecture: str = "bert"
    """From scratch: transformers' name of the architecture ("model_type")."""
    width: int = Field(256, ge=1)
    """From scratch: width of the tokens."""
    depth: int = Field(2, ge=1)
    """From scratch: number of layers."""
    heads: int = Field(4, ge=1)
    """From scratch: attention heads."""
    expansion: int = Field(4, ge=1)
    """From scratch: width of the feed-forward layers, in multiples of ``width``."""
    positions: int = Field(128, ge=1)
    """From scratch: greatest number of tokens in a text."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """From scratch: dropout of embeddings and layers; attention has none, for which fast kernels exist."""
    pooling: Literal["cls", "mean"] = "cls"
    """The pooled vector: the classification token, or the mean of the real tokens."""
    output: Literal["tokens", "pooled"] = "tokens"
    """All tokens of the text, or its pooled vector as the only token, which makes the fusion cheaper."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the tokens; null for none."""
    frozen: bool = False
    """Leave the encoder untrained (never its projection)."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the encoder; filled in when the model is created, and stored with it."""

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if not self.pretrained and self.resolved is None:
            _known(self.architecture)
            if self.width % self.heads:
                raise ValueError(f"width={self.width} cannot be shared by heads={self.heads}; make it a multiple")
        return self

    def resolve(self, vocabulary: parts.Vocabulary) -> Config:
        if self.resolved is not None:
            return self
        chosen = self._of_pretrained(vocabulary) if self.pretrained else self._from_scratch(vocabulary)
        # Through JSON, so that the settings are the same before a checkpoint is written and after.
        resolved = json.loads(chosen.to_json_string(use_diff=False))
        for key in ("_name_or_path", "architectures", "transformers_version", "dtype"):
            resolved.pop(key, None)
        return self.model_copy(update={"resolved": resolved})

    def build(self, vocabulary: parts.Vocabulary) -> TransformerEncoder:
        return TransformerEncoder(self.resolve(vocabulary))

    def longest_text(self) -> int | None:
        return None if self.pretrained else self.positions

    def _from_scratch(self, vocabulary: parts.Vocabulary) -> Any:
        from transformers import AutoConfig

        names = _known(self.architecture)
        settings: dict[str, Any] = {
            "vocab_size": vocabulary.size,
            "pad_token_id": vocabulary.padding,
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
        }
        if "max_position_embeddings" in names:
            # RoBERTa counts positions from the padding id on.
            settings["max_position_embeddings"] = self.positions + vocabulary.padding + 1
        settings.update({key: self.width for key in ("embedding_size",) if key in names})  # ELECTRA's, ALBERT's
        settings.update({key: self.width // self.heads for key in ("d_head",) if key in names})  # XLNet's
        for candidates, value in (
            (_FEED_FORWARD, self.expansion * self.width),
            (_HIDDEN_DROPOUT, self.dropout),
            (_ATTENTION_DROPOUT, 0.0),
        ):
            settings.update({key: value for key in candidates if key in names})
        return AutoConfig.for_model(self.architecture, **settings)

    def _of_pretrained(self, vocabulary: parts.Vocabulary) -> Any:
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(self.pretrained, trust_remote_code=False, **_locality(self.pretrained))
        except (OSError, ValueError) as error:
            raise parts.WeightsError(f"language.pretrained={self.pretrained!r} cannot be opened: {error}") from error
        if found.vocab_size < vocabulary.size:
            raise ConfigError(
                f"language.pretrained={self.pretrained!r} knows {found.vocab_size} tokens and the tokenizer makes "
                f"{vocabulary.size}; use the tokenizer that belongs to it"
            )
        return found


class TransformerEncoder(parts.Encoder):
    """transformers' encoder without its pooler, which nothing here reads, and an optional projection."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        assert config.resolved is not None
        self.config = config
        settings = {key: value for key, value in config.resolved.items() if key != "model_type"}
        inner = AutoConfig.for_model(config.resolved["model_type"], **settings)
        self.encoder = AutoModel.from_config(inner, trust_remote_code=False)
        _drop_unused(self.encoder)
        self.projection = nn.Linear(inner.hidden_size, config.projection) if config.projection else nn.Identity()
        self.width = config.projection or inner.hidden_size
        self._takes_4d_mask = inner.model_type in _TAKES_4D_MASK
        if config.frozen:
            self.freeze("encoder")

    def forward(self, input_ids_NT: Tensor, mask_NT: Tensor) -> Tokens:
        mask = mask_NT[:, None, None, :] if self._takes_4d_mask else mask_NT.to(input_ids_NT.dtype)
        x_NTD = self.encoder(input_ids=input_ids_NT, attention_mask=mask).last_hidden_state
        x_NTD = self.projection(x_NTD)
        pooled_ND = masked_mean(x_NTD, mask_NT) if self.config.pooling == "mean" else x_NTD[:, 0]
        if self.config.output == "pooled":
            return Tokens(pooled_ND.unsqueeze(1), mask_NT[:, :1].new_ones(len(mask_NT), 1), pooled_ND)
        return Tokens(x_NTD, mask_NT, pooled_ND)

    def load_pretrained(self) -> None:
        if not self.config.pretrained:
            return
        from transformers import AutoModel

        try:
            source, info = AutoModel.from_pretrained(
                self.config.pretrained,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="float32",
                output_loading_info=True,
                **_locality(self.config.pretrained),
            )
        except (OSError, ValueError) as error:
            raise parts.WeightsError(
                f"language.pretrained={self.config.pretrained!r} has no weights that can be loaded: {error}"
            ) from error
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise parts.WeightsError(
                f"language.pretrained={self.config.pretrained!r} lacks {len(missing)} weights of its own architecture: "
                f"{', '.join(missing[:3])}; name a complete checkpoint of the encoder"
            )
        _drop_unused(source)
        self.encoder.load_state_dict(source.state_dict())

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        if self.config.pretrained:
            yield from (parameter for parameter in self.encoder.parameters() if parameter.requires_grad)


def _known(architecture: str) -> set[str]:
    """Names of the settings of ``architecture``; ValueError if there is none of that name, or it encodes no text."""
    from transformers import CONFIG_MAPPING

    if architecture not in CONFIG_MAPPING:
        close = difflib.get_close_matches(architecture, list(CONFIG_MAPPING.keys()), n=5, cutoff=0.5)
        raise ValueError(
            f"architecture={architecture!r} is unknown to transformers; close names: "
            f"{', '.join(close) or 'bert, roberta'}"
        )
    example = CONFIG_MAPPING[architecture]()
    if example.is_encoder_decoder or not hasattr(example, "vocab_size") or not hasattr(example, "hidden_size"):
        raise ValueError(f"architecture={architecture!r} is no text encoder; use one such as bert or roberta")
    return set(example.to_dict()) | set(example.attribute_map)


def _locality(pretrained: str) -> dict[str, bool]:
    """A folder is read without asking a hub."""
    return {"local_files_only": True} if Path(pretrained).is_dir() else {}


def _drop_unused(encoder: nn.Module) -> None:
    """Take away what no loss of ours reaches: data-parallel training waits for every parameter's gradient."""
    if isinstance(getattr(encoder, "pooler", None), nn.Module):
        encoder.register_module("pooler", None)
    if isinstance(getattr(encoder, "mask_emb", None), nn.Parameter):  # XLNet's, for its pretraining
        encoder.mask_emb.requires_grad_(False)
