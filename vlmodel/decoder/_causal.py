"""The causal language models of transformers that can look at another sequence, and how each names its settings.

A table, and no guess from a model's fields: that what is generated with a cache is what a whole pass gives, that every
parameter has a gradient, and that tied embeddings come back from a file was tried for each
(``tests/vlmodel/test_sequence_decoders.py`` does so for every row).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmodel import parts
from vlmodel.config import ConfigError


@dataclass(frozen=True)
class Architecture:
    """How an architecture names its settings and its weights.

    Attributes:
        widths, depth, heads, feed_forward, positions: names of its settings of size.
        dropouts: names of the dropout of embeddings and layers.
        attention_dropout: name of the dropout of the attention weights.
        looking: what the names of the weights contain that look at the other sequence.
    """

    widths: tuple[str, ...] = ("hidden_size",)
    depth: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"
    positions: str = "max_position_embeddings"
    dropouts: tuple[str, ...] = ("hidden_dropout_prob",)
    attention_dropout: str = "attention_probs_dropout_prob"
    looking: tuple[str, ...] = ("crossattention",)


ARCHITECTURES: dict[str, Architecture] = {
    "bart": Architecture(
        ("d_model",),
        "decoder_layers",
        "decoder_attention_heads",
        "decoder_ffn_dim",
        dropouts=("dropout",),
        attention_dropout="attention_dropout",
        looking=("encoder_attn",),
    ),
    "bert": Architecture(),
    "electra": Architecture(("hidden_size", "embedding_size")),
    "gpt2": Architecture(
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


def unsupported_reason(name: str) -> str | None:
    """Why the architecture ``name`` cannot be used; None if it can."""
    if name in ARCHITECTURES:
        return None
    return f"is none of the decoders that were tried; use one of {', '.join(ARCHITECTURES)}"


def from_scratch(
    name: str,
    vocabulary: parts.Vocabulary,
    *,
    width: int,
    depth: int,
    heads: int,
    feed_forward: int,
    positions: int,
    dropout: float,
) -> dict[str, Any]:
    """transformers' configuration of a new decoder, as plain values."""
    from transformers import AutoConfig

    names = ARCHITECTURES[name]
    settings: dict[str, Any] = dict.fromkeys(names.widths, width) | dict.fromkeys(names.dropouts, dropout)
    settings |= {
        names.depth: depth,
        names.heads: heads,
        names.feed_forward: feed_forward,
        names.positions: positions,
        names.attention_dropout: 0.0,
    }
    return _plain(AutoConfig.for_model(name, **settings, vocab_size=vocabulary.size), vocabulary)


def of_pretrained(source: str, vocabulary: parts.Vocabulary) -> dict[str, Any]:
    """transformers' configuration of the decoder, or encoder, that lies at ``source``, as a decoder.

    Raises:
        ConfigError: it is of no architecture that can be used, or does not fit the tokenizer.
        WeightsError: it cannot be opened.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(source, trust_remote_code=False, **_locality(source))
    except (OSError, ValueError) as error:
        raise parts.WeightsError(f"decoder.pretrained={source!r} cannot be opened: {error}") from error
    if reason := unsupported_reason(found.model_type):
        raise ConfigError(f"decoder.pretrained={source!r}: its architecture {found.model_type!r} {reason}")
    if found.vocab_size < vocabulary.size:
        raise ConfigError(
            f"decoder.pretrained={source!r} knows {found.vocab_size} tokens and the tokenizer makes {vocabulary.size}; "
            "use the tokenizer that belongs to it"
        )
    if not found.tie_word_embeddings:
        raise ConfigError(
            f"decoder.pretrained={source!r} does not tie its output to its word embeddings; use a decoder that does"
        )
    return _plain(found, vocabulary)


def configuration(resolved: dict[str, Any]) -> Any:
    """transformers' configuration of plain values."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**resolved)


def longest_target(resolved: dict[str, Any]) -> int:
    """Greatest number of tokens that the decoder of a plain configuration can write."""
    return int(resolved[ARCHITECTURES[resolved["model_type"]].positions])


def load(inner: Any, source: str) -> None:
    """Read the weights at ``source`` into ``inner``; the head may be missing, and what looks at the other sequence.

    Raises:
        WeightsError: they do not exist or do not fit.
    """
    from transformers import AutoModelForCausalLM

    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=configuration(_without_names(inner.config)),
            trust_remote_code=False,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            **_locality(source),
        )
    except Exception as error:  # whatever broken files lead its readers to
        raise parts.WeightsError(f"decoder.pretrained={source!r} has no weights that can be loaded: {error}") from error
    loaded, info = found
    body = f"{inner.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if key.startswith(body) and not is_cross_attention(inner, key))
    if missing:
        raise parts.WeightsError(
            f"decoder.pretrained={source!r} lacks {len(missing)} weights of its own architecture: "
            f"{', '.join(missing[:3])}; name a complete checkpoint"
        )
    inner.load_state_dict(loaded.state_dict())


def is_cross_attention(inner: Any, key: str) -> bool:
    """Whether the weight ``key`` of ``inner`` is one that looks at the other sequence."""
    return any(part in key for part in ARCHITECTURES[inner.config.model_type].looking)


def _plain(config: Any, vocabulary: parts.Vocabulary) -> dict[str, Any]:
    config.is_encoder_decoder = False
    config.is_decoder = config.add_cross_attention = True
    config.pad_token_id, config.bos_token_id, config.eos_token_id = (
        vocabulary.padding,
        vocabulary.begin,
        vocabulary.end,
    )
    return _without_names(config)


def _without_names(config: Any) -> dict[str, Any]:
    # Through JSON, so that the settings are the same before a checkpoint is written and after.
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "architectures", "transformers_version", "dtype"):
        plain.pop(key, None)
    return plain


def _locality(source: str) -> dict[str, bool]:
    """A folder is read without asking a hub."""
    return {"local_files_only": True} if Path(source).is_dir() else {}
