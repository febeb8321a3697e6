"""A registered model without images, of a sound and a series: golden answers, and MLflow's table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pytest
from mlflow.models import Model

from pipelines.registry import golden, package
from pipelines.registry.smoke import answer_in_fresh_process
from tests.vlmodel.conftest import examples, make_model, processor, tokenizer  # noqa: F401 - fixtures
from tests.vlmodel.tiny import IMU, for_tasks, tiny_input, tiny_tree
from vlmodel.inference import Predictor
from vlmodel.processor import Example, VLProcessor


@pytest.fixture
def predictor(
    make_model: Callable[..., Any],  # noqa: F811
    processor: VLProcessor,  # noqa: F811
) -> Predictor:
    parts = {"task": {"kind": "classify"}, "vision": {"kind": "none"}, "inputs": {"imu": IMU, **tiny_input("audio")}}
    tree = tiny_tree(**parts)
    return Predictor(make_model(**parts), for_tasks(processor, tree.task.tasks_by_name(), tree))


@pytest.fixture
def inputs(examples: list[Example]) -> dict[str, bytes]:  # noqa: F811
    return {name: examples[0].inputs[name] for name in ("imu", "sound")}


def test_each_of_several_inputs_is_asked_about_alone(predictor: Predictor, inputs: dict[str, bytes]) -> None:
    found = golden.record_golden_answers(predictor, {"": Example(inputs, ("",))})
    assert [one.example().inputs for one in found] == [inputs, {"imu": inputs["imu"]}, {"sound": inputs["sound"]}]
    assert len({str(one.answers) for one in found}) == 3
    assert golden.differing_answers(predictor, found, 1e-4) == []


def test_a_table_of_inputs_is_answered_where_the_repository_is_not(
    predictor: Predictor, inputs: dict[str, bytes], tmp_path: Path
) -> None:
    predictor.model.save_pretrained(tmp_path / "model")
    predictor.processor.save_pretrained(tmp_path / "model")
    alone = Example({"sound": inputs["sound"]}, ("",))
    package.build_package(tmp_path / "model", tmp_path / "package", alone, Model())
    asked = [Example(inputs, ("",)), alone]
    expected = [one.answers for (one,) in predictor.predict(asked)]
    best = [answers[0][0] for answers in expected]
    assert answer_in_fresh_process(tmp_path / "package", asked) == best
    assert answer_in_fresh_process(tmp_path / "package", [alone]) == best[1:]
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    assert loaded.metadata.get_input_schema().input_names() == ["imu", "sound"]
    cells = [(inputs["imu"], inputs["sound"]), (None, inputs["sound"]), (None, None), (b"1,x", None)]
    table = loaded.predict(pd.DataFrame(cells, columns=["imu", "sound"], dtype=object))
    assert list(table["answer"]) == [*best, None, None]
    assert table["probability"][0] == pytest.approx(expected[0][0][1], abs=1e-6)
    assert table["error"][2] == "imu, sound are all missing"
    assert "channels" in table["error"][3]
