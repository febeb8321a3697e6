"""Creates or opens the configurations and weights of causal language models of transformers.

No architectures are listed: whether one can be used is found from its class.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmodel import lora
from vlmodel.config import ConfigError
from vlmodel.weights import (
    WeightsError,
    config_from_dict,
    config_to_dict,
    from_pretrained_arguments,
    open_transformers_config,
    open_transformers_model,
    refuse_missing_weights,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from vlmodel.heads.llm import Config
    from vlmodel.part_configs import Vocabulary

SETTING = "task.head.pretrained"
_NEEDED = ("inputs_embeds", "attention_mask", "logits_to_keep")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def unsupported_architecture_reason(name: str) -> str | None:
    """Explain why the transformers architecture ``name`` cannot be used as a language model; None if it can."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if name not in CONFIG_MAPPING:
        close = difflib.get_close_matches(name, list(CONFIG_MAPPING.keys()), n=5, cutoff=0.5)
        return f"is unknown to transformers; close names: {', '.join(close) or 'llama, qwen3'}"
    config = CONFIG_MAPPING[name]
    if config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "is no causal language model of transformers; use one such as llama, qwen3, gemma3_text or gpt2"
    if config in MODEL_FOR_MASKED_LM_MAPPING:
        return "reads texts in both directions; use one such as llama, qwen3, gemma3_text or gpt2"
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    taken = inspect.signature(model.forward).parameters
    if missing := [name for name in _NEEDED if name not in taken]:
        return f"takes no {missing[0]}, as which a picture is read; use one such as llama, qwen3, gemma3_text or gpt2"
    return None


def new_llm_config(config: Config, vocabulary: Vocabulary) -> dict[str, Any]:
    """Create transformers' configuration of a language model with new weights, as plain values.

    Raises:
        ConfigError: the architecture does not take the sizes.
    """
    from transformers import CONFIG_MAPPING

    example = CONFIG_MAPPING[config.architecture]()
    wanted = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "num_heads": config.heads,
        "head_dim": config.width // config.heads,
        "intermediate_size": config.expansion * config.width,
        "max_position_embeddings": config.positions,
        **{name: config.dropout for name in vars(example) if name.endswith(("dropout", "pdrop", "dropout_prob"))},
    }
    settings = {name: value for name, value in wanted.items() if hasattr(example, name)}
    if unknown := sorted(name for name in config.sizes if not hasattr(example, name)):
        raise ConfigError(f"task.head.sizes has {unknown[0]!r}, which {config.architecture} has no setting of")
    begin, end = (token if token >= 0 else None for token in (vocabulary.begin, vocabulary.end))
    try:
        made = config_from_dict(
            {
                "model_type": config.architecture,
                "vocab_size": vocabulary.size,
                "pad_token_id": vocabulary.padding,
                "bos_token_id": begin,
                "eos_token_id": end,
                **settings,
                **config.sizes,
            }
        )
    except Exception as error:  # each architecture checks its own settings
        raise ConfigError(f"task.head: {config.architecture} does not take these sizes: {error}") from None
    return config_to_dict(made)


def open_pretrained_llm_config(source: str, vocabulary: Vocabulary) -> dict[str, Any]:
    """Read transformers' configuration of the pretrained language model at ``source``, as plain values.

    Raises:
        ConfigError: it is of no architecture that can be used, or knows fewer tokens than the tokenizer has.
        WeightsError: it cannot be opened.
    """
    made = config_to_dict(open_transformers_config(SETTING, source, vocabulary.size, unsupported_architecture_reason))
    # Of a GGUF file, whose weights become ordinary ones.
    made.pop("quantization_config", None)
    return made


def compare_with_own_tokenizer(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer is the one that is stored beside a pretrained language model, if there is one.

    Raises:
        ConfigError: they give the same token different numbers.
    """
    from transformers import AutoTokenizer

    name, options = from_pretrained_arguments(source)
    if (folder := Path(source)).is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return
    try:
        own = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception:  # there is none, or none that can be read: sizes are compared later
        return
    given, known = tokenizer.get_vocab(), own.get_vocab()
    if other := next((token for token in known if given.get(token) != known[token]), None):
        raise ConfigError(
            f"{SETTING}={source!r} and the tokenizer differ: the token {other!r} has the number {known[other]} in the "
            f"one and {given.get(other)} in the other; set vocabulary.tokenizer={source!r}"
        )


def context_length(resolved: dict[str, Any]) -> int | None:
    """The greatest number of tokens that a language model with this configuration (plain values) reads and writes
    together; None for no limit.
    """
    from transformers import CONFIG_MAPPING

    names = CONFIG_MAPPING[resolved["model_type"]].attribute_map
    limit = resolved.get(names.get("max_position_embeddings", "max_position_embeddings"))
    return None if limit is None else int(limit)


def load_llm_weights(inner: nn.Module, config: Any, source: str) -> None:
    """Load the pretrained weights at ``source`` into the language model ``inner``, which may contain adapters.

    Raises:
        WeightsError: they do not exist or do not fit.
    """
    from transformers import AutoModelForCausalLM

    model, missing = open_transformers_model(AutoModelForCausalLM, SETTING, source, config)
    refuse_missing_weights(SETTING, source, missing)
    state = inner.state_dict()
    own = {plain: state[name] for name, plain in lora.names_without_adapters(inner).items()}
    for name, tensor in model.state_dict().items():
        target = own.get(name)
        if target is None or target.shape != tensor.shape:
            raise WeightsError(
                f"{SETTING}={source!r} has the weight {name!r} of {tuple(tensor.shape)}, which its configuration does "
                "not; name a complete checkpoint"
            )
        target.copy_(tensor)
