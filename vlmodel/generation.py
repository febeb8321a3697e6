"""Settings of text generation (those of transformers' ``GenerationConfig``), and the check of their values.

torch is not imported here: a configuration is checked before anything is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vlmodel.config import ConfigError

SETTINGS: dict[str, Any] = {
    "do_sample": bool,
    "early_stopping": bool,
    "length_penalty": float,
    "max_new_tokens": Annotated[int, Field(ge=1)],
    "max_time": Annotated[float, Field(gt=0)],
    "min_new_tokens": Annotated[int, Field(ge=0)],
    "min_p": Annotated[float, Field(ge=0, le=1)],
    "no_repeat_ngram_size": Annotated[int, Field(ge=0)],
    "num_beams": Annotated[int, Field(ge=1)],
    "repetition_penalty": Annotated[float, Field(gt=0)],
    # Scores divided by less exceed the range of float.
    "stop_strings": Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=16)],
    "temperature": Annotated[float, Field(ge=1e-6)],
    "top_p": Annotated[float, Field(ge=0, le=1)],
    "typical_p": Annotated[float, Field(gt=0, le=1)],
}
"""The settings of generation and their types."""

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_SAMPLING_ONLY = ("min_p", "temperature", "top_p", "typical_p")
"""Settings that transformers ignores without ``do_sample``."""


def check_generation_settings(settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
    """Raise an error for settings with which no decoder can generate ``top_k`` texts.

    Args:
        max_target_tokens: of the processor; without ``max_new_tokens`` one token less than this is generated.

    Raises:
        ConfigError: naming the setting, its value and the remedy.
    """
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise ConfigError(f"{unknown[0]!r} is no setting of generation; they are {', '.join(SETTINGS)}")
    for name, value in settings.items():
        try:
            TypeAdapter(SETTINGS[name], config=_STRICT).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{name}={value!r}: {error.errors()[0]['msg']}") from None
    sampled = settings.get("do_sample", False)
    if unused := [name for name in settings if name in _SAMPLING_ONLY and not sampled]:
        raise ConfigError(
            f"{unused[0]}={settings[unused[0]]!r} says how texts are sampled, and they are not; set do_sample=true, or "
            f"leave {unused[0]} out"
        )
    beams = settings.get("num_beams", 1 if sampled else top_k)
    if beams < top_k and not (sampled and beams == 1):
        remedy = "use as many, or 1" if sampled else "use as many, or do_sample"
        raise ConfigError(f"num_beams={beams} cannot find top_k={top_k} texts; {remedy}")
    least, most = settings.get("min_new_tokens", 0), settings.get("max_new_tokens", max_target_tokens - 1)
    if least > most:
        raise ConfigError(f"min_new_tokens={least} is more than the {most} of max_new_tokens; lower it, or set both")
