"""Settings of generation that cannot be are refused without a decoder."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vlmodel.config import ConfigError
from vlmodel.generation import SETTINGS, check_generation_settings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 5, "length_penalty": -1, "early_stopping": True},
        {"do_sample": True, "temperature": 0.7, "top_p": 1.0, "typical_p": 0.2, "min_p": 0},
        {"do_sample": True, "num_beams": 1},
        {"min_new_tokens": 31, "no_repeat_ngram_size": 0, "repetition_penalty": 1.2, "max_time": 0.5},
        {"min_new_tokens": 40, "max_new_tokens": 40},
    ],
)
def test_settings_that_can_be(settings: dict[str, Any]) -> None:
    check_generation_settings(settings, 5, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_q": 1}, "'top_q' is no setting of generation; they are do_sample, .*top_p"),
        ({"early_stopping": 1}, "early_stopping=1: Input should be a valid boolean"),
        ({"num_beams": True}, "num_beams=True: Input should be a valid integer"),
        ({"num_beams": 0}, "num_beams=0: Input should be greater than or equal to 1"),
        ({"top_p": 2.0, "do_sample": True}, "top_p=2.0: Input should be less than or equal to 1"),
        ({"top_p": math.nan, "do_sample": True}, "top_p=nan: Input should be a finite number"),
        ({"typical_p": 0.0, "do_sample": True}, "typical_p=0.0: Input should be greater than 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1: Input should be greater than or equal to 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: Input should be greater than 0"),
        ({"length_penalty": math.inf}, "length_penalty=inf: Input should be a finite number"),
        ({"max_time": -1.0}, "max_time=-1.0: Input should be greater than 0"),
        ({"temperature": 0.5}, "temperature=0.5 says how texts are sampled, and they are not; set do_sample=true"),
        ({"num_beams": 2}, "num_beams=2 cannot find top_k=5 texts; use as many, or do_sample"),
        ({"num_beams": 2, "do_sample": True}, "num_beams=2 cannot find top_k=5 texts; use as many, or 1"),
        ({"min_new_tokens": 5, "max_new_tokens": 3}, "min_new_tokens=5 is more than the 3 of max_new_tokens"),
        ({"min_new_tokens": 32}, "min_new_tokens=32 is more than the 31 of max_new_tokens; lower it, or set both"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_generation_settings(settings, 5, 32)


def test_each_setting_is_one_of_transformers() -> None:
    from transformers import GenerationConfig

    assert set(SETTINGS) <= set(GenerationConfig().to_dict())
