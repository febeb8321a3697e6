"""What every combination of parts must do. The parts are found by their files, so a new one is tested too."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from vlmodel.config import kinds
from vlmodel.model import VLModel
from vlmodel.parts import WeightsError
from vlmodel.processor import Example, VLProcessor

ROOMS = ("vision", "language", "topology", "fusion", "decoder")
# Settings that change what a part does to its tokens; a kind without an entry is tested as it is by default.
VARIANTS: dict[tuple[str, str], list[dict[str, object]]] = {
    ("vision", "cnn"): [{}, {"output": "pooled"}, {"grid": 2, "position": "none", "projection": None}],
    ("language", "transformer"): [
        {},
        {"architecture": "roberta", "pooling": "mean", "projection": 12},
        {"architecture": "distilbert", "output": "pooled"},
    ],
    ("fusion", "transformer"): [{}, {"pooling": "mean"}, {"pooling": "attention"}],
    ("decoder", "vqa"): [{}, {"hidden": 8, "label_smoothing": 0.1}],
}


def combinations() -> list[dict[str, dict[str, object]]]:
    rooms = [
        [{"kind": kind, **variant} for kind in kinds(f"vlmodel.{room}") for variant in VARIANTS.get((room, kind), [{}])]
        for room in ROOMS
    ]
    return [dict(zip(ROOMS, chosen, strict=True)) for chosen in itertools.product(*rooms)]


def name_of(combination: dict[str, dict[str, object]]) -> str:
    return "-".join("".join(str(value) for value in chosen.values()) for chosen in combination.values())


def without_gradient(model: VLModel) -> list[str]:
    return [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


@pytest.mark.parametrize("combination", combinations(), ids=name_of)
def test_grid(
    combination: dict[str, dict[str, object]], make_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    """Shapes, counts, gradients, padding, order and autocast of one combination."""
    model = make_model(**combination)
    output = model(**batch)
    assert output.logits_NK.shape == (3, 4)
    assert output.count.item() == 2.5
    torch.testing.assert_close(output.loss, output.loss_sum / 2.5)

    # Padding of the texts changes nothing, whatever token it holds.
    padded = dict(batch)
    padded["input_ids_NT"] = torch.nn.functional.pad(batch["input_ids_NT"], (0, 3), value=0)
    padded["text_mask_NT"] = torch.nn.functional.pad(batch["text_mask_NT"], (0, 3), value=False)
    torch.testing.assert_close(model(**padded).logits_NK, output.logits_NK, rtol=1e-4, atol=1e-5)

    # Neither do the neighbours in the batch.
    for n in range(3):
        alone = {key: value[n : n + 1] for key, value in batch.items() if key.endswith(("NT", "_N"))}
        del alone["text_distinct_N"]
        alone["pixels_BHWC"] = batch["pixels_BHWC"][batch["text_image_N"][n]][None]
        alone["text_image_N"] = torch.zeros(1, dtype=torch.int64)
        torch.testing.assert_close(model(**alone).logits_NK[0], output.logits_NK[n], rtol=1e-4, atol=1e-5)

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        low = model(**batch)
    assert low.logits_NK.isfinite().all()
    torch.testing.assert_close(low.loss, output.loss, rtol=0.1, atol=0.1)

    model.train()
    loss = model(**batch).loss
    loss.backward()
    model.eval()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_gradients_are_no_zeros(make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    # A key's bias moves all scores of a softmax alike, so its gradient is zero but for rounding, which is not asked.
    model = make_model(language={"pooling": "mean"}, fusion={"pooling": "mean"}).train()
    model(**batch).loss.backward()
    assert without_gradient(model) == []


def test_frozen_parts_stay(make_model: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path) -> None:
    make_model(vision={"frozen": True}, language={"frozen": True}).save_pretrained(tmp_path)
    model = VLModel.from_pretrained(tmp_path).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**batch).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    # BatchNorm's statistics stay too, and the projection is trained.
    assert not [name for name in changed if name.startswith(("vision.backbone", "language.encoder"))]
    assert "vision.projection.weight" in changed


def test_frozen_stages(make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model = make_model(vision={"stages": 2, "frozen_stages": 1}).train()
    model(**batch).loss.backward()
    backbone = dict(model.vision.backbone.named_parameters())
    assert {name.split(".")[0] for name, p in backbone.items() if p.grad is None} == {"conv1", "bn1", "layer1"}
    assert not model.vision.backbone.layer1.training
    assert model.vision.backbone.layer2.training


def test_same_seed_same_model_same_answer(make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    first, second, other = make_model(seed=1), make_model(seed=1), make_model(seed=2)
    assert torch.equal(first(**batch).logits_NK, second(**batch).logits_NK)
    assert not torch.equal(first(**batch).logits_NK, other(**batch).logits_NK)


@pytest.mark.parametrize(
    "combination",
    [
        {},
        {"fusion": {"kind": "concat"}, "language": {"architecture": "roberta"}},
        {"vision": {"name": "densenet121", "stages": 2, "frozen_stages": 1}, "fusion": {"pooling": "attention"}},
        {"vision": {"stem": "small"}, "language": {"architecture": "electra"}, "decoder": {"hidden": 8}},
    ],
    ids=name_of,
)
def test_saved_and_loaded_is_the_same(
    combination: dict[str, dict[str, object]],
    make_model: Callable[..., Any],
    batch: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    model = make_model(**combination)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is VLModel
    assert not loaded.training
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(loaded(**batch).logits_NK, model(**batch).logits_NK)
    assert loaded.config.id2label == {0: "yes", 1: "no", 2: "red", 3: "blue"}


def test_weights_of_another_architecture_are_refused(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "one")
    make_model(fusion={"rounds": 1}).save_pretrained(tmp_path / "other")
    (tmp_path / "one" / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(WeightsError, match=r"unexpected: topology\.fusion\.layers\.1\."):
        VLModel.from_pretrained(tmp_path / "one")


def test_parameter_groups(make_model: Callable[..., Any], tmp_path: Path) -> None:
    scratch = make_model()
    assert list(scratch.backbone_parameters()) == []
    scratch.language.encoder.save_pretrained(tmp_path)
    model = make_model(language={"pretrained": str(tmp_path), "projection": 8})
    backbone, head = list(model.backbone_parameters()), list(model.head_parameters())
    assert {id(p) for p in backbone} == {id(p) for p in model.language.encoder.parameters()}
    assert len(backbone) + len(head) == len(list(model.parameters()))
    assert all(map(torch.equal, backbone, scratch.language.encoder.parameters()))


def test_saved_model_needs_no_other_folder(make_model: Callable[..., Any], tmp_path: Path) -> None:
    encoder = make_model().language.encoder
    encoder.save_pretrained(tmp_path / "encoder")
    backbone = tmp_path / "backbone.pth"
    torch.save(torch_backbone().state_dict(), backbone)
    model = make_model(vision={"weights": str(backbone)}, language={"pretrained": str(tmp_path / "encoder")})
    model.save_pretrained(tmp_path / "model")
    backbone.unlink()
    for file in (tmp_path / "encoder").iterdir():
        file.unlink()
    loaded = VLModel.from_pretrained(tmp_path / "model")
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def torch_backbone() -> torch.nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=5)


def test_unlabelled_texts_count_nothing(make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model = make_model()
    whole = model(**batch)
    part = model(**{**batch, "labels_N": torch.tensor([2, -1, 1])})
    zero = model(**{**batch, "weights_N": torch.tensor([1.0, 0.0, 1.0])})
    assert part.count.item() == zero.count.item() == 2
    torch.testing.assert_close(part.loss_sum, zero.loss_sum)
    none = model(**{**batch, "labels_N": torch.full((3,), -1)})
    assert (none.loss.item(), none.loss_sum.item(), none.count.item(), none.correct.item()) == (0, 0, 0, 0)
    none.loss.backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    expected = torch.nn.functional.cross_entropy(whole.logits_NK, batch["labels_N"], reduction="none")
    torch.testing.assert_close(whole.loss_sum, (expected * batch["weights_N"]).sum())
    right = (whole.logits_NK.argmax(-1) == batch["labels_N"]).float() * batch["weights_N"]
    assert whole.correct.item() == right.sum().item()


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
def test_asking_for_attention_changes_no_answer(
    pooling: str, make_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    model = make_model(fusion={"pooling": pooling})
    plain, asked = model(**batch), model(**batch, output_attention=True)
    assert plain.attention_LNQS is None
    assert plain.spans is None
    torch.testing.assert_close(asked.logits_NK, plain.logits_NK)
    tokens = batch["input_ids_NT"].shape[1]
    assert asked.spans == {"language": (0, tokens), "vision": (tokens, tokens + 64)}
    assert asked.attention_LNQS.shape == (2, 3, tokens + 64, tokens + 64)
    torch.testing.assert_close(asked.attention_LNQS.sum(-1), torch.ones(2, 3, tokens + 64))
    to_padding = asked.attention_LNQS[..., :tokens].masked_select(~batch["text_mask_NT"][None, :, None, :])
    assert to_padding.numel()
    assert not to_padding.any()


@pytest.mark.parametrize("fusion", kinds("vlmodel.fusion"))
def test_absent_stream_changes_nothing(fusion: str, make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    """Where all tokens of a stream are masked, what they hold is not seen."""
    from vlmodel.tokens import Tokens

    model = make_model(fusion={"kind": fusion})
    text = model.language(batch["input_ids_NT"], batch["text_mask_NT"])
    absent = torch.zeros(3, 4, dtype=torch.bool)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        image = Tokens(torch.randn(3, 4, 16), absent, torch.randn(3, 16))
        fused = model.topology({"language": text, "vision": image}, {})
        results.append(fused.tokens.pooled_BD)
    torch.testing.assert_close(*results)


def test_encoded_once_equals_encoded_for_each_text(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example], batch: dict[str, Tensor]
) -> None:
    model = make_model()
    calls = []
    model.vision.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    once = model(**batch).logits_NK
    assert calls == [2]
    split = [Example(e.image, (text,)) for e in examples for text in e.texts]
    each = {name: torch.from_numpy(a) for name, a in processor.collate(split).items() if not name.startswith("labels")}
    torch.testing.assert_close(model(**{**each, "weights_N": None}).logits_NK, once, rtol=1e-5, atol=1e-6)


def test_equal_texts_are_encoded_once(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    first, second = examples
    again = [first, Example(second.image, (*second.texts, *first.texts), ("no", "blue", "no"))]
    batch = {name: torch.from_numpy(array) for name, array in processor.collate(again).items()}
    plain = {name: value for name, value in batch.items() if "distinct" not in name}
    model = make_model()
    calls: list[int] = []
    model.language.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    gradients, losses = [], []
    for inputs in (batch, plain):
        model.zero_grad()
        losses.append(model(**inputs).loss)
        losses[-1].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert calls == [3, 5]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_compiled_is_the_same(make_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model = make_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)
