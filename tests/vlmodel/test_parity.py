"""Our parts against the libraries they come from, and the fusion against its formula written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from transformers import AutoModel

from vlmodel.config import parse, part_config
from vlmodel.fusion.transformer import Config as FusionConfig
from vlmodel.tokens import Tokens
from vlmodel.vision import _backbones
from vlmodel.vision._positions import sine_positions
from vlmodel.vision.cnn import Config as CNNConfig

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))


def normalised(pixels_BHWC: Tensor) -> Tensor:
    """torchvision's own ToTensor and Normalize."""
    x = pixels_BHWC.permute(0, 3, 1, 2).double() / 255
    return torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(x)


@pytest.mark.parametrize(
    ("name", "stages", "features"),
    [
        ("resnet18", 3, lambda m, x: through(m, x, "conv1 bn1 relu maxpool layer1 layer2 layer3")),
        ("resnet50", 1, lambda m, x: through(m, x, "conv1 bn1 relu maxpool layer1")),
        ("vgg11_bn", None, lambda m, x: m.features(x)),
        ("mobilenet_v3_small", None, lambda m, x: m.features(x)),
        ("efficientnet_b0", 2, lambda m, x: m.features[:3](x)),
        ("densenet121", 3, lambda m, x: m.features[:7](x)),
        ("convnext_tiny", 1, lambda m, x: m.features[:2](x)),
        ("shufflenet_v2_x0_5", None, lambda m, x: through(m, x, "conv1 maxpool stage2 stage3 stage4 conv5")),
    ],
)
def test_vision_tokens_are_torchvisions_feature_map(
    name: str, stages: int | None, features: Callable[[nn.Module, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(CNNConfig, {"name": name, "stages": stages, "position": "none"})
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).eval()
    theirs.classifier = theirs.fc = nn.Identity()
    theirs.to_empty(device="cpu")
    torch.manual_seed(0)
    for part in theirs.modules():
        for key, parameter in part.named_parameters(recurse=False):
            nn.init.normal_(parameter, std=0.05 if key == "weight" and parameter.ndim > 1 else 1.0)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    theirs.double()
    monkeypatch.setattr(_backbones, "create", lambda *_: copy.deepcopy(theirs))
    ours = config.build().eval().double()
    with torch.no_grad():
        expected = features(theirs, normalised(PIXELS))
        tokens = ours(PIXELS)
    grid = expected.shape[-1]
    assert ours.width == expected.shape[1]
    assert config.smallest_image() == 64 // grid
    tolerance = {"rtol": 0, "atol": 1e-6 * expected.abs().max().item()}
    torch.testing.assert_close(tokens.x_BTD, expected.flatten(2).transpose(1, 2), **tolerance)
    torch.testing.assert_close(tokens.pooled_BD, expected.mean((2, 3)), **tolerance)
    assert tokens.mask_BT.all()


def through(model: nn.Module, x: Tensor, names: str) -> Tensor:
    for name in names.split():
        x = model.get_submodule(name)(x)
    return x


def test_positions_tell_all_cells_apart() -> None:
    for height, width in ((4, 4), (7, 7), (14, 9), (1, 1)):
        positions = sine_positions(height, width, 64)
        assert positions.shape == (height * width, 64)
        distance = torch.cdist(positions, positions) + torch.eye(len(positions)) * 100
        assert distance.min() > 0.5
    # Row by row: cells of one row agree in the first half of the dimensions.
    grid = sine_positions(3, 5, 16).view(3, 5, 16)
    assert torch.equal(grid[1, 0, :8], grid[1, 4, :8])
    assert torch.equal(grid[0, 2, 8:], grid[2, 2, 8:])
    # The middle of a picture has one position, whatever the resolution.
    torch.testing.assert_close(sine_positions(3, 3, 16)[4], sine_positions(5, 5, 16)[12])


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "albert", "mpnet"])
def test_language_tokens_are_transformers_output(
    architecture: str, make_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    language = make_model(language={"architecture": architecture, "depth": 2}).language
    theirs = AutoModel.from_config(language.encoder.config).eval()
    # They have a pooler beside ours.
    assert all(
        key.startswith("pooler") for key in theirs.load_state_dict(language.encoder.state_dict(), strict=False)[0]
    )
    with torch.no_grad():
        expected = theirs(
            input_ids=batch["input_ids_NT"], attention_mask=batch["text_mask_NT"].long()
        ).last_hidden_state
        tokens = language(batch["input_ids_NT"], batch["text_mask_NT"])
    real = batch["text_mask_NT"]
    torch.testing.assert_close(tokens.x_BTD[real], expected[real])
    torch.testing.assert_close(tokens.pooled_BD, expected[:, 0])
    assert torch.equal(tokens.mask_BT, real)


def test_mean_pooling_is_over_the_real_tokens(make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    language = make_model(language={"pooling": "mean"}).language
    tokens = language(batch["input_ids_NT"], batch["text_mask_NT"])
    for n, mask in enumerate(batch["text_mask_NT"]):
        torch.testing.assert_close(tokens.pooled_BD[n], tokens.x_BTD[n, mask].mean(0))


def by_hand(fusion: Any, x: np.ndarray, mask: np.ndarray, heads: int) -> np.ndarray:
    """The layers of one sequence (T, D) in float64, by the formulas of the papers; returns (T, D)."""
    w = {name: p.detach().double().numpy() for name, p in fusion.named_parameters()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    for i in range(len(fusion.layers)):
        layer = f"layers.{i}"
        h = norm(f"{layer}.attention_norm", x)
        q, kv = linear(f"{layer}.attention.query", h), linear(f"{layer}.attention.key_value", h)
        k, v = kv[:, : q.shape[1]], kv[:, q.shape[1] :]
        d_k = q.shape[1] // heads
        attended = np.zeros_like(q)
        for head in range(heads):
            span = slice(head * d_k, (head + 1) * d_k)
            scores = q[:, span] @ k[:, span].T / math.sqrt(d_k)
            scores[:, ~mask] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, span] = weights / weights.sum(-1, keepdims=True) @ v[:, span]
        x = x + linear(f"{layer}.attention.out", attended)
        h = linear(f"{layer}.feed_forward.0", norm(f"{layer}.feed_forward_norm", x))
        gelu = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = x + linear(f"{layer}.feed_forward.3", gelu)
    return norm("norm", x)


@pytest.mark.parametrize("pooled_only", [False, True])
def test_transformer_fusion_is_its_formula(pooled_only: bool) -> None:
    torch.manual_seed(0)
    config = parse(FusionConfig, {"width": 32, "heads": 4, "rounds": 2})
    fusion: Any = config.build({"language": 12, "vision": 20}).eval()
    for parameter in fusion.parameters():  # biases and norms away from zero and one
        nn.init.normal_(parameter, std=0.3)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    text = Tokens(torch.randn(3, 5, 12), mask, torch.randn(3, 12))
    image = Tokens(torch.randn(3, 9, 20), torch.ones(3, 9, dtype=torch.bool), torch.randn(3, 20))
    streams = {"vision": image, "language": text}
    adapted = {name: fusion.adapt(name, tokens) for name, tokens in streams.items()}
    fused = fusion(adapted, pooled_only=pooled_only)
    for n in range(3):
        rows = []
        for name in ("language", "vision"):
            adapter = fusion.adapters[name]
            x = streams[name].x_BTD[n].double() @ adapter.weight.double().T + adapter.bias.double()
            rows.append(x.detach().numpy())
        joint_mask = np.concatenate([mask[n].numpy(), np.ones(9, dtype=bool)])
        expected = by_hand(fusion, np.concatenate(rows), joint_mask, heads=4)
        scale = np.abs(expected).max()
        assert np.abs(fused.tokens.pooled_BD[n].detach().numpy() - expected[0]).max() < 1e-6 * scale
        if not pooled_only:
            assert np.abs(fused.tokens.x_BTD[n].detach().numpy() - expected).max() < 1e-6 * scale


def test_order_of_streams_in_the_mapping_is_nothing() -> None:
    for kind in ("transformer", "concat"):
        torch.manual_seed(0)
        config: Any = parse(part_config("vlmodel.fusion", kind), {"kind": kind, "width": 16})
        fusion = config.build({"language": 16, "vision": 16, "audio": 16}).eval()
        streams = {
            name: Tokens(torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 16))
            for name in ("vision", "audio", "language")
        }
        adapted = {name: fusion.adapt(name, tokens) for name, tokens in streams.items()}
        backwards = dict(reversed(adapted.items()))
        assert torch.equal(fusion(adapted).tokens.pooled_BD, fusion(backwards).tokens.pooled_BD)
