"""What the benchmarks of the model's own step share: models, batches, and steps that take turns. No Ray, no loader."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from vlmodel.config import dump_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.part_configs import Vocabulary
from vlmodel.saved_config import VLConfig

ROUNDS, STEPS, WORDS = 7, 2, 3000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = dict[str, Tensor]


def batch_of(images: int, size: int, texts: float, longest: int, labels: int) -> Batch:
    """Random images with ``texts`` texts each, of 4 to ``longest`` tokens."""
    rng = np.random.default_rng(0)
    count = round(images * texts)
    lengths = rng.integers(4, longest + 1, count)
    return {
        "image.pixels_BHWC": torch.from_numpy(rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)),
        "input_ids_NT": torch.from_numpy(rng.integers(5, WORDS, (count, longest))),
        "text_mask_NT": torch.from_numpy(np.arange(longest) < lengths[:, None]),
        "sample_N": torch.from_numpy(np.sort(np.arange(count) % images)),
        "labels_N": torch.from_numpy(rng.integers(0, labels, count)),
    }


def create_initial_model(tree: ModelConfig, labels: int) -> VLModel:
    """A model for so many answers, ready to train."""
    names = {i: str(i) for i in range(labels)}
    config = VLConfig(vocab_size=WORDS, id2label=names, label2id={name: i for i, name in names.items()})
    config.model = dump_config(tree.resolve_settings(Vocabulary(WORDS, 0, labels), (224, 224)))
    return VLModel(config).train()


class Direct(nn.Module):
    """ResNet, BERT and a Transformer over both, as one writes it with torchvision, transformers and torch.nn."""

    def __init__(self, resnet: str, bert: BertConfig, width: int, heads: int, rounds: int, labels: int) -> None:
        super().__init__()
        net = torchvision.models.get_model(resnet, weights=None)
        channels = net.fc.in_features
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.backbone.to(memory_format=torch.channels_last)
        self.bert = BertModel(bert, add_pooling_layer=False)
        self.vision, self.language = nn.Linear(channels, width), nn.Linear(bert.hidden_size, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.fusion = nn.TransformerEncoder(layer, rounds, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, labels)
        self.normalize = torchvision.transforms.Normalize(MEAN, STD)

    def take(self, model: VLModel) -> None:
        """The weights of ours, all of them; a weight of another name or shape is an error."""
        assert model.language is not None
        assert model.topology is not None
        theirs: Any = model.topology.fusion
        mine: Any = self.fusion
        head: Any = model.decoder.head
        self.bert.load_state_dict(model.language.encoder.state_dict())  # type: ignore[operator]
        vision: Any = model.vision
        self.backbone.load_state_dict(
            dict(zip(self.backbone.state_dict(), vision.backbone.state_dict().values(), strict=True))
        )
        pairs = [(self.vision, theirs.adapters["vision"]), (self.language, theirs.adapters["language"])]
        pairs += [(self.head, head[-1]), (mine.norm, theirs.norm)]
        for ours, layer in zip(theirs.layers, mine.layers, strict=True):
            pairs += [(layer.norm1, ours.attention_norm), (layer.norm2, ours.feed_forward_norm)]
            pairs += [(layer.linear1, ours.feed_forward[0]), (layer.linear2, ours.feed_forward[-1])]
            pairs += [(layer.self_attn.out_proj, ours.attention.out)]
            with torch.no_grad():
                asked, given = ours.attention.query, ours.attention.key_value
                layer.self_attn.in_proj_weight.copy_(torch.cat([asked.weight, given.weight]))
                layer.self_attn.in_proj_bias.copy_(torch.cat([asked.bias, given.bias]))
        for taking, giving in pairs:
            taking.load_state_dict(giving.state_dict())
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in self.parameters())

    def forward(self, batch: Batch) -> Tensor:
        pixels = self.normalize(batch["image.pixels_BHWC"].permute(0, 3, 1, 2).float() / 255)
        grid = self.vision(self.backbone(pixels).flatten(2).transpose(1, 2))
        text = self.language(self.bert(batch["input_ids_NT"], attention_mask=batch["text_mask_NT"]).last_hidden_state)
        x = torch.cat([text, grid[batch["sample_N"]]], dim=1)
        padding = torch.cat([~batch["text_mask_NT"], x.new_zeros(x.shape[0], grid.shape[1], dtype=torch.bool)], dim=1)
        return F.cross_entropy(self.head(self.fusion(x, src_key_padding_mask=padding)[:, 0]), batch["labels_N"])


def loss_of(model: VLModel, batch: Batch) -> Callable[[], Tensor]:
    """The loss of a forward pass."""

    def loss() -> Tensor:
        found = model(**batch).loss
        assert found is not None
        return found

    return loss


def stepper(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
    """Seconds of a step, the median of some."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> float:
        begun = time.perf_counter()
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    return lambda: statistics.median(step() for _ in range(STEPS))


def taking_turns(kinds: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Median seconds of each kind, after one round that is not measured."""
    for run in kinds.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, run in kinds.items():
            found[name].append(run())
    return {name: statistics.median(values) for name, values in found.items()}
