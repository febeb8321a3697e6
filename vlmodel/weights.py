"""Loads pretrained models of transformers without executing their code; errors name the setting and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmodel.config import ConfigError
from vlmodel.errors import ExpectedError

_NOT_OF_THE_ARCHITECTURE = ("_name_or_path", "architectures", "transformers_version", "dtype")


class WeightsError(ExpectedError, ValueError):
    """The weights cannot be loaded into a part. The message names the file, the first differences and the remedy."""


def open_any_transformers_config(setting: str, source: str) -> Any:
    """Read transformers' configuration of a model in a folder or on the hub, whatever its architecture.

    Args:
        setting: the setting that names ``source``, for the error.

    Raises:
        WeightsError: it cannot be opened.
    """
    from transformers import AutoConfig

    name, options = from_pretrained_arguments(source)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # broken files raise anything
        raise WeightsError(
            f"{setting}={source!r} cannot be opened: {error_in_one_line(error)}; without a network, name the folder of "
            "a copy"
        ) from error


def open_transformers_config(
    setting: str, source: str, vocabulary_size: int, unsupported_architecture_reason: Callable[[str], str | None]
) -> Any:
    """Read transformers' configuration of a model in a folder or on the hub, and check its architecture.

    Args:
        setting: the setting that names ``source``, for the error.
        vocabulary_size: how many tokens the tokenizer has; the model must have as many.
        unsupported_architecture_reason: why an architecture cannot be used; None if it can.

    Raises:
        WeightsError: it cannot be opened.
        ConfigError: its architecture cannot be used, or it does not fit the tokenizer.
    """
    config = open_any_transformers_config(setting, source)
    if reason := unsupported_architecture_reason(config.model_type):
        raise ConfigError(f"{setting}={source!r}: its architecture {config.model_type!r} {reason}")
    if config.vocab_size < vocabulary_size:
        raise ConfigError(
            f"{setting}={source!r} knows {config.vocab_size} tokens and the tokenizer makes {vocabulary_size}; use the "
            "tokenizer that belongs to it"
        )
    return config


def error_in_one_line(error: Exception) -> str:
    """Return the text of an error without its line breaks."""
    return " ".join(str(error).split())


def open_transformers_model(auto_class: Any, setting: str, source: str, config: Any) -> tuple[Any, set[str]]:
    """Load a model of transformers with its weights (safetensors); also return the names of weights that are missing.

    Raises:
        WeightsError: there are none that can be loaded.
    """
    name, options = from_pretrained_arguments(source)
    try:
        model, info = auto_class.from_pretrained(
            name,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # broken files raise anything
        raise WeightsError(f"{setting}={source!r} has no weights that can be loaded: {error}") from error
    return model, set(info["missing_keys"])


def refuse_missing_weights(setting: str, source: str, missing: Iterable[str]) -> None:
    """Raise WeightsError if a source lacks weights of its own architecture.

    Raises:
        WeightsError: something is missing.
    """
    if names := sorted(missing):
        raise WeightsError(
            f"{setting}={source!r} lacks {len(names)} weights of its own architecture: {', '.join(names[:3])}; name a "
            "complete checkpoint"
        )


def refuse_mismatched_weights(folder: str, info: Mapping[str, Any]) -> None:
    """Raise WeightsError if the loaded weights are not exactly those of the model that was built.

    Args:
        info: transformers' loading info.

    Raises:
        WeightsError: keys are missing or unexpected, or have another shape.
    """
    problems = [
        f"{len(info[kind])} {kind.removesuffix('_keys')}: {', '.join(sorted(info[kind])[:3])}"
        for kind in ("missing_keys", "unexpected_keys")
        if info[kind]
    ]
    if mismatched := sorted(info["mismatched_keys"]):
        examples = (f"{key} {tuple(stored)} where {tuple(own)} is needed" for key, stored, own in mismatched[:3])
        problems.append(f"{len(mismatched)} of another shape: {', '.join(examples)}")
    if problems:
        raise WeightsError(
            f"the weights in {folder!r} are of another architecture than its configuration: " + "; ".join(problems)
        )


def config_to_dict(config: Any) -> dict[str, Any]:
    """Convert a transformers configuration to plain JSON values, which stay the same after a checkpoint is read
    again.
    """
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in _NOT_OF_THE_ARCHITECTURE}


def config_from_dict(values: Mapping[str, Any]) -> Any:
    """Create a transformers configuration from the values of ``config_to_dict``."""
    from transformers import AutoConfig

    settings = {key: value for key, value in values.items() if key != "model_type"}
    # transformers writes infinity, which JSON has no number for, as {"__float__": "Infinity"}, and only reads it in
    # files.
    settings = json.loads(json.dumps(settings), object_hook=lambda d: float(d["__float__"]) if "__float__" in d else d)
    return AutoConfig.for_model(values["model_type"], **settings)


def from_pretrained_arguments(source: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the keyword arguments for transformers' ``from_pretrained``. A folder or a GGUF file
    (quantized weights, which become ordinary ones) is read without asking the hub.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    return source, {"local_files_only": True} if path.is_dir() else {}
