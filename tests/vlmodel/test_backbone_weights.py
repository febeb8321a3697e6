"""Weights of a vision backbone: where they may come from, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmodel.config import ConfigError, parse_config
from vlmodel.vision._cnn import CNNEncoder
from vlmodel.vision.cnn import Config
from vlmodel.vision.vit import Config as ViTConfig
from vlmodel.weights import WeightsError


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(3)
    return torchvision.models.resnet18(num_classes=7)


def load(weights: Path | str, **settings: object) -> Any:
    encoder = parse_config(Config, {"stages": 2, "weights": str(weights), **settings}).build()
    encoder.load_pretrained()
    return encoder


def equal_to(encoder: CNNEncoder, source: nn.Module) -> bool:
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
    encoder = parse_config(Config, {"stages": 2, "weights": str(tmp_path / "w.pth")}).build()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=message + r".*Set vision\.name, vision\.stem and vision\.stages"):
        encoder.load_pretrained()
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_what_fits_is_loaded_and_the_rest_reported(source: nn.Module, tmp_path: Path) -> None:
    state = dict(source.state_dict())
    del state["bn1.bias"]
    state |= {"conv1.weight": torch.zeros(64, 3, 3, 3), "other.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pth")
    encoder: Any = parse_config(Config, {"stages": 2, "weights": str(tmp_path / "w.pth"), "strict": False}).build()
    drawn = encoder.backbone.conv1.weight.clone()
    encoder.load_pretrained()
    assert encoder.report.missing == ("bn1.bias", "conv1.weight")
    assert {"conv1.weight", "other.weight", "fc.bias"} < set(encoder.report.left)
    assert "2 missing there, left as they were drawn: bn1.bias, conv1.weight" in str(encoder.report)
    assert torch.equal(encoder.backbone.conv1.weight, drawn)
    assert torch.equal(encoder.backbone.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="are not those of this backbone"):
        load(tmp_path / "w.pth", strict=False)


def test_saved_on_a_gpu(source: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="on a CUDA device"):
            torch.load(tmp_path / "w.pth", weights_only=True)
    assert equal_to(load(tmp_path / "w.pth"), source)


@pytest.mark.parametrize("settings", [{"stages": None}, {"stages": 3, "stem": "small"}])
def test_real_weights_of_another_architecture(settings: dict[str, object], shared_data: Callable[[str], Path]) -> None:
    """Of a CIFAR ResNet-20, saved on a GPU by data-parallel training."""
    file = shared_data("cifar-resnet-weights") / "resnet20-12fca82f.th"
    with pytest.raises(WeightsError) as caught:
        load(file, **settings)
    assert "layer1.2.bn1.bias" in str(caught.value).partition("unknown: ")[2]
    assert "of another shape: bn1.bias (16,) where (64,) is needed" in str(caught.value)
    assert "module." not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "former"),
    [
        ("densenet121", lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key)),
        ("regnet_x_400mf", str),
        ("swin_t", str),
    ],
)
def test_families(name: str, former: Callable[[str], str], tmp_path: Path) -> None:
    """Whole networks as torchvision publishes them, a DenseNet by the names that its file has kept."""
    torch.manual_seed(1)
    source = torchvision.models.get_model(name)
    state = {former(key): value for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", name=name, stages=None)
    pixels = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    pooled = encoder.eval()(pixels).pooled_BD
    source.classifier = source.fc = source.head = nn.Identity()
    reference = source.eval()(encoder.normalise_pixels(pixels))
    torch.testing.assert_close(torch.relu(pooled) if name == "densenet121" else pooled, reference)


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("googlenet", 64, {"transform_input": True, "init_weights": False}),
        ("inception_v3", 75, {"transform_input": True, "init_weights": False}),
        ("maxvit_t", 224, {}),
    ],
)
def test_families_of_their_own(name: str, side: int, options: dict[str, Any], tmp_path: Path) -> None:
    """Side exits that nobody reads, pixels of another scale, one size of images."""
    torch.manual_seed(1)
    source: Any = torchvision.models.get_model(name, **options)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", name=name, stages=None, position="none")
    pixels = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)
    source.fc = source.classifier = nn.Identity()
    with torch.no_grad():
        reference = source.eval()(encoder.normalise_pixels(pixels))
        tokens = encoder.eval()(pixels)
    torch.testing.assert_close(tokens.pooled_BD, reference if reference.ndim == 2 else reference.mean((2, 3)))


def cifar_by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Feature map of the last stage of a CIFAR ResNet, from the paper and from the names of its weights."""

    def norm(x: Tensor, name: str) -> Tensor:
        of = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.batch_norm(x, *of)

    x = norm(nn.functional.conv2d(x, state["conv1.weight"], padding=1), "bn1").relu()
    blocks = {key.rsplit(".", 2)[0] for key in state if key.startswith("layer")}
    for block in sorted(blocks, key=lambda b: [int(n) for n in b.removeprefix("layer").split(".")]):
        first, second = state[f"{block}.conv1.weight"], state[f"{block}.conv2.weight"]
        halved = first.shape[0] > first.shape[1]
        y = norm(nn.functional.conv2d(x, first, stride=2 if halved else 1, padding=1), f"{block}.bn1").relu()
        y = norm(nn.functional.conv2d(y, second, padding=1), f"{block}.bn2")
        if halved:
            none = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
            x = torch.cat([none, x[:, :, ::2, ::2], none], 1)
        x = (x + y).relu()
    return x


