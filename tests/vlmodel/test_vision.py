"""Vision encoders beyond their backbones: outputs, projection, freezing, and settings that do not fit the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlmodel.config import ConfigError, parse_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.parts import Encoder
from vlmodel.processor import ProcessorConfig
from vlmodel.vision import _backbones, _torchvision, cnn, vit
from vlmodel.vision._positions import sine_positions

VIT = {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "feed_forward": 24}
FAMILIES = [
    "vgg11",
    "googlenet",
    "regnet_y_400mf",
    "densenet121",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "mnasnet0_5",
    "swin_v2_t",
]


def make(**settings: object) -> Any:
    config: Any = parse_config(vit.Config if settings.get("kind") == "vit" else cnn.Config, settings)
    torch.manual_seed(0)
    return config.build()


def pixels(side: int = 32, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_on_the_meta_device(name: str) -> None:
    """On which checkpoints are opened."""
    x = torch.empty(2, 64, 64, 3, dtype=torch.uint8, device="meta")
    with torch.device("meta"), torch.no_grad():
        encoder = make(name=name, output="multiscale", scales=3, projection=8).eval()
        assert {p.device.type for p in encoder.parameters()} == {"meta"}
        assert encoder(x).x_BTD.shape == (2, 64 + 16 + 4, 8)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"])
def test_maps_are_what_the_blocks_gave(name: str) -> None:
    """No later block has changed them in place."""
    encoder = make(name=name, output="multiscale", scales=3).eval()
    x, given = encoder.normalise_pixels(pixels()), []
    with torch.no_grad():
        for block in encoder.backbone:
            x = block(x)
            given.append(x.clone())
        maps = encoder.feature_maps(pixels())
    assert [m.shape[-1] for m in maps] == [4, 2, 1]
    for found in maps:
        assert any(torch.equal(found, g.permute(0, 3, 1, 2) if name == "swin_t" else g) for g in given)
    assert torch.equal(maps[-1], given[-1].permute(0, 3, 1, 2) if name == "swin_t" else given[-1])


def test_multiscale_by_hand() -> None:
    encoder = make(stages=3, output="multiscale", scales=2, projection=12, activation="tanh", position_scale=0.5).eval()
    with torch.no_grad():
        tokens = encoder(pixels())
        fine, coarse = encoder.feature_maps(pixels())
    assert (fine.shape[1:], coarse.shape[1:]) == ((128, 4, 4), (256, 2, 2))
    expected = []
    for scale, (features, side) in enumerate(((fine, 4), (coarse, 2))):
        linear = encoder.projection[scale]
        cells = [torch.tanh(linear(features[:, :, i, j])) for i in range(side) for j in range(side)]
        expected.append(torch.stack(cells, 1) + encoder.scale_LD[scale])
    pooled = (expected[0].mean(1) + expected[1].mean(1)) / 2
    torch.testing.assert_close(tokens.pooled_BD, pooled)
    at = torch.cat([sine_positions(4, 4, 12), sine_positions(2, 2, 12)])
    torch.testing.assert_close(tokens.x_BTD, torch.cat(expected, 1) + 0.5 * at)
    assert tokens.mask_BT.shape == (2, 20)


def test_multiscale_without_projection_has_the_last_width() -> None:
    encoder = make(stages=2, output="multiscale", position="none")
    assert encoder.width == 128
    assert encoder(pixels()).x_BTD.shape == (2, 64 + 16, 128)


def test_attention_as_a_grid() -> None:
    weights = torch.arange(8.0).view(1, 8)
    scales = make(stages=2, output="multiscale", grid=2)
    assert scales.weights_to_grid(weights).tolist() == [[[4.0, 6.0], [8.0, 10.0]]]
    assert make(stages=2, output="multiscale").weights_to_grid(torch.ones(1, 25)) is None
    assert make(stages=1, image_size=8).weights_to_grid(weights[:, :4]).tolist() == [[[0.0, 1.0], [2.0, 3.0]]]
    assert make(stages=1, image_size=[8, 16]).weights_to_grid(weights).shape == (1, 2, 4)
    assert make(grid=[2, 4]).weights_to_grid(weights).tolist() == weights.view(1, 2, 4).tolist()
    assert make(**{**VIT, "image_size": [16, 32]}).weights_to_grid(weights).shape == (1, 2, 4)
    named = make(stages=2, weights="imagenet", image_size=[32, 96])
    assert named.grid_shapes() == [(4, 12, 128)]


@pytest.mark.parametrize(
    "settings",
    [
        {"stages": 2, "projection": 8},
        {"stages": 3, "output": "multiscale"},
        {"name": "swin_t", "stages": 2, "output": "multiscale"},
        {**VIT, "projection": 8},
        {**VIT, "pooling": "mean", "grid": [2, 3]},
    ],
    ids=str,
)
def test_images_that_are_not_square(settings: dict[str, object]) -> None:
    """Features, tokens and the picture of the attention have the image's shape."""
    encoder: Any = make(**{**settings, "image_size": [32, 96]}, frozen=True).eval()
    given = torch.randint(0, 256, (2, 32, 96, 3), dtype=torch.uint8)
    whole = encoder(given)
    halves = encoder.tokens_from_features(encoder.compute_features(given))
    torch.testing.assert_close((halves.x_BTD, halves.pooled_BD), (whole.x_BTD, whole.pooled_BD))
    *_, (height, width, _) = encoder.grid_shapes()
    assert (height, width) in {(2, 3), (4, 12), (2, 6)}
    if settings.get("output") != "multiscale":
        assert encoder.weights_to_grid(torch.ones(1, whole.x_BTD.shape[1])).shape == (1, height, width)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("none", lambda x: x),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        ("relu", lambda x: x.clamp_min(0)),
        ("tanh", lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
    ],
)
def test_pooled_is_the_mean_projected(activation: str, function: Any) -> None:
    encoder = make(stages=2, output="pooled", projection=10, activation=activation).eval()
    with torch.no_grad():
        tokens = encoder(pixels())
        mean = encoder.feature_maps(pixels())[0].mean((2, 3))
        expected = function(mean @ encoder.projection.weight.T + encoder.projection.bias)
    torch.testing.assert_close(tokens.pooled_BD, expected)
    assert torch.equal(tokens.x_BTD, tokens.pooled_BD.unsqueeze(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "resnet18", "output": "multiscale", "stages": 3, "scales": 3},
        {"name": "swin_t", "stages": 2, "projection": 8, "activation": "gelu"},
        {"name": "swin_t"},
        {"name": "regnet_x_400mf", "stages": 2},
        VIT,
        {**VIT, "depth": 1, "pooling": "mean", "projection": 8, "grid": 2},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
@pytest.mark.parametrize("read", ["x_BTD", "pooled_BD"])
def test_every_parameter_has_a_gradient(settings: dict[str, object], read: str) -> None:
    """From the tokens alone and from the pooled vector alone: data-parallel training waits for all of them."""
    encoder = make(**settings).train()
    out = getattr(encoder(pixels(64 if settings.get("name") == "swin_t" else 32, 4)), read)
    (out * torch.randn_like(out)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("settings", [{"stages": 2}, {"name": "swin_t", "stages": 1}, VIT], ids=str)
def test_frozen_runs_without_gradient(settings: dict[str, object]) -> None:
    for frozen in (False, True):
        encoder = make(**settings, frozen=frozen, projection=8).train()
        # Even where the pixels ask for a gradient.
        x = pixels().float().requires_grad_()
        kept: list[Tensor] = []

        def keep(saved: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(saved)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            out = encoder(x).x_BTD
        out.sum().backward()
        assert (x.grad is None) is frozen
        assert (len(kept) < 10) is frozen
        assert all((p.grad is None) is frozen for p in encoder.backbone.parameters())
        assert encoder.projection.weight.grad.any()


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"stages": 2, "projection": 8}, 128 * 25),
        ({"stages": 2, "grid": 2}, 128 * 4),
        ({"stages": 2, "output": "pooled", "projection": 8}, 128),
        ({"stages": 3, "output": "multiscale", "projection": 8, "activation": "gelu"}, 128 * 25 + 256 * 9),
        ({"stages": 3, "output": "multiscale", "grid": 2, "position": "none"}, (128 + 256) * 4),
        ({"name": "swin_v2_t", "stages": 2, "output": "multiscale", "projection": 8}, 96 * 81 + 192 * 25),
        ({"name": "vgg11", "output": "multiscale", "scales": 3}, 512 * (4 * 4 + 2 * 2 + 1)),
        (VIT, 16 * 17),
        ({**VIT, "grid": 2, "pooling": "mean"}, 16 * 4),
        ({**VIT, "output": "pooled", "projection": 8}, 16),
        ({**VIT, "output": "pooled", "pooling": "mean"}, 16),
    ],
    ids=str,
)
def test_forward_is_from_features_of_features(settings: dict[str, object], numbers: int) -> None:
    side = 32 if settings.get("kind") == "vit" else 36
    encoder = make(**{**settings, "image_size": side}, frozen=True).train()
    given = pixels(side)
    whole, features_BF = encoder(given), encoder.compute_features(given)
    assert features_BF.shape == (2, numbers)
    assert not features_BF.requires_grad
    halves = encoder.tokens_from_features(features_BF)
    assert torch.equal(halves.mask_BT, whole.mask_BT)
    torch.testing.assert_close((halves.x_BTD, halves.pooled_BD), (whole.x_BTD, whole.pooled_BD))
    low = encoder.tokens_from_features(features_BF.half())
    assert low.x_BTD.dtype == torch.float32
    torch.testing.assert_close(low.x_BTD, whole.x_BTD, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=f"features of {numbers + 1} numbers an image"):
        encoder.tokens_from_features(torch.zeros(1, numbers + 1))


