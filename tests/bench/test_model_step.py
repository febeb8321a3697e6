"""Time of the model's own step: against the same computation written directly, and with each image encoded once.

Forward, backward and update on batches in memory, kinds taking turns in one process.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from jobs.config import JobConfig
from tests.bench.conftest import Figure
from tests.bench.model_steps import Batch, batch_of, loss_of, new_model, stepper, taking_turns
from tests.jobs.conftest import ROOT
from vlmodel.config import load, parse
from vlmodel.model import ModelConfig, VLModel

LABELS = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        pixels = self.normalize(batch["pixels_BHWC"].permute(0, 3, 1, 2).float() / 255)
        grid = self.vision(self.backbone(pixels).flatten(2).transpose(1, 2))
        text = self.language(self.bert(batch["input_ids_NT"], attention_mask=batch["text_mask_NT"]).last_hidden_state)
        x = torch.cat([text, grid[batch["text_image_N"]]], dim=1)
        padding = torch.cat([~batch["text_mask_NT"], torch.zeros(x.shape[0], grid.shape[1], dtype=torch.bool)], dim=1)
        return F.cross_entropy(self.head(self.fusion(x, src_key_padding_mask=padding)[:, 0]), batch["labels_N"])


@pytest.mark.parametrize(
    ("resnet", "depth", "width", "heads", "images", "size"),
    [("resnet18", 2, 256, 4, 16, 128), ("resnet50", 12, 768, 12, 4, 224)],
)
def test_against_torchvision_and_transformers(
    resnet: str, depth: int, width: int, heads: int, images: int, size: int, figure: Figure
) -> None:
    torch.manual_seed(0)
    tree: dict[str, Any] = {
        "vision": {"name": resnet, "position": "none"},
        "language": {"width": width, "depth": depth, "heads": heads, "dropout": 0.0},
        "fusion": {"width": 256, "heads": 4, "rounds": 2, "dropout": 0.0},
    }
    model = new_model(parse(ModelConfig, tree), LABELS)
    assert model.language is not None
    bert: Any = model.language.encoder
    direct = Direct(resnet, bert.config, 256, 4, 2, LABELS).train()
    direct.take(model)
    batch = batch_of(images, size, 5, 16, LABELS)
    with torch.no_grad():
        torch.testing.assert_close(direct(batch), model(**batch).loss, rtol=1e-4, atol=1e-4)
    medians = taking_turns(
        {"ours": stepper(model, loss_of(model, batch)), "direct": stepper(direct, lambda: direct(batch))}
    )
    figure(
        f"model step, {resnet} + BERT of {depth} layers", medians["ours"], "s",
        peer="torchvision + transformers + nn.TransformerEncoder", peer_value=medians["direct"],
    )  # fmt: skip
    assert medians["ours"] > 0


def test_an_image_once_for_all_its_questions(figure: Figure) -> None:
    config = load(JobConfig, ROOT / "jobs/configs/easy_vqa.toml", [])
    model = new_model(config.model, 13)
    # easy-VQA has 9.6 questions an image, of at most 11 tokens.
    once = batch_of(config.train.batch // 2, config.processor.image_size, 9.6, 11, 13)
    pairs = {
        **once,
        "pixels_BHWC": once["pixels_BHWC"][once["text_image_N"]],
        "text_image_N": torch.arange(len(once["labels_N"])),
    }
    batches = {"once": once, "pairs": pairs}
    medians = taking_turns({kind: stepper(model, loss_of(model, batch)) for kind, batch in batches.items()})
    figure(
        "model step, each image once for its 9.6 questions", medians["once"], "s",
        peer="each image once per question", peer_value=medians["pairs"],
    )  # fmt: skip
    assert medians["once"] > 0
