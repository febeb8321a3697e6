"""Our parts against the libraries they come from, and the fusion against its formula written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from vlmodel import parts
from vlmodel.config import ConfigError, find_part_config_class, list_part_kinds, parse_config
from vlmodel.fusion.interactive import Config as InteractiveFusion
from vlmodel.fusion.transformer import Config as FusionConfig
from vlmodel.language._architectures import ARCHITECTURES
from vlmodel.processor import VLProcessor
from vlmodel.tokens import DecoderInput, FusedStream, Tokens
from vlmodel.vision import _backbones
from vlmodel.vision._positions import sine_positions
from vlmodel.vision.cnn import Config as CNNConfig
from vlmodel.vision.vit import Config as ViTConfig

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
        ("regnet_x_400mf", 3, lambda m, x: m.trunk_output[:3](m.stem(x))),
        ("swin_t", None, lambda m, x: through(m, x, "features norm permute")),
        ("swin_t", 2, lambda m, x: m.permute(m.features[:4](x))),
        ("swin_v2_t", 3, lambda m, x: m.permute(m.features[:6](x))),
    ],
)
def test_vision_tokens_are_torchvisions_feature_map(
    name: str, stages: int | None, features: Callable[[nn.Module, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(CNNConfig, {"name": name, "stages": stages, "position": "none"})
    torch.manual_seed(0)
    # The classifier of a VGG would take seconds to be drawn.
    with torch.device("meta" if name.startswith("vgg") else "cpu"):
        reference = torchvision.models.get_model(name, weights=None).eval()
    reference.classifier = reference.fc = nn.Identity()
    if name.startswith("vgg"):
        reference.to_empty(device="cpu")
    for part in reference.modules():
        for key, parameter in part.named_parameters(recurse=False):
            nn.init.normal_(parameter, std=0.05 if key == "weight" and parameter.ndim > 1 else 1.0)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    reference.double()
    _backbones.backbone_layout(name, "imagenet")  # which is computed without weights, and kept
    with monkeypatch.context() as building:
        building.setattr(_backbones, "create_backbone", lambda *_: copy.deepcopy(reference))
        actual = config.build().eval().double()
    with torch.no_grad():
        expected = features(reference, normalised(PIXELS))
        tokens = actual(PIXELS)
    grid = expected.shape[-1]
    assert actual.width == expected.shape[1]
    cell = 64 // grid
    config.check_image_size((cell, cell))
    with pytest.raises(
        ConfigError, match=rf"image_size=\[{cell - 1}, {cell}\] is smaller than one grid cell.* {cell} x {cell}"
    ):
        config.check_image_size((cell - 1, cell))
    tolerance = {"rtol": 0, "atol": 1e-6 * expected.abs().max().item()}
    torch.testing.assert_close(tokens.x_BTD, expected.flatten(2).transpose(1, 2), **tolerance)
    torch.testing.assert_close(tokens.pooled_BD, expected.mean((2, 3)), **tolerance)
    assert tokens.mask_BT.all()


def through(model: nn.Module, x: Tensor, names: str) -> Tensor:
    for name in names.split():
        x = model.get_submodule(name)(x)
    return x


@pytest.mark.parametrize("training", [False, True])
def test_vit_tokens_are_torchvisions_encoder_output(training: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    shape = {"patch_size": 16, "width": 24, "depth": 2, "heads": 2, "feed_forward": 40}
    actual: Any = parse_config(ViTConfig, {"image_size": 64, "weights": str(tmp_path / "w.pth"), **shape}).build()
    actual.load_pretrained()
    found: dict[str, Tensor] = {}
    reference.encoder.register_forward_hook(lambda _, __, output: found.update(encoded=output))
    reference.double().train(training)(normalised(PIXELS))
    tokens = actual.double().train(training)(PIXELS)
    tolerance = {"rtol": 0, "atol": 1e-6 * found["encoded"].abs().max().item()}
    torch.testing.assert_close(tokens.pooled_BD, found["encoded"][:, 0], **tolerance)
    torch.testing.assert_close(tokens.x_BTD, found["encoded"][:, 1:], **tolerance)


@pytest.mark.parametrize("name", ["vit_b_32", "vit_h_14"])
def test_vit_of_a_name_has_torchvisions_weights(name: str) -> None:
    with torch.device("meta"):
        reference = torchvision.models.get_model(name, weights=None)
        actual = parse_config(ViTConfig, {"name": name}).build()
    shapes = [
        {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith("heads.")}
        for model in (reference, actual.get_submodule("backbone"))
    ]
    assert shapes[0] == shapes[1]


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_language_tokens_are_transformers_output(
    architecture: str, make_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    """To whom the texts are given as the architecture's own tokenizer would give them."""
    language = make_model(language={"architecture": architecture, "depth": 2}).language
    for parameter in language.parameters():
        nn.init.normal_(parameter, std=0.3)
    reference = AutoModel.from_config(language.encoder.config).eval()
    # They have a pooler beside ours.
    assert all(
        key.startswith("pooler") for key in reference.load_state_dict(language.encoder.state_dict(), strict=False)[0]
    )
    ids, mask = batch["input_ids_NT"], batch["text_mask_NT"]
    more = {}
    if architecture == "xlnet":  # padded on the left, with the classification token at the end, in a segment of its own
        lengths = mask.sum(1).tolist()
        ids, mask = (torch.stack([t.roll(-n % len(t)) for t, n in zip(x, lengths, strict=True)]) for x in (ids, mask))
        more["token_type_ids"] = torch.zeros_like(ids)
        more["token_type_ids"][:, -1] = 2
        assert not mask[-1, 0]
        assert mask[:, -1].all()
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask.long(), **more).last_hidden_state
        tokens = language(ids, mask)
    for n, real in enumerate(mask):
        x_TD = expected[n, real]
        if architecture == "xlnet":
            x_TD = x_TD.roll(1, 0)
        atol = 1e-6 * x_TD.abs().max().item()
        torch.testing.assert_close(tokens.x_BTD[n, : len(x_TD)], x_TD, rtol=0, atol=atol)
        torch.testing.assert_close(tokens.pooled_BD[n], x_TD[0], rtol=0, atol=atol)
        assert tokens.mask_BT[n].tolist() == [t < len(x_TD) for t in range(len(real))]