@pytest.mark.parametrize("settings", [{"stages": 2}, VIT], ids=str)
def test_features_depend_on_frozen_weights_only(settings: dict[str, object]) -> None:
    encoder = make(**settings, projection=8, frozen=True)
    assert {name.partition(".")[0] for name in encoder.frozen_state_dict()} == {"backbone", "mean_C", "std_C"}
    assert set(encoder.frozen_state_dict()) >= {f"backbone.{name}" for name in encoder.backbone.state_dict()}


@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({"frozen_stages": 1}, ["conv1", "bn1", "layer1"]),
        ({"frozen": True}, ["conv1", "bn1", "layer1", "layer2"]),
        ({"frozen_stages": 2}, ["conv1", "bn1", "layer1", "layer2"]),
    ],
)
def test_batch_statistics_of_frozen_layers_stay(settings: dict[str, object], still: list[str]) -> None:
    encoder = make(stages=2, **settings).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.requires_grad_(False)
    encoder(pixels())
    changed = {key.split(".")[1] for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"layer2"} - set(still)


def test_frozen_layers_of_a_vit() -> None:
    encoder = make(**VIT, frozen_layers=1, dropout=0.1).train()
    encoder(pixels()).x_BTD.sum().backward()
    rest = {name for name, p in encoder.backbone.named_parameters() if p.grad is None}
    trained = {name for name, p in encoder.backbone.named_parameters() if p.grad is not None}
    assert {name for name in rest if not name.startswith("encoder.layers.encoder_layer_0.")} == {
        "class_token",
        "conv_proj.weight",
        "conv_proj.bias",
        "encoder.pos_embedding",
    }
    assert {".".join(name.split(".")[:3]) for name in trained} == {
        "encoder.layers.encoder_layer_1",
        "encoder.ln.weight",
        "encoder.ln.bias",
    }
    layers = encoder.backbone.encoder.layers
    assert (encoder.backbone.encoder.dropout.training, layers[0].training, layers[1].training) == (False, False, True)


