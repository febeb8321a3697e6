"""Towers of timm and transformers: the same numbers as theirs, weights from everywhere, freezing, what is refused."""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from tests import real_weights
from vlmodel import bases, lora
from vlmodel.config import ConfigError, parse_config
from vlmodel.images.decoders.cpu import decode_image
from vlmodel.images.preprocessing import ImagePreprocessing
from vlmodel.images.resize import ImageResizing
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig
from vlmodel.vision import cnn as cnn_kind
from vlmodel.vision import hf as hf_kind
from vlmodel.vision import timm as timm_kind
from vlmodel.weights import WeightsError

VIT = {"name": "vit_tiny_patch16_224", "settings": {"embed_dim": 16, "depth": 2, "num_heads": 2}, "weights": ""}
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
WIDE = {**TRANSFORMER, "intermediate_size": 32}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "clip_vision_model": WIDE,
    "siglip_vision_model": WIDE,
    "dinov2": TRANSFORMER,
    "dinov2_with_registers": TRANSFORMER,
    "vit": WIDE,
    "deit": WIDE,
    "swin": SWIN,
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}


def make(kind: str = "timm", **settings: object) -> Any:
    config: Any = parse_config((timm_kind if kind == "timm" else hf_kind).Config, settings)
    torch.manual_seed(0)
    return config.build()


def pixels(height: int = 32, width: int | None = None, count: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, height, width or height, 3), dtype=torch.uint8, generator=random)


@pytest.mark.parametrize(
    ("settings", "prefix", "channels_last"),
    [
        ({**VIT, "image_size": [32, 64]}, 1, False),
        ({"name": "resnet18", "weights": "", "image_size": 64}, None, False),
        (
            {
                "name": "swin_tiny_patch4_window7_224",
                "settings": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
                "weights": "",
                "image_size": 56,
            },
            None,
            True,
        ),
        ({"name": "tf_efficientnet_lite0", "weights": "", "image_size": [64, 96]}, None, False),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value),
)
def test_timm_token_for_token(settings: dict[str, Any], prefix: int | None, channels_last: bool) -> None:
    encoder = make(**settings, position="none").eval()
    height, width = encoder.config.image_height_and_width()
    x = pixels(height, width)
    with torch.no_grad():
        given = encoder.backbone.forward_features(encoder.normalise_pixels(x))
        pooled = encoder.backbone.forward_head(given, pre_logits=True)
        tokens = encoder(x)
    if prefix is not None:
        expected = given[:, prefix:]
    else:
        expected = given.flatten(1, 2) if channels_last else given.flatten(2).transpose(1, 2)
    assert torch.equal(tokens.x_BTD, expected)
    assert torch.equal(tokens.pooled_BD, pooled)
    assert bool(tokens.mask_BT.all())


def test_timm_stages_are_its_intermediates() -> None:
    encoder = make(name="resnet18", weights="", image_size=64, stages=4, output="multiscale", projection=8).eval()
    whole = timm.create_model("resnet18").eval()
    own = encoder.backbone.state_dict()
    whole.load_state_dict(own, strict=False)
    with torch.no_grad():
        fine, coarse = whole.forward_intermediates(
            encoder.normalise_pixels(pixels(64)), indices=[2, 3], intermediates_only=True
        )
        grids = encoder.feature_grids(pixels(64))
        tokens = encoder(pixels(64))
    assert torch.equal(grids[0], fine.permute(0, 2, 3, 1))
    assert torch.equal(grids[1], coarse.permute(0, 2, 3, 1))
    assert tokens.x_BTD.shape == (2, 8 * 8 + 4 * 4, 8)
    assert not [name for name in own if name.startswith(("layer4", "fc"))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_token_for_token(architecture: str) -> None:
    settings = ARCHITECTURES[architecture]
    encoder = make("hf", architecture=architecture, settings=settings, image_size=32, position="none").eval()
    theirs: Any = AutoModel.from_config(AutoConfig.for_model(architecture, **settings)).eval()
    theirs.load_state_dict(encoder.backbone.state_dict())
    x = pixels()
    with torch.no_grad():
        given = theirs(pixel_values=encoder.normalise_pixels(x))
        tokens = encoder(x)
    hidden = given.last_hidden_state
    expected = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, -tokens.x_BTD.shape[1] :]
    assert torch.equal(tokens.x_BTD, expected)
    assert torch.equal(tokens.pooled_BD, given.pooler_output.flatten(1))