def test_mean_pooling_is_over_the_real_tokens(make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    language = make_model(language={"pooling": "mean"}).language
    tokens = language(batch["input_ids_NT"], batch["text_mask_NT"])
    for n, mask in enumerate(batch["text_mask_NT"]):
        torch.testing.assert_close(tokens.pooled_BD[n], tokens.x_BTD[n, mask].mean(0))


class ByHand:
    """The formulas of the papers in float64, with the weights of a module of ours, for one row: x is (T, D)."""

    def __init__(self, module: nn.Module, heads: int) -> None:
        self.heads = heads
        self.w = {name: p.detach().double().numpy() for name, p in module.named_parameters()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(
        self, name: str, x: np.ndarray, context: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """softmax(QK^T / sqrt(d_k)) V and the softmax, averaged over the heads."""
        q, kv = self.linear(f"{name}.query", x), self.linear(f"{name}.key_value", context)
        k, v = kv[:, : q.shape[1]], kv[:, q.shape[1] :]
        d_k = q.shape[1] // self.heads
        attended, average = np.zeros_like(q), np.zeros((len(q), len(k)))
        for head in range(self.heads):
            span = slice(head * d_k, (head + 1) * d_k)
            scores = q[:, span] @ k[:, span].T / math.sqrt(d_k)
            scores[:, ~mask] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            attended[:, span] = weights @ v[:, span]
            average += weights / self.heads
        return self.linear(f"{name}.out", attended), average

    def feed_forward(self, name: str, x: np.ndarray) -> np.ndarray:
        h = self.linear(f"{name}.0", x)
        return self.linear(f"{name}.3", h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2))))

    def sequence(self, layers: int, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Layers of self-attention and feed-forward, and the last norm."""
        for layer in (f"layers.{i}" for i in range(layers)):
            h = self.norm(f"{layer}.attention_norm", x)
            x = x + self.attention(f"{layer}.attention", h, h, mask)[0]
            x = x + self.feed_forward(f"{layer}.feed_forward", self.norm(f"{layer}.feed_forward_norm", x))
        return self.norm("norm", x)

    def exchange(
        self, layer: str, x: dict[str, np.ndarray], mask: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Each stream asks all others, and has its feed-forward network; and the attention of each stream."""
        result, weights = {}, {}
        normed = {name: self.norm(f"{layer}.attention_norms.{name}", x[name]) for name in x}
        for name in x:
            context = np.concatenate([normed[other] for other in x if other != name])
            allowed = np.concatenate([mask[other] for other in x if other != name])
            attended, weights[name] = self.attention(f"{layer}.attentions.{name}", normed[name], context, allowed)
            h = x[name] + attended
            normed_h = self.norm(f"{layer}.feed_forward_norms.{name}", h)
            result[name] = h + self.feed_forward(f"{layer}.feed_forwards.{name}", normed_h)
        return result, weights


def away_from_start(module: Any) -> Any:
    """Biases and norms away from zero and one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def three_streams() -> dict[str, Tokens]:
    """Two rows of streams of widths 7, 12 and 20, with padding; names in order."""
    torch.manual_seed(1)
    streams = {}
    for name, tokens, width in (("audio", 4, 7), ("language", 5, 12), ("vision", 6, 20)):
        mask = torch.ones(2, tokens, dtype=torch.bool)
        if name != "vision":
            mask[1, 3:] = False
        streams[name] = Tokens(torch.randn(2, tokens, width), mask, torch.randn(2, width))
    return streams


def rows_by_hand(hand: ByHand, streams: dict[str, Tokens], n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The real and padded tokens of row n after their adapters, and their masks."""
    x = {name: hand.linear(f"adapters.{name}", tokens.x_BTD[n].double().numpy()) for name, tokens in streams.items()}
    return x, {name: tokens.mask_BT[n].numpy() for name, tokens in streams.items()}


class Keep(parts.Fusion):
    """A fusion that keeps what it is given."""

    width = 1

    def adapt_stream(self, name: str, tokens: Tokens) -> Tokens:
        return tokens

    def forward(self, streams: Mapping[str, Tokens], **_: bool) -> FusedStream:
        self.streams = streams
        return FusedStream(streams["vision"], {})


def test_interactive_fusion_is_its_formula() -> None:
    torch.manual_seed(0)
    config = parse_config(InteractiveFusion, {"width": 16, "heads": 2, "rounds": 2, "expansion": 2})
    fusion: Any = away_from_start(config.build({"language": 12, "vision": 20, "audio": 7}))
    streams = three_streams()
    adapted = {name: fusion.adapt_stream(name, tokens) for name, tokens in streams.items()}
    fused = fusion(adapted, output_attention=True)
    short = fusion(adapted, pooled_only=True)
    hand = ByHand(fusion, heads=2)
    for n in range(2):
        x, mask = rows_by_hand(hand, streams, n)
        for i in range(2):
            x, weights = hand.exchange(f"layers.{i}", x, mask)
            spans = {"audio": (0, 4), "language": (4, 9), "vision": (9, 15)}
            assert fused.spans == spans
            for name, (start, stop) in spans.items():
                reference = fused.attention_LBQS[i, n, start:stop].detach().numpy()
                assert not reference[:, start:stop].any()
                others = np.concatenate([reference[:, :start], reference[:, stop:]], axis=1)
                np.testing.assert_allclose(others[mask[name]], weights[name][mask[name]], rtol=0, atol=1e-6)
        x = {name: hand.norm(f"norms.{name}", x[name]) for name in x}
        pooled = [x["language"][0] if name == "language" else x[name][mask[name]].mean(0) for name in x]
        expected, joint = hand.linear("combine", np.concatenate(pooled)), np.concatenate(list(x.values()))
        real = np.concatenate(list(mask.values()))
        for result in (fused, short):
            difference = result.tokens.pooled_BD[n].detach().numpy() - expected
            assert np.abs(difference).max() < 1e-6 * np.abs(expected).max()
        difference = fused.tokens.x_BTD[n].detach().numpy() - joint
        assert np.abs(difference[real]).max() < 1e-6 * np.abs(joint).max()


@pytest.mark.parametrize("kind", ["single", "interactive"])
def test_topology_is_its_formula(kind: str) -> None:
    torch.manual_seed(0)
    config: Any = parse_config(
        find_part_config_class("vlmodel.topology", kind), {"width": 16, "heads": 2, "depth": 2, "expansion": 2}
    )
    keep = Keep()
    widths = {"language": 12, "vision": 20, "audio": 7}
    topology: Any = away_from_start(config.build(keep, widths))
    streams = three_streams()
    topology(streams, {})
    hand = ByHand(topology, heads=2)
    for n in range(2):
        x, mask = rows_by_hand(hand, streams, n)
        if kind == "single":
            joint = hand.sequence(2, np.concatenate(list(x.values())), np.concatenate(list(mask.values())))
            x = dict(zip(x, np.split(joint, [4, 9]), strict=True))
        else:
            for i in range(2):
                for name in x:
                    h = hand.norm(f"own.{i}.norms.{name}", x[name])
                    x[name] = x[name] + hand.attention(f"own.{i}.attentions.{name}", h, h, mask[name])[0]
                x, _ = hand.exchange(f"cross.{i}", x, mask)
            x = {name: hand.norm(f"norms.{name}", x[name]) for name in x}
        for name, expected in x.items():
            tolerance = 1e-6 * np.abs(expected).max()
            actual, real = keep.streams[name], mask[name]
            assert np.abs((actual.x_BTD[n].detach().numpy() - expected)[real]).max() < tolerance
            pooled = expected[0] if name == "language" else expected[real].mean(0)
            assert np.abs(actual.pooled_BD[n].detach().numpy() - pooled).max() < tolerance


@pytest.mark.parametrize("pooled_only", [False, True])
def test_transformer_fusion_is_its_formula(pooled_only: bool) -> None:
    torch.manual_seed(0)
    config = parse_config(FusionConfig, {"width": 32, "heads": 4, "rounds": 2})
    fusion: Any = away_from_start(config.build({"language": 12, "vision": 20}))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    text = Tokens(torch.randn(3, 5, 12), mask, torch.randn(3, 12))
    image = Tokens(torch.randn(3, 9, 20), torch.ones(3, 9, dtype=torch.bool), torch.randn(3, 20))
    streams = {"vision": image, "language": text}
    adapted = {name: fusion.adapt_stream(name, tokens) for name, tokens in streams.items()}
    fused = fusion(adapted, pooled_only=pooled_only)
    hand = ByHand(fusion, heads=4)
    for n in range(3):
        x, _ = rows_by_hand(hand, {"language": text, "vision": image}, n)
        real = np.concatenate([mask[n].numpy(), np.ones(9, dtype=bool)])
        expected = hand.sequence(2, np.concatenate(list(x.values())), real)
        scale = np.abs(expected).max()
        assert np.abs(fused.tokens.pooled_BD[n].detach().numpy() - expected[0]).max() < 1e-6 * scale
        if not pooled_only:
            assert np.abs((fused.tokens.x_BTD[n].detach().numpy() - expected)[real]).max() < 1e-6 * scale


def test_order_of_streams_in_the_mapping_is_nothing() -> None:
    for kind in list_part_kinds("vlmodel.fusion"):
        torch.manual_seed(0)
        config: Any = parse_config(find_part_config_class("vlmodel.fusion", kind), {"kind": kind, "width": 16})
        fusion = config.build({"language": 16, "vision": 16, "audio": 16}).eval()
        streams = {
            name: Tokens(torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 16))
            for name in ("vision", "audio", "language")
        }
        adapted = {name: fusion.adapt_stream(name, tokens) for name, tokens in streams.items()}
        backwards = dict(reversed(adapted.items()))
        assert torch.equal(fusion(adapted).tokens.pooled_BD, fusion(backwards).tokens.pooled_BD)


