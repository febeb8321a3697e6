"""Weights of a vision backbone: where they may come from, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmodel.config import ConfigError, parse
from vlmodel.parts import WeightsError
from vlmodel.vision.cnn import CNN, Config


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(3)
    return torchvision.models.resnet18(num_classes=7)


def load(weights: Path | str, **settings: object) -> Any:
    encoder = parse(Config, {"stages": 2, "weights": str(weights), **settings}).build()
    encoder.load_pretrained()
    return encoder


def equal_to(encoder: CNN, source: nn.Module) -> bool:
    return all(
        torch.equal(value, source.get_submodule(name).state_dict()[key])
        for name, block in encoder.backbone.named_children()
        for key, value in block.state_dict().items()
    )


def test_whole_state_dict(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth")
    assert equal_to(encoder, source)
    assert encoder.report is not None
    assert "layer2.1.bn2.running_var" in encoder.report.loaded
    assert {name.split(".")[0] for name in encoder.report.left} == {"layer3", "layer4", "fc"}


def test_wrapped_prefixed_without_classifier(source: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    torch.save({"state_dict": state, "best": 0.5}, tmp_path / "w.th")
    assert equal_to(load(tmp_path / "w.th"), source)


def test_safetensors_and_counters_missing(source: nn.Module, tmp_path: Path) -> None:
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    assert equal_to(load(tmp_path / "w.safetensors"), source)


def test_backbone_in_a_chain_of_features(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source: Any = torchvision.models.mobilenet_v3_small()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", name="mobilenet_v3_small")
    assert torch.equal(encoder.backbone.features_0[0].weight, source.features[0][0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"1 missing: layer1\.0\.conv1\.weight"),
        (lambda s: s.update({"layer9.weight": torch.zeros(1)}), r"1 unknown: layer9\.weight"),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}),
            r"1 of another shape: conv1\.weight \(64, 3, 3, 3\) where \(64, 3, 7, 7\) is needed",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_loaded(
    change: Callable[[dict[str, Tensor]], None], message: str, source: nn.Module, tmp_path: Path
) -> None:
    state = dict(source.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    encoder = parse(Config, {"stages": 2, "weights": str(tmp_path / "w.pth")}).build()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=message + r".*Set vision\.name, vision\.stem and vision\.stages"):
        encoder.load_pretrained()
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no file; give a state dict"):
        load(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(WeightsError, match="cannot be read as a state dict"):
        load(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load(tmp_path / "list.pth")


def test_a_pickled_module_is_not_executed(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source, tmp_path / "module.pth")
    with pytest.raises(WeightsError, match="cannot be read as a state dict"):
        load(tmp_path / "module.pth")


def test_unknown_name_of_torchvisions_weights() -> None:
    with pytest.raises(WeightsError, match="resnet18 has IMAGENET1K_V1"):
        load("IMAGENET1K_V9")


def test_weights_that_cannot_be_fetched_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(WeightsError, match=r"no network.*download https://.*resnet18.*set vision\.weights to the path"):
        load("imagenet")


def test_weights_of_torchvisions_names(source: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torchvision.models.resnet18()
    asked = []

    def fetched(url: str, **options: object) -> dict[str, Tensor]:
        asked.append((url, options))
        return whole.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    assert equal_to(load("IMAGENET1K_V1"), whole)
    assert asked[0][1]["weights_only"] is True
    assert asked[0][1]["check_hash"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet19"}, r"no backbone 'resnet19'; close names: .*resnet1"),
        ({"name": "vit_b_16"}, r"no backbone 'vit_b_16'"),
        ({"stages": 5}, "stages=5, and resnet18 has 4; choose 1 to 4"),
        ({"stages": 2, "frozen_stages": 3}, "frozen_stages=3 is more than the 2 stages kept"),
        ({"name": "vgg11", "stem": "small"}, "stem='small' is made for ResNets, and name='vgg11' is none"),
        (
            {"stem": "small", "weights": "imagenet"},
            "stem='small' has another first convolution than weights='imagenet'",
        ),
        ({"std": [0.2, 0.0, 0.2]}, r"std=\(0.2, 0.0, 0.2\) must be positive"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, settings)


def test_small_stem_keeps_the_resolution() -> None:
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    small = parse(Config, {"stages": 1, "stem": "small"})
    assert small.smallest_image() == 1
    assert small.build()(pixels).x_BTD.shape == (1, 32 * 32, 64)
    assert parse(Config, {"stages": 1}).build()(pixels).x_BTD.shape == (1, 8 * 8, 64)


def test_small_stem_takes_weights_trained_with_it(tmp_path: Path, make_model: Callable[..., Any]) -> None:
    torch.manual_seed(5)
    encoder: Any = parse(Config, {"stages": 1, "stem": "small"}).build()
    state = {key.removeprefix("backbone."): value for key, value in encoder.state_dict().items() if "backbone" in key}
    torch.save(state, tmp_path / "w.pth")
    model = make_model(vision={"stem": "small", "weights": str(tmp_path / "w.pth")})
    assert torch.equal(model.vision.backbone.conv1.weight, encoder.backbone.conv1.weight)
    assert len(list(model.backbone_parameters())) == len(list(encoder.backbone.parameters()))