@pytest.mark.parametrize("architecture", ["clip_vision_model", "siglip_vision_model", "vit"])
def test_the_states_of_another_layer(architecture: str) -> None:
    encoder = make("hf", architecture=architecture, settings=WIDE, image_size=32, layer=-2, pooling="mean").eval()
    x = pixels()
    with torch.no_grad():
        given = encoder.backbone(pixel_values=encoder.normalise_pixels(x), output_hidden_states=True)
        tokens = encoder(x)
    assert torch.equal(tokens.x_BTD, given.hidden_states[-2][:, -16:])
    assert not torch.equal(tokens.x_BTD, given.last_hidden_state[:, -16:])
    # The last layer is of no use, and so it is not trained.
    encoder.train()(x).x_BTD.sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert not any(".layers.1." in name or ".layer.1." in name for name in trained)


@pytest.mark.parametrize(
    ("architecture", "cells"), [("clip_vision_model", (3, 6)), ("dinov2", (3, 6)), ("convnext", (3, 6))]
)
def test_images_of_other_sizes(architecture: str, cells: tuple[int, int]) -> None:
    """Positions are resampled; the grid and the picture of the attention have the image's shape."""
    encoder = make("hf", architecture=architecture, settings=ARCHITECTURES[architecture], image_size=[24, 48])
    tokens = encoder.eval()(pixels(24, 48))
    assert tokens.x_BTD.shape[1] == cells[0] * cells[1]
    assert encoder.weights_to_grid(torch.arange(18.0).view(1, 18)).shape == (1, *cells)


EVERY = [
    VIT | {"image_size": [32, 48]},
    VIT | {"image_size": 32, "pooling": "mean", "projection": 8, "grid": 2},
    {"name": "resnet18", "weights": "", "image_size": 64, "output": "multiscale", "stages": 4, "scales": 3},
    {"name": "resnet18", "weights": "", "image_size": 64, "output": "pooled", "projection": 8},
    {"name": "mobilenetv3_small_050", "weights": "", "image_size": 64, "projection": 8, "activation": "gelu"},
    {"name": "resnet18", "weights": "", "image_size": 64, "output": "pooled", "pooling": "mean"},
    *({"architecture": name, "settings": settings, "image_size": 32} for name, settings in ARCHITECTURES.items()),
]


def name_of(settings: dict[str, Any]) -> str:
    return "-".join(str(value) for value in settings.values() if not isinstance(value, dict))


def of(settings: dict[str, Any], **more: object) -> Any:
    return make("hf" if "architecture" in settings else "timm", **settings, **more)


@pytest.mark.parametrize("settings", EVERY, ids=name_of)
def test_forward_is_from_features_of_features(settings: dict[str, Any]) -> None:
    encoder = of(settings, frozen=True).train()
    given = pixels(*encoder.config.image_height_and_width())
    whole, features_BF = encoder(given), encoder.compute_features(given)
    assert not features_BF.requires_grad
    halves = encoder.tokens_from_features(features_BF)
    torch.testing.assert_close((halves.x_BTD, halves.pooled_BD), (whole.x_BTD, whole.pooled_BD))
    with pytest.raises(ValueError, match=rf"features of {features_BF.shape[1] + 1} numbers an image"):
        encoder.tokens_from_features(torch.zeros(1, features_BF.shape[1] + 1))


@pytest.mark.parametrize("settings", EVERY, ids=name_of)
@pytest.mark.parametrize("read", ["x_BTD", "pooled_BD"])
def test_every_trained_parameter_has_a_gradient(settings: dict[str, Any], read: str) -> None:
    """From the tokens alone and from the pooled vector alone: data-parallel training waits for all of them."""
    encoder = of(settings).train()
    out = getattr(encoder(pixels(*encoder.config.image_height_and_width())), read)
    (out * torch.randn_like(out)).sum().backward()
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert [name for name, p in trained.items() if p.grad is None] == []


