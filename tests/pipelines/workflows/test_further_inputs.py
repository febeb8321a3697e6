"""Data that lack an input which the model encodes are refused before a training begins, with the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.errors import DataError
from pipelines.workflows.config import JobConfig
from pipelines.workflows.training_data import check_inputs
from vlmodel.config import parse_config


def _index(tars: str, **inputs: str) -> Any:
    return SimpleNamespace(tars=tars, inputs=inputs)


@pytest.fixture
def work() -> Any:
    tree = {"model": {"inputs": {"imu": {"kind": "series", "channels": 3}}}}
    return SimpleNamespace(config=parse_config(JobConfig, tree))


def test_an_input_that_no_index_has(work: Any) -> None:
    indexes = {"one": _index("a", image="image"), "two": _index("b", left="image")}
    with pytest.raises(
        DataError,
        match=r"model.inputs.imu: no sample of a and b has .* \(indexed are image, left\); .*data.index.inputs",
    ):
        check_inputs(work, indexes)


def test_an_input_of_another_medium(work: Any) -> None:
    with pytest.raises(DataError, match=r"encodes series, and 'imu' of a is image; choose a kind for that"):
        check_inputs(work, {"": _index("a", image="image", imu="image")})


def test_an_input_that_some_index_has(work: Any) -> None:
    check_inputs(work, {"one": _index("a", image="image"), "two": _index("b", imu="series")})