def test_vit_outputs() -> None:
    def tokens(**settings: object) -> Any:
        return make(**{**VIT, **settings}).eval()(pixels())

    whole, averaged, pooled, mean = tokens(), tokens(grid=2), tokens(output="pooled"), tokens(pooling="mean")
    assert whole.x_BTD.shape == (2, 16, 16)
    cells = whole.x_BTD.view(2, 2, 2, 2, 2, 16).mean((2, 4)).flatten(1, 2)  # image, row, of 2, column, of 2, width
    torch.testing.assert_close(averaged.x_BTD, cells)
    assert torch.equal(pooled.x_BTD[:, 0], whole.pooled_BD)
    assert torch.equal(pooled.pooled_BD, whole.pooled_BD)
    torch.testing.assert_close(mean.pooled_BD, whole.x_BTD.mean(1))
    assert not torch.allclose(mean.pooled_BD, whole.pooled_BD, atol=1e-3)
    projected = make(**VIT, projection=8, activation="relu").eval()
    assert projected.width == 8
    class_token = projected.encode(pixels())[:, 0]
    torch.testing.assert_close(projected(pixels()).pooled_BD, projected.projection(class_token).clamp_min(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": [32, 36]}, r"does not divide image_size=\[32, 36\]; .*such as 32"),
        ({"patch_size": 12}, "patch_size=12 does not divide image_size=32; choose.*or an image size such as 36"),
        ({"patch_size": 64}, "patch_size=64 does not divide image_size=32; .* such as 64"),
        ({"width": 15}, "width=15 cannot be shared by heads=2; make it a multiple"),
        ({"frozen_layers": 3}, r"frozen_layers=3 is more than the 2 layers \(depth\)"),
        ({"name": "vit_b_17"}, "there is no ViT 'vit_b_17'; choose one of vit_b_16, vit_b_32"),
        ({"name": "resnet18"}, "there is no ViT 'resnet18'"),
        ({"output": "multiscale"}, "'grid' or 'pooled'"),
        ({"stages": 2}, "unknown key 'stages'"),
        ({"std": [0.2, 0.0, 0.2]}, r"std=\(0.2, 0.0, 0.2\) must be positive"),
        ({"std": [math.nan, 1.0, 1.0]}, r"std=\(nan, 1.0, 1.0\) must be positive and finite"),
        ({"std": [math.inf, 1.0, 1.0]}, r"std=\(inf, 1.0, 1.0\) must be positive and finite"),
        ({"mean": [math.nan, 1.0, 1.0]}, r"mean=\(nan, 1.0, 1.0\) must be of finite numbers"),
    ],
)
def test_settings_of_a_vit_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(vit.Config, {**VIT, **settings})