@pytest.mark.parametrize(
    ("settings", "still", "moving"),
    [
        (VIT, ["pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"], ["blocks.1.norm1.weight"]),
        ({"name": "resnet18", "weights": ""}, ["conv1.weight", "layer1.0.bn1.weight"], ["layer2.0.bn1.weight"]),
        (
            {"architecture": "clip_vision_model", "settings": WIDE},
            ["embeddings.class_embedding", "encoder.layers.0.layer_norm1.weight"],
            ["encoder.layers.1.layer_norm1.weight", "post_layernorm.weight"],
        ),
        (
            {"architecture": "resnet", "settings": ARCHITECTURES["resnet"]},
            ["embedder.embedder.convolution.weight"],
            ["encoder.stages.1.layers.0.layer.0.convolution.weight"],
        ),
    ],
    ids=lambda value: name_of(value) if isinstance(value, dict) else "",
)
def test_partly_frozen(settings: dict[str, Any], still: list[str], moving: list[str]) -> None:
    encoder = of(settings, frozen_stages=1, image_size=64).train()
    requires = {name: p.requires_grad for name, p in encoder.backbone.named_parameters()}
    assert [name for name in still if requires[name]] == []
    assert [name for name in moving if not requires[name]] == []
    norms = {n: m for n, m in encoder.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    frozen = {name for name, norm in norms.items() if not norm.training}
    assert frozen == {name for name in norms if not requires[f"{name}.weight"]}


BEIT: dict[str, Any] = {**VIT, "name": "beit_base_patch16_224"}
"""A tower that reads the weights of its queries, keys and values itself, without calling their layer."""

ADAPTED: list[dict[str, Any]] = [
    {**VIT, "kind": "timm"},
    {**BEIT, "kind": "timm"},
    {"kind": "hf", "architecture": "clip_vision_model", "settings": WIDE},
    {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "feed_forward": 32},
    {"kind": "cnn", "name": "resnet18", "lora": {"rank": 2, "targets": ["conv2"]}},
    {"kind": "hf", "architecture": "vit", "settings": WIDE, "pooling": "mean"},
]


@pytest.mark.parametrize("settings", ADAPTED, ids=lambda s: s.get("architecture", s.get("name", s["kind"])))
def test_adapters_in_a_tower(settings: dict[str, Any], make_model: Callable[..., Any], batch: Any) -> None:
    """They first change nothing, are all of the backbone that is trained, and all that rests is stored as a base."""
    bare = make_model(vision={name: value for name, value in settings.items() if name != "lora"}).eval()
    model = make_model(vision={"lora": {"rank": 2}, **settings})
    own = {plain: name for name, plain in lora.names_without_adapters(model).items()}
    state = model.state_dict()
    assert own.keys() == bare.state_dict().keys()
    for name, tensor in bare.state_dict().items():
        state[own[name]].copy_(tensor)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).loss, bare(**batch).loss)
    model.train()(**batch).loss.backward()
    trained = {name: p for name, p in model.vision.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name and p.grad is not None for name, p in trained.items())
    assert bases.frozen_tensors_by_part(model)["vision"].keys() == {
        f"backbone.{name}" for name in model.vision.backbone.state_dict() if ".lora_" not in name
    }
    assert not any(m.training for n, m in model.vision.backbone.named_modules() if "lora_" not in n)


def test_a_layer_that_is_never_called_gets_no_adapter() -> None:
    adapted = {name.partition(".lora_")[0] for name, _ in make(**BEIT, lora={}).named_parameters() if "lora_" in name}
    assert {name.rpartition(".")[2] for name in adapted} == {"proj", "fc1", "fc2"}
    with pytest.raises(ConfigError, match=r"lora.targets=\['qkv'\].*without calling it.*name other layers"):
        make(**BEIT, lora={"targets": ["qkv"]})


