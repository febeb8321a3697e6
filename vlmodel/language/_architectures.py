"""Describes the text encoders of transformers that can be used, and how they differ.

They are listed because a model's settings do not tell whether padding changes its tokens, or which form of mask it
takes without waiting for the GPU. ``tests/vlmodel/test_language.py`` checks each of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlmodel.config import ConfigError


@dataclass(frozen=True)
class EncoderArchitecture:
    """The properties of a transformers architecture that its configuration does not tell.

    Attributes:
        layers: path of its list of layers; "" if one layer is repeated.
        mask: form of its attention mask. "keys": (N, 1, 1, T), used as it is; given (N, T) the architecture would check
            whether all tokens are real, and wait for the GPU in each step. "windows": the same, and a second one for
            layers with a sliding window. "rows": (N, T).
        first_position: number of a text's first position; None for the padding's token id plus one.
        cls: where its tokenizer puts the classification token.
        limited: it has a greatest number of tokens; otherwise it knows distances between tokens only.
        works_without_layers: it can be built without layers.
    """

    layers: str = "encoder.layer"
    mask: Literal["keys", "windows", "rows"] = "keys"
    first_position: int | None = 0
    cls: Literal["first", "last"] = "first"
    limited: bool = True
    works_without_layers: bool = True


_ROBERTA = EncoderArchitecture(first_position=None)

ARCHITECTURES: dict[str, EncoderArchitecture] = {
    "albert": EncoderArchitecture(layers=""),
    "bert": EncoderArchitecture(),
    "camembert": _ROBERTA,
    "data2vec-text": _ROBERTA,
    "deberta": EncoderArchitecture(mask="rows"),
    "deberta-v2": EncoderArchitecture(mask="rows", works_without_layers=False),
    "distilbert": EncoderArchitecture(layers="transformer.layer"),
    "electra": EncoderArchitecture(),
    "ernie": EncoderArchitecture(),
    "megatron-bert": EncoderArchitecture(),
    "modernbert": EncoderArchitecture(layers="layers", mask="windows", works_without_layers=False),
    "mpnet": EncoderArchitecture(first_position=2),
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "xlnet": EncoderArchitecture(layers="layer", mask="rows", cls="last", limited=False),
}

ARRANGING = frozenset({"albert", "bert", "camembert", "electra", "ernie", "megatron-bert", "roberta", "xlm-roberta"})
"""Those that take the position of each token, and any mask of attention."""

_PADDING_LEAKS = "lets the padding of a text change its tokens"
_UNSUPPORTED = {
    "big_bird": "pads each text to whole blocks, for which a GPU must be waited for",
    "convbert": _PADDING_LEAKS,
    "fnet": _PADDING_LEAKS,
    "funnel": "shortens the sequence of tokens, which then has no mask",
    "mobilebert": _PADDING_LEAKS,
    "nystromformer": _PADDING_LEAKS,
    "yoso": _PADDING_LEAKS,
}

# Modules that only layers read.
_OF_LAYERS = ("encoder.albert_layer_groups", "encoder.relative_attention_bias", "encoder.rel_embeddings")


def unsupported_architecture_reason(name: str) -> str | None:
    """Explain why the transformers architecture ``name`` cannot be a text encoder, naming the ones that can; None if it
    can.
    """
    if name in ARCHITECTURES:
        return None
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if name not in CONFIG_MAPPING:
        close = difflib.get_close_matches(name, list(CONFIG_MAPPING.keys()), n=5, cutoff=0.5)
        return f"is unknown to transformers; close names: {', '.join(close) or 'bert, roberta'}"
    example = CONFIG_MAPPING[name]()
    if name in _UNSUPPORTED:
        reason = _UNSUPPORTED[name]
    elif example.is_encoder_decoder:
        reason = "is an encoder and a decoder in one"
    elif not hasattr(example, "vocab_size") or not hasattr(example, "hidden_size"):
        reason = "is no text encoder"
    elif type(example) in MODEL_FOR_CAUSAL_LM_MAPPING and type(example) not in MODEL_FOR_MASKED_LM_MAPPING:
        reason = "reads from left to right, and so has no token that knows the whole text"
    else:
        reason = "is none of the encoders for which it was tried that padding changes nothing"
    return f"{reason}; use one of {', '.join(ARCHITECTURES)}"


def list_setting_names(name: str) -> set[str]:
    """List the names of the settings of the transformers architecture ``name``."""
    from transformers import CONFIG_MAPPING

    example = CONFIG_MAPPING[name]()
    return set(example.to_dict()) | set(example.attribute_map)


def first_position_number(name: str, padding: int) -> int:
    """Return the position number that the encoder gives to the first token of a text; ``padding`` is the padding's
    token id.
    """
    first = ARCHITECTURES[name].first_position
    return padding + 1 if first is None else first


def max_text_tokens(resolved: Mapping[str, Any]) -> int | None:
    """The greatest number of tokens of a text that an encoder with this transformers configuration takes; None for no
    limit.
    """
    name, positions = resolved["model_type"], resolved.get("max_position_embeddings")
    if not ARCHITECTURES[name].limited or positions is None:
        return None
    return int(positions) - first_position_number(name, resolved["pad_token_id"])


def keep_first_layers(config: Any, layers: int) -> None:
    """Change transformers' ``config`` in place so that only the first ``layers`` layers are built.

    Raises:
        ConfigError: there are fewer, or the architecture cannot be cut there.
    """
    name, available = config.model_type, config.num_hidden_layers
    if layers > available:
        raise ConfigError(
            f"language.layers={layers}, and the encoder ({name}) has {available}; choose 0 to {available}"
        )
    if layers == 0 and not ARCHITECTURES[name].works_without_layers:
        raise ConfigError(
            f"language.layers=0, which topology.kind='single' sets too: {name} cannot be built without layers; keep "
            "one, use another encoder, or topology.kind='dual' or 'interactive'"
        )
    if layers < available and getattr(config, "num_hidden_groups", 1) > 1:
        raise ConfigError(
            f"language.layers={layers}: the {available} layers of this encoder ({name}) are repetitions of "
            f"{config.num_hidden_groups}, which cannot be cut; leave language.layers out"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:  # of architectures with several kinds of layers
        config.layer_types = config.layer_types[:layers]


def first_layer_paths(name: str, encoder: Any, layers: int) -> list[str]:
    """List the paths within ``encoder`` of its embeddings and its first ``layers`` layers."""
    embeddings = [child for child, _ in encoder.named_children() if "embed" in child]
    return embeddings + [f"{ARCHITECTURES[name].layers}.{i}" for i in range(layers)]


def remove_or_freeze_unused_weights(encoder: Any) -> None:
    """Remove or freeze weights that get no gradient, as data-parallel training waits for the gradient of every
    parameter.
    """
    children = dict(encoder.named_modules())
    if "pooler" in children:
        encoder.register_module("pooler", None)
    if hasattr(encoder, "mask_emb"):  # XLNet's, for its pretraining
        encoder.mask_emb.requires_grad_(False)
    if encoder.config.num_hidden_layers == 0:
        for path in _OF_LAYERS:
            if path in children:
                children[path].requires_grad_(False)
