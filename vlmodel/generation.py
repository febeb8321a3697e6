"""The settings by which texts are written, of transformers' ``GenerationConfig``, and what cannot be set.

No torch here: a configuration is checked before anything is opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmodel.config import ConfigError


@dataclass(frozen=True)
class Setting:
    """What a setting may be.

    Attributes:
        type: of its values; an integer is a number too.
        least, most: the range of a number, whose ends are allowed.
        above: a number that all values are greater than.
        sampled: it says how texts are drawn, and is read with ``do_sample`` only.
    """

    type: type
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    sampled: bool = False

    def unsupported_reason(self, value: Any) -> str | None:
        """Why ``value`` cannot be, in words that follow it; None if it can."""
        kind: object = type(value)  # a Boolean is an int to isinstance
        if kind is not self.type and not (self.type is float and kind is int):
            return f"must be of type {self.type.__name__}"
        if not math.isfinite(value):
            return "must be a finite number"
        if self.least <= value <= self.most and value > self.above:
            return None
        limits = [
            words
            for words, limit in (("at least", self.least), ("above", self.above), ("at most", self.most))
            if math.isfinite(limit)
            for words in [f"{words} {limit:g}"]
        ]
        return f"must be {' and '.join(limits)}"


SETTINGS: dict[str, Setting] = {
    "do_sample": Setting(bool),
    "early_stopping": Setting(bool),
    "length_penalty": Setting(float),
    "max_new_tokens": Setting(int, least=1),
    "max_time": Setting(float, above=0),
    "min_new_tokens": Setting(int, least=0),
    "min_p": Setting(float, least=0, most=1, sampled=True),
    "no_repeat_ngram_size": Setting(int, least=0),
    "num_beams": Setting(int, least=1),
    "repetition_penalty": Setting(float, above=0),
    # Scores divided by less than this leave the range of float.
    "temperature": Setting(float, least=1e-6, sampled=True),
    "top_p": Setting(float, least=0, most=1, sampled=True),
    "typical_p": Setting(float, above=0, most=1, sampled=True),
}
"""Settings of generation by their names."""


def check(settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
    """Refuse settings that no decoder can write ``top_k`` texts by.

    Args:
        max_target_tokens: of the processor; without ``max_new_tokens`` one token less than this is written.

    Raises:
        ConfigError: naming the setting, its value and the remedy.
    """
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ConfigError(f"{name!r} is no setting of generation; they are {', '.join(SETTINGS)}")
        if reason := SETTINGS[name].unsupported_reason(value):
            raise ConfigError(f"{name}={value!r} {reason}")
    sampled = settings.get("do_sample", False)
    if idle := [name for name in settings if SETTINGS[name].sampled and not sampled]:
        raise ConfigError(
            f"{idle[0]}={settings[idle[0]]!r} says how texts are sampled, and they are not; set do_sample=true, or "
            f"leave {idle[0]} out"
        )
    beams = settings.get("num_beams", 1 if sampled else top_k)
    if beams < top_k and not (sampled and beams == 1):
        remedy = "use as many, or 1" if sampled else "use as many, or do_sample"
        raise ConfigError(f"num_beams={beams} cannot find top_k={top_k} texts; {remedy}")
    least, most = settings.get("min_new_tokens", 0), settings.get("max_new_tokens", max_target_tokens - 1)
    if least > most:
        raise ConfigError(f"min_new_tokens={least} is more than the {most} of max_new_tokens; lower it, or set both")