def test_a_tower_with_adapters_has_the_weights_of_the_file(source: Any, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", lora={"targets": ["conv2"]})
    x = pixels(64)
    with torch.no_grad():
        assert torch.equal(encoder(x).x_BTD, load(tmp_path / "w.pth")(x).x_BTD)
    assert list(encoder.pretrained_parameters()) == []
    with pytest.raises(ConfigError, match=r"adapters in a backbone that is frozen.*leave frozen_stages out"):
        make(**VIT, lora={}, frozen_stages=1)


def test_pretrained_layers_go_from_the_input_to_the_output(source: Any, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", frozen_stages=1)
    names = {id(p): name for name, p in encoder.backbone.named_parameters()}
    layers = [[names[id(p)] for p in layer] for layer in encoder.pretrained_layers()]
    assert layers[:2] == [[], []]
    assert [layer[0].partition(".")[0] for layer in layers if layer] == ["layer2", "layer3", "layer4"]
    trained = [id(p) for p in encoder.pretrained_parameters()]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for p in encoder.backbone.parameters() if p.requires_grad}


# Weights


@pytest.fixture(scope="module")
def source() -> Any:
    torch.manual_seed(3)
    return timm.create_model("resnet18", num_classes=7).eval()


def load(weights: object, name: str = "resnet18", **settings: object) -> Any:
    encoder = make(name=name, weights=str(weights), **settings)
    encoder.load_pretrained()
    return encoder.eval()


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By other names, without the counters."""
    return {f"net.{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(state.items()) if "num_batches" not in k}


def test_weights_by_name(source: Any, tmp_path: Path) -> None:
    """Another number of classes does not matter, as the classifier is not used; nor does its absence."""
    for left_out in ("", "fc."):
        state = {k: v for k, v in source.state_dict().items() if not left_out or not k.startswith(left_out)}
        save_file(state, tmp_path / "w.safetensors")
        encoder = load(tmp_path / "w.safetensors")
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in encoder.backbone.state_dict().items())
        assert encoder.report.missing == ()


def test_weights_by_order_are_reported(source: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": renamed(timm.create_model("resnet18").state_dict())}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"missing: .*match='order'"):
        load(tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", match="order")
    assert encoder.report.pairs[0] == ("net.0.weight", "conv1.weight")
    assert len(encoder.report.pairs) == len(encoder.report.loaded) + 2  # and the classifier
    assert "matched by order: net.0.weight as conv1.weight" in str(encoder.report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"net.0.weight": torch.zeros(64, 3, 3, 3)}), r"tensor 0 is net\.0\.weight \(64, 3, 3, 3\)"),
        (lambda s: s.pop("net.0.weight"), r"tensor 0 is net\.1\.weight"),
        (lambda s: s.update({"more": torch.zeros(1)}), r"have 103 tensors and the backbone has 102"),
    ],
)
def test_another_order_is_refused(change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path) -> None:
    state = renamed(timm.create_model("resnet18").state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"cannot be matched by order: .*{message}"):
        load(tmp_path / "w.pth", match="order")


def test_swapped_names_of_one_shape_are_refused(tmp_path: Path) -> None:
    """A norm's weight and bias have one shape."""
    state = list(renamed(timm.create_model("resnet18").state_dict()).items())
    state[1], state[2] = state[2], state[1]
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"tensor 1 is net\.2\.bias \(64,\) there and bn1\.weight \(64,\) here"):
        load(tmp_path / "w.pth", match="order")


def test_positions_are_resampled_as_timm_does(tmp_path: Path) -> None:
    small = timm.create_model("vit_tiny_patch16_224", **VIT["settings"], img_size=64).eval()  # type: ignore[arg-type]
    torch.save(small.state_dict(), tmp_path / "w.pth")
    encoder = make(**{**VIT, "weights": str(tmp_path / "w.pth"), "image_size": 96})
    encoder.load_pretrained()
    assert encoder.backbone.pos_embed.shape == (1, 37, 16)
    assert torch.equal(encoder.backbone.blocks[1].attn.qkv.weight, small.blocks[1].attn.qkv.weight)
    larger = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, img_size=96, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")},
        **VIT["settings"],  # type: ignore[arg-type]
    )  # fmt: skip
    assert torch.equal(encoder.backbone.pos_embed, larger.pos_embed)


def test_a_folder_in_the_format_of_timm(source: Any, tmp_path: Path) -> None:
    cfg = {**source.pretrained_cfg, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 7}
    cfg |= {"input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": cfg})
    )
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    config = parse_config(timm_kind.Config, {"name": "resnet18", "weights": str(tmp_path)}).resolve_settings((64, 64))
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    encoder = config.build()
    encoder.load_pretrained()
    assert torch.equal(encoder.backbone.conv1.weight, source.conv1.weight)
    tree = parse_config(ModelConfig, {"vision": {"kind": "timm", "name": "resnet18", "weights": str(tmp_path)}})
    assert tree.fill_in_preprocessing(ProcessorConfig()).image_resizing == ImageResizing(
        (64, 64), "crop", 0.9, "bicubic"
    )
    with pytest.raises(ConfigError, match=r"processor\.interpolation='bilinear', .* with 'bicubic'; leave it out"):
        tree.fill_in_preprocessing(ProcessorConfig(interpolation="bilinear"))
    with pytest.raises(WeightsError, match=r"are of resnet18, and vision\.name='resnet34'"):
        load(tmp_path, name="resnet34")
    with pytest.raises(ConfigError, match=r"model\.vision\.mean=\(0\.5, .*, and the weights .* leave mean out"):
        parse_config(
            timm_kind.Config, {"name": "resnet18", "weights": str(tmp_path), "mean": [0.5, 0.5, 0.5]}
        ).resolve_settings((64, 64))


