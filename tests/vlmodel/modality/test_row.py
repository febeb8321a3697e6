"""The encoder of rows: what each value becomes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlmodel.config import ConfigError, parse_part_config
from vlmodel.media.base import MediumError
from vlmodel.modality.row import Config
from vlmodel.tokens import Tokens

TINY: dict[str, Any] = {
    "kind": "row", "numbers": {"height": {}, "age": {"mean": 40, "std": 10}}, "categories": {"colour": ["red", "3"]},
    "width": 8, "depth": 0, "heads": 2,
}  # fmt: skip


def encoded(*rows: bytes, **settings: Any) -> Tokens:
    config = parse_part_config("vlmodel.modality", {**TINY, **settings})
    torch.manual_seed(0)
    arrays = config.collate([config.decode(row) for row in rows])
    tokens: Tokens = config.build().eval()(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    return tokens


def test_numbers_are_scaled_and_categories_are_numbered() -> None:
    config = parse_part_config("vlmodel.modality", TINY)
    assert isinstance(config, Config)
    assert config.columns == ("age", "height", "colour")
    rows = (b'{"age": 50, "height": true, "colour": 3, "other": 1}', b'{"colour": "green", "age": null}')
    arrays = config.collate([config.decode(row) for row in rows])
    assert arrays["numbers_BC"].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert arrays["codes_BC"].tolist() == [[0, 0, 2], [0, 0, 0]]
    assert arrays["given_BC"].tolist() == [[True, True, True], [False, False, True]]
    assert {name: array.shape for name, array in config.collate([]).items()} == dict.fromkeys(arrays, (0, 3))


def test_each_value_changes_its_token_alone() -> None:
    base, older, green, grey, missing = encoded(
        b'{"age": 40, "height": 1, "colour": "red"}', b'{"age": 70, "height": 1, "colour": "red"}',
        b'{"age": 40, "height": 1, "colour": "green"}', b'{"age": 40, "height": 1, "colour": "grey"}',
        b'{"age": 40, "colour": "red"}',
    ).x_BTD  # fmt: skip
    changed = [[not torch.equal(*pair) for pair in zip(base, other, strict=True)] for other in (older, green, missing)]
    assert changed == [[True, False, False], [False, False, True], [False, True, False]]
    assert torch.equal(green, grey)  # both are unknown


def test_what_is_missing_is_a_token_or_none() -> None:
    rows = (b'{"age": 40, "height": 1, "colour": "red"}', b'{"age": 40}', b'{"other": 1}')
    assert encoded(*rows).mask_BT.all()
    without = encoded(*rows, missing="none")
    assert without.mask_BT.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert without.pooled_BD.isfinite().all()
    assert not without.pooled_BD[2].any()


def test_what_is_refused() -> None:
    config = parse_part_config("vlmodel.modality", TINY)
    with pytest.raises(MediumError, match="'tall'; the model takes a number") as caught:
        config.decode(b'{"height": "tall"}')
    assert caught.value.reason == "wrong_column"
    for settings, message in (
        ({"numbers": {}, "categories": {}}, "name at least one column"),
        ({"categories": {"age": ["a"]}}, "in numbers and in categories"),
        ({"categories": {"colour": ["a", "a"]}}, "each once"),
        ({"numbers": {"age": {"std": 0}}}, "std"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_part_config("vlmodel.modality", {**TINY, **settings})
