"""Where in time a model looked: of the weights of its tokens, for sounds, series and clips of different lengths.

Claims: each input's weights are as many as its own real parts, whatever it is batched with, and sum to 1; a clip has
one for each frame; rows have none; they are those of the fusion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.vlmodel.tiny import IMU, for_tasks, tiny_input, tiny_tree
from vlmodel.inference import Predictor
from vlmodel.processor import Example, VLProcessor

INPUTS: dict[str, Any] = {"imu": IMU} | {
    name: settings for kind in ("audio", "video", "row") for name, settings in tiny_input(kind).items()
}


@pytest.fixture(params=["classify", "vqa"])
def predictor(request: pytest.FixtureRequest, make_model: Callable[..., Any], processor: VLProcessor) -> Predictor:
    parts = {"task": {"kind": request.param}, "inputs": INPUTS}
    tree = tiny_tree(**parts)
    return Predictor(make_model(**parts), for_tasks(processor, tree.task.tasks_by_name(), tree))


def asked(predictor: Predictor, examples: list[Example]) -> list[Example]:
    reads = next(iter(predictor.processor.tasks.values())).reads_text()
    return [Example(example.inputs, example.texts[:1] if reads else ("",)) for example in examples]


def test_weights_are_of_the_real_parts_alone(predictor: Predictor, examples: list[Example]) -> None:
    rows = asked(predictor, examples)
    rows.append(Example({"sound": examples[0].inputs["sound"]}, rows[0].texts))
    together = [one for (one,) in predictor.predict(rows, attention=True)]
    assert set(together[0].attention_T) == {"clip", "imu", "sound"}
    assert set(together[2].attention_T) == {"sound"}
    # 5 and 3 time steps, two a token; three frames are read of each clip.
    assert [len(one.attention_T["imu"]) for one in together[:2]] == [3, 2]
    assert len(together[0].attention_T["clip"]) == 3
    for row, batched in zip(rows, together, strict=True):
        ((alone,),) = predictor.predict([row], attention=True)
        for name, weights_T in batched.attention_T.items():
            assert weights_T.sum() == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(weights_T, alone.attention_T[name], atol=1e-5)
    assert predictor.predict(rows)[0][0].attention_T == {}


def test_frames_sum_their_tokens(predictor: Predictor) -> None:
    encoder = predictor.model.encoder_of_stream("clip")
    tokens = encoder._tokens_of_frame()  # type: ignore[operator]
    weights_NT = torch.arange(2.0 * 3 * tokens).view(2, -1)
    over_time_NT = encoder.weights_over_time(weights_NT)  # type: ignore[operator]
    assert over_time_NT.shape == (2, 3)
    assert over_time_NT[0, 0] == weights_NT[0, :tokens].sum()