def test_images_that_the_encoder_cannot_take() -> None:
    model = parse_config(ModelConfig, {"vision": VIT, "language": {"positions": 32}})
    model.check_processor(ProcessorConfig(image_size=32))
    with pytest.raises(ConfigError, match=r"processor\.image_size=64, and model\.vision .*image_size=32; set both"):
        model.check_processor(ProcessorConfig(image_size=64))
    model = parse_config(ModelConfig, {"vision": {"name": "vgg11"}, "language": {"positions": 32}})
    with pytest.raises(ConfigError, match=r"image_size=31 is smaller than one grid cell.* 32 x 32 pixels"):
        model.check_processor(ProcessorConfig(image_size=31))
    for name, size, message in (
        ("inception_v3", 74, "image_size=74 is too small for inception_v3, which leaves nothing of it; make the image"),
        ("maxvit_t", 256, "image_size=256: maxvit_t takes images of 224 x 224 pixels; set image_size=224, or"),
    ):
        model = parse_config(ModelConfig, {"vision": {"name": name}, "language": {"positions": 32}})
        with pytest.raises(ConfigError, match=message):
            model.check_processor(ProcessorConfig(image_size=size))


@pytest.mark.parametrize(
    "vision",
    [
        {**VIT, "frozen_layers": 1},
        {"name": "swin_v2_t", "stages": 2, "frozen_stages": 1, "output": "multiscale"},
        {"name": "regnet_x_400mf", "stages": 1},
    ],
    ids=lambda v: v.get("name", "vit"),
)
def test_saved_and_loaded_is_the_same(
    vision: dict[str, Any], make_model: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model = make_model(vision=vision)
    model.save_pretrained(tmp_path)
    loaded = VLModel.from_pretrained(tmp_path)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(loaded(**batch).logits_NK, model(**batch).logits_NK)


@pytest.mark.parametrize("vision", [{"frozen": True}, {"stages": 2, "output": "multiscale"}, VIT], ids=str)
def test_compiled_in_one_graph(
    vision: dict[str, Any], make_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    model = make_model(vision=vision)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)


def test_large_and_odd_images() -> None:
    """A grid of any size, positions included, and Swin's windows where they do not divide it."""
    for name, side, cells in (("resnet18", 70, 9), ("swin_t", 70, 9), ("swin_v2_t", 33, 4)):
        encoder: Encoder = make(name=name, stages=2).eval()
        with torch.no_grad():
            tokens = encoder(pixels(side, 1))
        assert tokens.x_BTD.shape[1] == cells**2
        assert tokens.x_BTD.isfinite().all()


def test_scale_embeddings_are_drawn_apart() -> None:
    encoder = make(stages=2, output="multiscale", projection=64, position_scale=0.1)
    assert isinstance(encoder.scale_LD, nn.Parameter)
    assert 0.05 < encoder.scale_LD.std() < 0.2


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2", "cifar_resnet20"])
def test_the_stages_of_resnets_are_known_without_torchvision(name: str, stem: _torchvision.Stem) -> None:
    if stem == "small" and name not in _torchvision.RESNETS:
        with pytest.raises(ValueError, match="is made for ResNets of torchvision"):
            _torchvision.backbone_stages(name, stem)
        return
    strides, image = _torchvision.backbone_stages(name, stem)
    layout = _backbones.backbone_layout(name, stem)
    assert (strides, image) == (layout.strides, layout.image)
    assert _torchvision.accepts_image_size(name, stem, len(strides), (strides[-1], strides[-1]))
    assert _backbones.accepts_image_size(name, stem, len(strides), (strides[-1], strides[-1]))


def test_the_stages_of_other_backbones_are_torchvisions() -> None:
    assert set(_backbones.list_backbone_names()) >= _torchvision.RESNETS
    assert _torchvision.backbone_stages("maxvit_t", "imagenet").image == 224
    with pytest.raises(ValueError, match="there is no backbone 'resnet19'; close names: resnet18"):
        _torchvision.backbone_stages("resnet19", "imagenet")
