"""Describes the causal language models of transformers that can have cross-attention, and how each names its settings.

They are listed because a model's settings do not tell whether generation with a cache gives the same as one pass over
the whole text, whether every parameter gets a gradient, or whether tied embeddings survive saving.
``tests/vlmodel/test_sequence_decoders.py`` checks every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmodel.config import ConfigError
from vlmodel.weights import (
    config_from_dict,
    config_to_dict,
    open_transformers_config,
    open_transformers_model,
    refuse_missing_weights,
)

if TYPE_CHECKING:
    from vlmodel.heads.sequence import Config
    from vlmodel.part_configs import Vocabulary

_SETTING = "task.head.pretrained"


@dataclass(frozen=True)
class DecoderArchitecture:
    """Describes how an architecture of transformers names its settings and its cross-attention weights.

    Attributes:
        widths, depth, heads, feed_forward, positions: names of its sizes.
        dropouts: names of the dropout of embeddings and layers.
        attention_dropout: name of the dropout of the attention weights.
        cross_attention: parts of the names of its cross-attention weights.
    """

    widths: tuple[str, ...] = ("hidden_size",)
    depth: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"
    positions: str = "max_position_embeddings"
    dropouts: tuple[str, ...] = ("hidden_dropout_prob",)
    attention_dropout: str = "attention_probs_dropout_prob"
    cross_attention: tuple[str, ...] = ("crossattention",)


ARCHITECTURES: dict[str, DecoderArchitecture] = {
    "bart": DecoderArchitecture(
        ("d_model",),
        "decoder_layers",
        "decoder_attention_heads",
        "decoder_ffn_dim",
        dropouts=("dropout",),
        attention_dropout="attention_dropout",
        cross_attention=("encoder_attn",),
    ),
    "bert": DecoderArchitecture(),
    "electra": DecoderArchitecture(("hidden_size", "embedding_size")),
    "gpt2": DecoderArchitecture(
        ("n_embd",),
        "n_layer",
        "n_head",
        "n_inner",
        "n_positions",
        ("resid_pdrop", "embd_pdrop"),
        "attn_pdrop",
        ("crossattention", "ln_cross_attn"),
    ),
}


def unsupported_architecture_reason(name: str) -> str | None:
    """Explain why the transformers architecture ``name`` cannot be a decoder; None if it can."""
    if name in ARCHITECTURES:
        return None
    return f"is none of the decoders that were tried; use one of {', '.join(ARCHITECTURES)}"


def new_decoder_config(config: Config, vocabulary: Vocabulary) -> dict[str, Any]:
    """Create transformers' configuration of a decoder with new weights, as plain values."""
    names = ARCHITECTURES[config.architecture]
    settings = {
        "model_type": config.architecture,
        "vocab_size": vocabulary.size,
        **dict.fromkeys(names.widths, config.width),
        **dict.fromkeys(names.dropouts, config.dropout),
        names.depth: config.depth,
        names.heads: config.heads,
        names.feed_forward: config.expansion * config.width,
        names.positions: config.positions,
        names.attention_dropout: 0.0,
    }
    return _convert_to_decoder_config(config_from_dict(settings), vocabulary)


def open_pretrained_decoder_config(source: str, vocabulary: Vocabulary) -> dict[str, Any]:
    """Read transformers' configuration of the pretrained model at ``source`` (a decoder or an encoder), converted to a
    decoder with cross-attention, as plain values.

    Raises:
        ConfigError: it is of no architecture that can be used, or does not fit the tokenizer.
        WeightsError: it cannot be opened.
    """
    config = open_transformers_config(_SETTING, source, vocabulary.size, unsupported_architecture_reason)
    if not config.tie_word_embeddings:
        raise ConfigError(
            f"{_SETTING}={source!r} does not tie its output to its word embeddings; use a decoder that does"
        )
    return _convert_to_decoder_config(config, vocabulary)


def max_generated_tokens(resolved: dict[str, Any]) -> int:
    """The greatest number of tokens that a decoder with this configuration (plain values) can generate."""
    return int(resolved[ARCHITECTURES[resolved["model_type"]].positions])


def load_decoder_weights(inner: Any, source: str) -> None:
    """Load the pretrained weights at ``source`` into the language model ``inner``; they may lack the output layer and
    the cross-attention.

    Raises:
        WeightsError: they do not exist or do not fit.
    """
    from transformers import AutoModelForCausalLM

    model, missing = open_transformers_model(
        AutoModelForCausalLM, _SETTING, source, config_from_dict(config_to_dict(inner.config))
    )
    body = f"{inner.base_model_prefix}."
    refuse_missing_weights(
        _SETTING, source, (key for key in missing if key.startswith(body) and not is_cross_attention_weight(inner, key))
    )
    inner.load_state_dict(model.state_dict())


def is_cross_attention_weight(inner: Any, key: str) -> bool:
    """Whether the weight ``key`` of the language model ``inner`` belongs to its cross-attention."""
    return any(part in key for part in ARCHITECTURES[inner.config.model_type].cross_attention)


def _convert_to_decoder_config(config: Any, vocabulary: Vocabulary) -> dict[str, Any]:
    config.is_encoder_decoder = False
    config.is_decoder = config.add_cross_attention = True
    config.pad_token_id, config.bos_token_id = vocabulary.padding, vocabulary.begin
    config.eos_token_id = vocabulary.end
    return config_to_dict(config)