@pytest.mark.parametrize(
    ("name", "file"), [("cifar_resnet20", "resnet20-12fca82f"), ("cifar_resnet56", "resnet56-4bfd9763")]
)
def test_real_weights(name: str, file: str, shared_data: Callable[[str], Path]) -> None:
    """Published ones of CIFAR-10, from a GPU, in the old format, with a prefix and a classifier."""
    path = shared_data("cifar-resnet-weights") / f"{file}.th"
    encoder = load(path, name=name, stages=None, position="none").double().eval()
    assert encoder.report.left == ("linear.bias", "linear.weight")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    pixels = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = cifar_by_hand(
        {k.removeprefix("module."): v.double() for k, v in state.items()}, encoder.normalise_pixels(pixels)
    )
    assert expected.shape == (2, 64, 12, 12)
    torch.testing.assert_close(encoder(pixels).x_BTD, expected.flatten(2).transpose(1, 2))


def test_torchvision_has_no_weights_of_cifar() -> None:
    with pytest.raises(WeightsError, match="'imagenet': torchvision has none for cifar_resnet20; give the path"):
        load("imagenet", name="cifar_resnet20")


VIT = {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "feed_forward": 24}


def vit(image_size: int = 32, depth: int = 2, width: int = 16) -> Any:
    torch.manual_seed(2)
    model = torchvision.models.VisionTransformer(image_size, 8, depth, 2, width, 24, num_classes=5)
    nn.init.normal_(model.class_token)
    return model


def load_vit(state: dict[str, Tensor], file: Path) -> Any:
    torch.save(state, file)
    encoder = parse_config(ViTConfig, {**VIT, "weights": str(file)}).build()
    encoder.load_pretrained()
    return encoder


def test_vit_by_the_names_that_its_published_file_has(tmp_path: Path) -> None:
    source = vit(depth=3)
    names = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    former = {re.sub(r"mlp\.[03]\.", lambda m: names[m[0]], k): v for k, v in source.state_dict().items()}
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in former
    encoder = load_vit(former, tmp_path / "w.pth")
    own, reference = encoder.backbone.state_dict(), source.state_dict()
    assert all(torch.equal(value, reference[key]) for key, value in own.items())
    assert {key.rpartition(".")[0] for key in encoder.report.left} >= {
        "heads.head",
        "encoder.layers.encoder_layer_2.mlp.3",
    }
    assert len(list(encoder.pretrained_parameters())) == len(list(encoder.backbone.parameters()))


