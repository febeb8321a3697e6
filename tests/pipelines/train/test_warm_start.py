"""A training that begins with another model's weights: the same ones, in every process, and never of another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.storage.folder import StorageFolder
from pipelines.train import warm_start
from pipelines.train.worker import create_initial_model
from tests.pipelines.train.conftest import TINY
from vlmodel.config import ConfigError, load_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.weights import WeightsError


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[[], VLModel], tiny_processor: VLProcessor) -> Path:
    """A model with weights that no seed draws."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def test_the_weights_are_those_of_the_model(saved: Path, tmp_path: Path, tiny_processor: VLProcessor) -> None:
    run = str(tmp_path / "runs" / "one")
    assert warm_start.find_initial_model(run) == ""
    init = warm_start.store_initial_model(saved, run)
    assert warm_start.find_initial_model(run) == init
    config = load_config(ModelConfig, None, TINY)
    expected = VLModel.from_pretrained(str(saved)).state_dict()
    made = create_initial_model(config, tiny_processor, 3, init)
    assert all(torch.equal(expected[name], tensor) for name, tensor in made.state_dict().items())
    assert {n for n, p in made.named_parameters() if p.requires_grad} == {
        n for n, p in create_initial_model(config, tiny_processor, 3).named_parameters() if p.requires_grad
    }
    drawn = create_initial_model(config, tiny_processor, 3).state_dict()
    assert not torch.equal(drawn["vision.projection.weight"], expected["vision.projection.weight"])


def test_a_copy_that_was_cut_off_is_made_again(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    warm_start.store_initial_model(saved, str(run))
    (run / "init" / "manifest.json").unlink()
    (run / "init" / "model.safetensors").write_bytes(b"half")
    assert warm_start.find_initial_model(str(run)) == ""
    warm_start.store_initial_model(saved, str(run))
    assert (run / "init" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_a_copy_that_was_altered_is_refused(saved: Path, tmp_path: Path, tiny_processor: VLProcessor) -> None:
    init = warm_start.store_initial_model(saved, f"memory://{tmp_path.name}/run")
    config = load_config(ModelConfig, None, TINY)
    create_initial_model(config, tiny_processor, 3, init)
    StorageFolder(init).write("model.safetensors", b"other")
    with pytest.raises(WeightsError, match=r"init/model\.safetensors was altered .*delete memory://"):
        create_initial_model(config, tiny_processor, 3, init)


def test_the_same_settings_are_accepted(saved: Path, tiny_processor: VLProcessor) -> None:
    config = load_config(ModelConfig, None, TINY)
    processor = warm_start.load_matching_processor(saved, config, tiny_processor.config)
    assert processor.labels == tiny_processor.labels


@pytest.mark.parametrize(
    ("model", "processor", "says"),
    [
        # The same shapes, another meaning.
        (["fusion.heads=4"], {}, "model.fusion.heads: 2 there, 4 here"),
        (["vision.projection=8"], {}, "model.vision.projection: 16 there, 8 here"),
        (["fusion.kind=concat"], {}, "model.fusion.kind: transformer there, concat here"),
        ([], {"image_size": 64}, "processor.image_size: 32 there, 64 here"),
    ],
)
def test_other_settings_are_refused_by_name(
    saved: Path, tiny_processor: VLProcessor, model: list[str], processor: dict[str, int], says: str
) -> None:
    find_initial_model = [s for s in TINY if not (model and s.startswith("fusion.") and "kind" in model[0])]
    config = load_config(ModelConfig, None, [*find_initial_model, *model])
    settings = ProcessorConfig(**{"image_size": 32, "max_tokens": 8, **processor})
    with pytest.raises(ConfigError, match=r"train\.init names a model of other settings") as refused:
        warm_start.load_matching_processor(saved, config, settings)
    assert says in str(refused.value)


def test_another_task_is_refused(saved: Path, tiny_processor: VLProcessor) -> None:
    config = load_config(ModelConfig, None, [*TINY, "task.kind=matching"])
    with pytest.raises(ConfigError, match=r"model\.task\.kind: vqa there, matching here"):
        warm_start.load_matching_processor(saved, config, tiny_processor.config)
