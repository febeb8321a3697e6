"""What the train job says, and refuses, before it begins."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.tars.shards import ShardWriter
from pipelines.workflows import fit, train
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError, parse_config
from vlmodel.sample import Question, SampleTexts


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Index:
    """Three samples of split train, two of whose texts say left or right; a bright one does not."""
    folder, image = tmp_path_factory.mktemp("tars"), io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    texts = (
        SampleTexts(("a dog on the left",), ()),
        SampleTexts((), (Question("where is it?", "Right"),)),
        SampleTexts(("a bright cleft",), (Question("is it?", "no"),)),
    )
    with ShardWriter(folder, "train") as writer:
        for number, of_sample in enumerate(texts):
            writer.add(str(number), {"image": (image.getvalue(), "png")}, of_sample)
    return build_index(str(folder), IndexConfig(validation_fraction=0.0))


def workspace(index: Index, **of_train: Any) -> Workspace:
    return Workspace(parse_config(JobConfig, {"data": {"tars": index.tars}, "train": of_train}))


def test_mirrored_images_whose_texts_say_a_side_are_told(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    fit._warn_of_left_and_right_in_mirrored_images(workspace(index, augment={"flip": 0.5}), [index])
    says = "train.augment.flip=0.5 mirrors images, and 2 of the first 6 texts of"
    assert says in (shown := capsys.readouterr().out)
    assert 'train.augment.swap={left = "right"}' in shown
    for augment in ({"flip": 0.5, "swap": {"left": "right"}}, {"min_area": 0.5}):
        fit._warn_of_left_and_right_in_mirrored_images(workspace(index, augment=augment), [index])
    assert not capsys.readouterr().out


def test_patience_needs_a_validation_split(index: Index) -> None:
    assert train.open_index(workspace(index)).hash == index.hash
    with pytest.raises(ConfigError, match=r"train\.patience=3 ends .* has no validation split; set data\.index\.valid"):
        train.open_index(workspace(index, patience=3))