def test_vit_positions_of_another_resolution(tmp_path: Path) -> None:
    source = vit(image_size=24)
    # A slope of 0, 1, 2 over the rows, in 4 steps; at 2/3 the cubic of a = -0.75 is 0.7963 * 1 - 0.1111 * 2.
    positions = source.encoder.pos_embedding.data
    positions[0, 1:, 0] = torch.arange(3.0).repeat_interleave(3)
    encoder = load_vit(source.half().state_dict(), tmp_path / "w.pth")
    found = encoder.backbone.encoder.pos_embedding[0]
    assert found.shape == (17, 16)
    torch.testing.assert_close(found[0], positions[0, 0], rtol=1e-3, atol=1e-3)
    grid, corners = found[1:].view(4, 4, 16), positions[0, 1:].view(3, 3, 16)
    torch.testing.assert_close(
        grid[[0, 0, 3, 3], [0, 3, 0, 3]], corners[[0, 0, 2, 2], [0, 2, 0, 2]], rtol=1e-3, atol=1e-3
    )
    slope = grid[..., 0].detach()
    torch.testing.assert_close(slope, slope[:, :1].expand(4, 4))
    torch.testing.assert_close(slope[:, 0], torch.tensor([0.0, 0.5741, 1.4259, 2.0]), rtol=0, atol=1e-3)
    wide = parse_config(ViTConfig, {**VIT, "image_size": [16, 32], "weights": str(tmp_path / "w.pth")}).build()
    wide.load_pretrained()
    of_patches = wide.backbone.encoder.pos_embedding[0, 1:].view(2, 4, 16)
    torch.testing.assert_close(of_patches[:, [0, 3]], grid[[0, 3]][:, [0, 3]])
    others = {key for key in encoder.backbone.state_dict() if "pos_embedding" not in key}
    assert all(torch.equal(encoder.backbone.state_dict()[key], source.state_dict()[key].float()) for key in others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.pos_embedding"), r"1 missing: encoder\.pos_embedding"),
        (
            lambda s: s.update({"encoder.pos_embedding": torch.zeros(1, 12, 16)}),
            r"1 of another shape: encoder\.pos_embedding \(1, 12, 16\) where \(1, 17, 16\)",
        ),
        (lambda s: s.update(vit(width=8).state_dict()), r"of another shape: class_token \(1, 1, 8\) where"),
        (lambda s: s.update({"layer1.weight": torch.zeros(1)}), r"1 unknown: layer1\.weight"),
    ],
)
def test_vit_weights_that_do_not_fit(change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path) -> None:
    state = dict(vit().state_dict())
    change(state)
    with pytest.raises(WeightsError, match=message + r".*Set vision\.name, vision\.patch_size"):
        load_vit(state, tmp_path / "w.pth")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no file; give a state dict"):
        load(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(WeightsError, match="cannot be read as a state dict"):
        load(tmp_path / "text.pth")
    for held in ([1, 2], {0: torch.zeros(1)}):
        torch.save(held, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match="holds no state dict"):
            load(tmp_path / "other.pth")


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
        ({"name": "vit_b_16"}, r"no backbone 'vit_b_16'.*for a ViT set vision\.kind to 'vit'"),
        ({"stages": 2, "output": "multiscale", "scales": 3}, "scales=3 is more than the 2 stages kept; choose 1 to 2"),
        ({"activation": "gelu"}, "activation='gelu' follows a projection, and there is none; set projection"),
        ({"stages": 5}, "stages=5, and resnet18 has 4; choose 1 to 4"),
        ({"stages": 2, "frozen_stages": 3}, "frozen_stages=3 is more than the 2 stages kept"),
        ({"name": "vgg11", "stem": "small"}, "stem='small' is made for ResNets of torchvision, and name='vgg11' is"),
        ({"name": "cifar_resnet20", "stem": "small"}, "made for ResNets of torchvision, and name='cifar_resnet20' is"),
        (
            {"stem": "small", "weights": "imagenet"},
            "stem='small' has another first convolution than weights='imagenet'",
        ),
        ({"std": [0.2, 0.0, 0.2]}, r"std=\(0.2, 0.0, 0.2\) must be positive"),
        ({"position_scale": math.inf}, "position_scale = inf: Input should be a finite number"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Config, settings)


def test_small_stem_keeps_the_resolution() -> None:
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    small = parse_config(Config, {"stages": 1, "stem": "small"})
    small.check_image_size((1, 1))
    assert small.build()(pixels).x_BTD.shape == (1, 32 * 32, 64)
    assert parse_config(Config, {"stages": 1}).build()(pixels).x_BTD.shape == (1, 8 * 8, 64)


def test_small_stem_takes_weights_trained_with_it(tmp_path: Path, make_model: Callable[..., Any]) -> None:
    torch.manual_seed(5)
    encoder: Any = parse_config(Config, {"stages": 1, "stem": "small"}).build()
    state = {key.removeprefix("backbone."): value for key, value in encoder.state_dict().items() if "backbone" in key}
    torch.save(state, tmp_path / "w.pth")
    model = make_model(vision={"stem": "small", "weights": str(tmp_path / "w.pth")})
    assert torch.equal(model.vision.backbone.conv1.weight, encoder.backbone.conv1.weight)
    assert len(list(model.backbone_parameters())) == len(list(encoder.backbone.parameters()))