def test_without_a_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fails)
    with pytest.raises(WeightsError, match=r"could not be fetched \(no network\); fetch them .* --local-dir FOLDER"):
        load("pretrained", name="resnet18.a1_in1k")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_tower_of_a_dual_model(family: str, tmp_path: Path) -> None:
    vision = {**WIDE, "projection_dim": 8}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    whole: Any = (
        CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
        if family == "clip"
        else SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    )
    whole.eval().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.2, 0.1],
                "resample": 3,
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            }
        )
    )
    tree = parse_config(ModelConfig, {"vision": {"kind": "hf", "name": str(tmp_path)}})
    assert tree.fill_in_preprocessing(ProcessorConfig()).image_resizing == ImageResizing(
        (32, 32), "crop", 0.8, "bicubic"
    )
    config = parse_config(hf_kind.Config, {"name": str(tmp_path), "position": "none"}).resolve_settings((32, 32))
    assert (config.mean, config.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    encoder = config.build()
    encoder.load_pretrained()
    x = pixels()
    with torch.no_grad():
        given = whole.vision_model(pixel_values=encoder.normalise_pixels(x))
        tokens = encoder.eval()(x)
    assert torch.equal(tokens.pooled_BD, given.pooler_output)
    assert torch.equal(tokens.x_BTD, given.last_hidden_state[:, -16:])


def test_weights_without_a_pooler_name_the_remedy(tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model("vit", **WIDE), add_pooling_layer=False).save_pretrained(tmp_path)
    config = parse_config(hf_kind.Config, {"name": str(tmp_path)}).resolve_settings((32, 32))
    with pytest.raises(WeightsError, match=r"no weights of the tower's pooler.*vision\.pooling='mean'"):
        config.build().load_pretrained()
    parse_config(hf_kind.Config, {"name": str(tmp_path), "pooling": "mean"}).resolve_settings(
        (32, 32)
    ).build().load_pretrained()


def test_a_saved_model_needs_no_other_files(make_model: Callable[..., Any], tmp_path: Path, batch: Any) -> None:
    """Neither the folder that its weights are from, nor what timm computes but does not store."""
    AutoModel.from_config(AutoConfig.for_model("dinov2", **TRANSFORMER)).save_pretrained(tmp_path / "from")
    towers: list[dict[str, Any]] = [
        {"kind": "hf", "name": str(tmp_path / "from"), "architecture": "", "settings": {}, "frozen": True},
        {
            "kind": "timm",
            "name": "swinv2_tiny_window8_256",
            "settings": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        },
    ]
    models = [make_model(vision=vision) for vision in towers]
    (tmp_path / "from").rename(tmp_path / "elsewhere")
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
        loaded = VLModel.from_pretrained(tmp_path / str(number))
        with torch.no_grad():
            assert torch.equal(loaded(**batch).loss, model(**batch).loss)


# Settings that do not fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnt18"}, r"timm has no architecture 'resnt18'; close names: .*resnet18"),
        ({"name": "resnet18.none"}, r"no weights 'none' of resnet18; there are .*a1_in1k"),
        ({"name": "resnet18", "stages": 9}, r"stages=9, and resnet18 has 5"),
        ({"name": "resnet18", "output": "multiscale", "scales": 9}, r"scales=9 is more than the 5 stages"),
        ({"name": "resnet18", "frozen_stages": 9}, r"frozen_stages=9, and resnet18 has"),
        ({"name": "resnet18", "settings": {"embed": 1}}, r"timm cannot make 'resnet18' with .*embed"),
        ({"name": "pit_ti_224"}, None),
        ({"name": "vit_tiny_patch16_224", "mean": [0.5, 0.5, float("nan")]}, "must be of finite numbers"),
    ],
)
def test_settings_of_timm_that_do_not_fit(settings: dict[str, object], message: str | None) -> None:
    if message is None:  # only a vector
        assert make(**settings, weights="", output="pooled", image_size=224).width == 256
        return
    with pytest.raises(ConfigError, match=message):
        parse_config(timm_kind.Config, {"weights": "", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set either name, a hub name or folder, or architecture.* not neither"),
        ({"name": "a", "architecture": "vit"}, "not both"),
        ({"architecture": "dinov22"}, "unknown to transformers; close names: .*dinov2"),
        ({"architecture": "bert"}, "is no vision tower"),
        ({"architecture": "vit_mae"}, "hides most patches"),
        ({"architecture": "vit", "settings": {**WIDE, "patch_size": 64}}, "cannot take images of 32 x 32"),
        ({"architecture": "vit", "settings": WIDE, "frozen_stages": 7}, "frozen_stages=7, and the tower has 3"),
        ({"architecture": "vit", "settings": WIDE, "layer": -4}, "layer=-4, and the tower has 2 layers"),
        ({"architecture": "resnet", "layer": -1}, "layer=-1, and the tower has no layers with hidden states"),
    ],
)
def test_settings_of_transformers_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(hf_kind.Config, settings)