@pytest.mark.parametrize("architecture", ["bart", "bert", "electra", "gpt2"])
@pytest.mark.parametrize("kind", ["caption", "answer"])
def test_written_texts_are_transformers_own(architecture: str, kind: str, processor: VLProcessor) -> None:
    """Loss and texts against a model of transformers that is given the same weights and the same hidden states."""
    head = {"architecture": architecture, "width": 16}
    tree: Any = parse_config(find_part_config_class("vlmodel.tasks", kind), {"kind": kind, "head": head})
    torch.manual_seed(0)
    actual = tree.build({"joint": 16}, parts.Vocabulary(len(processor.tokenizer), 0, 0, begin=2, end=3)).eval()
    for parameter in actual.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    decoding = {"is_decoder": True, "add_cross_attention": True, "is_encoder_decoder": False}
    sizes = {"bart": {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
                      "max_position_embeddings": 128},
             "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}}.get(
        architecture,
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "max_position_embeddings": 128} | ({"embedding_size": 16} if architecture == "electra" else {}),
    )  # fmt: skip
    config = AutoConfig.for_model(architecture, vocab_size=len(processor.tokenizer), **sizes, **decoding)
    reference = AutoModelForCausalLM.from_config(config).eval()
    reference.load_state_dict(actual.inner.state_dict())
    reference.generation_config = GenerationConfig()

    mask_NS = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    joint = Tokens(torch.randn(3, 5, 16), mask_NS, torch.randn(3, 16))
    encoded = DecoderInput({}, {}, FusedStream(joint, {"vision": (0, 5)}))
    seen = {
        "encoder_hidden_states": torch.cat([joint.x_BTD, joint.pooled_BD[:, None]], dim=1),
        "encoder_attention_mask": torch.cat([mask_NS, torch.ones(3, 1, dtype=torch.bool)], dim=1).long(),
    }
    texts = ["a red circle", "what color is the shape", None]
    targets = {key: torch.from_numpy(value) for key, value in processor.tokenize_targets(texts).items()}
    labels = targets["target_ids_NT"].masked_fill(~targets["target_mask_NT"], -100)
    if architecture == "bart":  # which leaves it to the caller to set each token against the next
        labels = F.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        decoded = actual(encoded, **targets)
        expected = reference(
            input_ids=targets["target_ids_NT"], attention_mask=torch.ones_like(labels), labels=labels, **seen
        ).loss
        assert decoded.count == 4 + 6
        torch.testing.assert_close(decoded.loss_sum / decoded.count, expected)

        begin = torch.full((3, 1), 2)
        tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "use_cache": False}
        given = {"input_ids": begin, "attention_mask": torch.ones_like(begin), "max_new_tokens": 9, **tokens, **seen}
        greedy = reference.generate(**given)
        beams = reference.generate(
            **given, num_beams=4, num_return_sequences=4, length_penalty=0.0, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        found = actual.generate_answers(encoded, processor, 1, max_new_tokens=9)
        several = actual.generate_answers(encoded, processor, 4, max_new_tokens=9)
    assert [row[0][0] for row in found] == processor.tokenizer.batch_decode(greedy, skip_special_tokens=True)
    written = processor.tokenizer.batch_decode(beams.sequences, skip_special_tokens=True)
    assert len(set(written)) > 4
    for n, row in enumerate(several):
        own = dict(reversed(list(zip(written, beams.sequences_scores.exp().tolist(), strict=True))[4 * n : 4 * n + 4]))
        assert [text for text, _ in row] == list(dict.fromkeys(written[4 * n : 4 * n + 4]))
        np.testing.assert_allclose([p for _, p in row], [own[text] for text, _ in row], rtol=1e-4)