def test_names_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"vision\.name=.* cannot be opened"):
        parse_config(hf_kind.Config, {"name": str(tmp_path)}).resolve_settings((32, 32))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="its vision tower 'bert' is none"):
        parse_config(hf_kind.Config, {"name": str(tmp_path)}).resolve_settings((32, 32))


# What the weights were trained with


def test_without_files_the_name_says_it() -> None:
    lite0 = parse_config(timm_kind.Config, {"name": "tf_efficientnet_lite0"})
    known = lite0.preprocessing_if_known()
    assert known is not None
    assert (known.size, known.interpolation, known.resize, known.crop) == ((224, 224), "bicubic", "crop", 0.875)
    assert parse_config(hf_kind.Config, {"name": "somewhere/model"}).preprocessing_if_known() is None
    scratch = parse_config(timm_kind.Config, {"name": "tf_efficientnet_lite0", "weights": "", "image_size": 64})
    assert scratch.preprocessing() == ImagePreprocessing((64, 64))
    imagenet = parse_config(cnn_kind.Config, {"weights": "imagenet"}).preprocessing()
    assert (imagenet.size, imagenet.resize, imagenet.crop) == ((224, 224), "crop", 224 / 256)


# Real weights


def test_real_weights_know_dogs(shared_data: Callable[[str], Path]) -> None:
    """EfficientNet-Lite0's weights, matched by order, on photographs all of whose captions speak of a dog."""
    folder, file = shared_data("flickr8k-subset"), real_weights.efficientnet_lite0()
    captions = defaultdict(list)
    for line in (folder / "Flickr8k_text/Flickr8k.token.txt").read_text().splitlines():
        name, _, text = line.partition("\t")
        captions[name.partition("#")[0]].append(text.lower())
    dogs = sorted(name for name, texts in captions.items() if all("dog" in text for text in texts))[:16]
    people = sorted(name for name, texts in captions.items() if not any("dog" in text for text in texts))[:16]
    with tarfile.open(folder / "flickr8k_images.tar") as tar:
        members = {member.name.rpartition("/")[2]: member for member in tar.getmembers()}
        images = [tar.extractfile(members[name]) for name in (*dogs, *people)]
        files = [image.read() for image in images if image is not None]
    x = torch.stack([torch.from_numpy(decode_image(data, ImageResizing((224, 224)), 10**8)) for data in files])
    config: Any = parse_config(
        timm_kind.Config, {"name": "tf_efficientnet_lite0", "weights": str(file), "match": "order"}
    )
    encoder = config.resolve_settings((224, 224)).build().eval()
    assert encoder.mean_C.tolist() == [0.5, 0.5, 0.5]
    encoder.load_pretrained()
    state = torch.load(file, weights_only=True)
    with torch.no_grad():
        classes = (encoder(x).pooled_BD @ state["_fc.weight"].T + state["_fc.bias"]).argmax(1)
    is_dog = (classes >= 151) & (classes <= 275)  # ImageNet's dogs, wolves and foxes
    assert is_dog[: len(dogs)].float().mean() > 0.7
    assert is_dog[len(dogs) :].float().mean() < 0.1
