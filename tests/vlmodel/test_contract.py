"""What every combination of parts must do. The parts are found by their files, so a new one is tested too."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from tests.vlmodel.tiny import (
    DEFAULT_KINDS,
    IMU,
    INPUT_OF_MEDIUM,
    PACKAGES,
    batch_for,
    collate,
    package_of,
    tiny_input,
    tiny_tree,
)
from vlmodel.config import ConfigError, list_part_kinds
from vlmodel.fusion._concat import ConcatFusion
from vlmodel.fusion._gated import GatedFusion
from vlmodel.model import VLModel, VLOutput
from vlmodel.processor import Example, VLProcessor
from vlmodel.weights import WeightsError

# Settings that change what a part does to its tokens; a kind without an entry is tested as it is by default.
VARIANTS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("vision", "cnn"): [
        {},
        {"output": "pooled"},
        {"grid": 2, "position": "none", "projection": None},
        {"stages": 2, "output": "multiscale"},
        {"name": "cifar_resnet20", "stages": None},
    ],
    ("vision", "timm"): [
        {},
        {"frozen": True, "pooling": "mean", "projection": 12},
        {"name": "resnet18", "settings": {"zero_init_last": False}, "stages": 3, "output": "multiscale"},
        {
            "name": "swin_tiny_patch4_window7_224",
            "settings": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
            "output": "pooled",
        },
    ],
    ("vision", "hf"): [
        {"pooling": "mean"},  # of its own pooled vector a fusion need not read anything
        {"output": "pooled", "frozen_stages": 1},
        {
            "architecture": "swin",
            "settings": {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        },
    ],
    ("language", "transformer"): [
        {},
        {"architecture": "roberta", "pooling": "mean", "projection": 12},
        {"architecture": "xlnet"},
        {"architecture": "distilbert", "output": "pooled"},
        {"architecture": "electra", "pooling": "attention", "output": "pooled"},
    ],
    ("fusion", "transformer"): [{}, {"pooling": "mean"}, {"pooling": "attention"}],
    ("task", "vqa"): [{}, {"hidden": 8, "label_smoothing": 0.1}],
    ("task", "multitask"): [
        {
            "heads": {
                "ask": {"kind": "vqa"},
                "tell": {"kind": "caption", "head": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0}},
                "near": {"kind": "contrastive", "width": 16},
            }
        }
    ],
}
CROSSED = {("language", "transformer"): 3, ("vision", "timm"): 0, ("vision", "hf"): 0}
"""So many variants of a kind are combined with every other part; of others the first alone."""
INPUTS = ("image", *INPUT_OF_MEDIUM.values())
VISION = [kind for kind in list_part_kinds("vlmodel.vision") if kind != "none"]
"""Kinds of vision encoders."""


def variants(package: str, kind: str) -> list[dict[str, Any]]:
    return [{"kind": kind, **variant} for variant in VARIANTS.get((package, kind), [{}])]


def combinations() -> list[dict[str, dict[str, Any]]]:
    """Every kind with every other, and each further variant among the default kinds, but for what is refused."""
    crossed = [
        [
            variant
            for kind in kinds_of(package)
            for variant in variants(package, kind)[: CROSSED.get((package, kind), 1)]
        ]
        for package in PACKAGES
    ]
    found = [dict(zip(PACKAGES, chosen, strict=True)) for chosen in itertools.product(*crossed)]
    usual = {package: variants(package, kind)[0] for package, kind in DEFAULT_KINDS.items()}
    for package in PACKAGES:
        for kind in kinds_of(package):
            found += [{**usual, package: more} for more in variants(package, kind)[CROSSED.get((package, kind), 1) :]]
    return [combination for combination in found if not _refused(combination)]


def combinations_with_series() -> list[dict[str, dict[str, Any]]]:
    """A further input beside image and text in every topology x fusion x decoder; and in place of the image, or alone,
    where a decoder does not ask for one.
    """
    inputs = {"imu": IMU}
    meetings = itertools.product(*([variants(p, k)[0] for k in kinds_of(p)] for p in ("topology", "fusion", "task")))
    found = [
        {"topology": topology, "fusion": fusion, "task": task, "inputs": inputs} for topology, fusion, task in meetings
    ]
    for combination in found:
        if combination["task"]["kind"] == "contrastive":
            combination["task"] = {**combination["task"], "stream": "imu"}
    found += [
        {"vision": {"kind": "none"}, "topology": {"kind": kind}, "task": {"kind": decoder}, "inputs": inputs}
        for kind in kinds_of("topology")
        for decoder in ("vqa", "caption")
    ]
    others = [kind for kind in list_part_kinds("vlmodel.modality") if kind != IMU["kind"]]
    found += [{"inputs": tiny_input(kind)} for kind in others]
    found += [{"inputs": tiny_input(kind), "vision": {"kind": "none"}, "task": {"kind": "classify"}} for kind in others]
    return [combination for combination in found if not _refused(combination)]


def kinds_of(package: str) -> list[str]:
    return VISION if package == "vision" else list_part_kinds(package_of(package))


def _refused(combination: dict[str, dict[str, Any]]) -> bool:
    """One topology is the text's encoder, which a decoder that reads the encoders alone would never see, and takes the
    embeddings of the language encoder, which a tower of a dual model does not give without its layers. Triples are
    texts alone, and read no further input.
    """
    topology, task, language = (combination.get(part, {}).get("kind") for part in ("topology", "task", "language"))
    alone = task in ("contrastive", "multitask", "triples")
    return (topology == "single" and (alone or language == "tower")) or (task == "triples" and "inputs" in combination)


def name_of(combination: dict[str, dict[str, Any]]) -> str:
    chosen = (
        " ".join(part) if package == "inputs" else " ".join(str(v) for v in part.values() if not isinstance(v, dict))
        for package, part in combination.items()
    )
    return "-".join(chosen)


@pytest.mark.parametrize("task", ["contrastive", "multitask", "triples"])
def test_what_the_grid_leaves_out_is_refused(task: str) -> None:
    settings = variants("task", task)[0]
    with pytest.raises(ConfigError, match=r"topology.*single"):
        tiny_tree(topology={"kind": "single"}, task=settings)


def without_gradient(model: VLModel) -> list[str]:
    return [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


def attends_to_one_key(model: VLModel) -> set[str]:
    """Queries and keys of a cross-attention to a joint stream of one token, whose gradient is zero but for rounding.

    Softmax over one key is one, whatever the scores are. So it is where a decoder writes after a fusion that keeps no
    sequence, and nowhere else.
    """
    if model.topology is None or not isinstance(model.topology.fusion, (ConcatFusion, GatedFusion)):
        return set()
    return {n for n, _ in model.named_parameters() if re.search(r"\.crossattention\.self\.(query|key)\.", n)}


@pytest.mark.parametrize("combination", [*combinations(), *combinations_with_series()], ids=name_of)
def test_grid(
    combination: dict[str, dict[str, Any]],
    make_model: Callable[..., Any],
    processor: VLProcessor,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    """All that is asked of every combination alike: what it counts and what changes nothing, what it is made of and
    what is left of it on disk, gradients and autocast.
    """
    model = make_model(**combination)
    tree = tiny_tree(**combination)
    batch = batch_for(processor, tree.task.tasks_by_name(), examples, tree)
    with torch.no_grad():
        output = model(**batch)
        assert output.count.item() > 0
        assert output.count <= output.total
        torch.testing.assert_close(output.loss, output.loss_sum / output.count)
        check_what_changes_nothing(model, batch, output)
        check_parts_and_folder(model, batch, output, tmp_path)

    model.train()
    model(**batch).loss.backward()
    model.eval()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    constant = attends_to_one_key(model)
    assert set(without_gradient(model)) <= constant
    assert all(gradients[name].abs().max() < 1e-6 for name in constant)


def check_what_changes_nothing(model: VLModel, batch: dict[str, Tensor], output: VLOutput) -> None:
    # Padding changes nothing, whatever token it holds.
    reads_prompts = any(name.endswith("prompt_ids_NT") for name in batch)
    padded = model(**{name: padded_by_three(name, array, reads_prompts) for name, array in batch.items()})
    torch.testing.assert_close(padded.loss_sum, output.loss_sum, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.correct, output.correct)

    # Neither do the neighbours in the batch, but to those who are compared with them.
    if all(head.reads_joint_stream for head in model.decoder.task_decoders().values()):
        alone = sum(model(**of_one_image(batch, image)).loss_sum for image in range(2))
        torch.testing.assert_close(alone, output.loss_sum, rtol=1e-4, atol=1e-5)

    # Nor what an image would show that is absent, and what a text would say that is masked throughout.
    absent = [model(**without_first_inputs_and_last_text(batch, content)) for content in (False, True)]
    assert absent[0].loss_sum.isfinite()
    torch.testing.assert_close(absent[1].loss_sum, absent[0].loss_sum, rtol=1e-4, atol=1e-5)

    with torch.autocast("cpu", torch.bfloat16):
        low = model(**batch)
    torch.testing.assert_close(low.loss, output.loss, rtol=0.1, atol=0.1)


def check_parts_and_folder(model: VLModel, batch: dict[str, Tensor], output: VLOutput, folder: Path) -> None:
    assert same(model(**batch), output)  # to the last bit
    of_parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert set(of_parts) <= {"vision", "language", "inputs", "topology", "decoder"}
    assert sum(of_parts.values()) == sum(p.numel() for p in model.parameters())

    model.save_pretrained(folder)
    loaded = VLModel.from_pretrained(folder)
    shutil.rmtree(folder)
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in loaded.parameters()) == sum(of_parts.values())
    assert same(loaded(**batch), output)


def same(one: VLOutput, other: VLOutput) -> bool:
    names = ("loss", "loss_sum", "count", "correct", "total", "logits_NK")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


def without_first_inputs_and_last_text(batch: dict[str, Tensor], other_content: bool) -> dict[str, Tensor]:
    """Without inputs or masked, and with other content behind the mask or with what was there."""
    changed = {name: array.clone() for name, array in batch.items()}
    for name, array in changed.items():
        if name.endswith("text_mask_NT"):
            array[-1] = False
        elif name.endswith("input_ids_NT") and other_content:
            array[-1] = 13 - array[-1]  # of the fourteen words
        elif name.endswith(("x_BTC", "frames_BTHWC")) and other_content:
            array[~changed[f"{name.partition('.')[0]}.mask_BT"]] = 7
        elif name.endswith("x_BT") and other_content:
            array[torch.arange(array.shape[1]) >= changed[f"{name.partition('.')[0]}.length_B"][:, None]] = 7.0
    for name in [name for name in changed if name.partition(".")[0] in INPUTS]:
        changed[name] = changed[name][1:]
        changed[f"{name.partition('.')[0]}.place_B"] = torch.tensor([1, 0])
    return changed


def padded_by_three(name: str, array: Tensor, reads_prompts: bool) -> Tensor:
    if reads_prompts and name.rpartition(".")[2].startswith(("prompt_", "target_")):
        return torch.nn.functional.pad(array, (3, 0))  # a language model's texts are padded on the left
    if name.endswith(("_NT", "_BT")):
        return torch.nn.functional.pad(array, (0, 3))
    if name.endswith("_BTHWC"):
        return torch.nn.functional.pad(array, (0, 0, 0, 0, 0, 0, 0, 3))
    return torch.nn.functional.pad(array, (0, 0, 0, 3)) if name.endswith("_BTC") else array


def of_one_image(batch: dict[str, Tensor], image: int) -> dict[str, Tensor]:
    """The rows of one image, with what belongs to them only."""
    found = {}
    for name, array in batch.items():
        task = name.rpartition(".")[0]
        if task in INPUTS:
            continue
        rows = batch[f"{task}.sample_N" if task else "sample_N"] == image
        if "distinct" in name:
            continue
        found[name] = torch.zeros_like(array[rows]) if name.endswith("sample_N") else array[rows]
    return found | select_inputs(batch, image)


def select_inputs(batch: dict[str, Tensor], sample: int) -> dict[str, Tensor]:
    """The inputs of one sample."""
    found = {}
    for name, array in batch.items():
        of_input = name.rpartition(".")[0]
        if of_input in INPUTS and not name.endswith("place_B"):
            place = int(batch[f"{of_input}.place_B"][sample]) if f"{of_input}.place_B" in batch else sample
            found[name] = array[place : place + 1]
            if not len(found[name]):
                found[f"{of_input}.place_B"] = torch.tensor([0])
    return found


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
        {"vision": {"stem": "small"}, "language": {"architecture": "electra"}, "task": {"hidden": 8}},
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
    apart = {"bases.json", "_bases"} if "frozen_stages" in combination.get("vision", {}) else set()
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "auto.py"} | apart
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


def test_weights_that_are_cut_off_are_refused(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=rf"the weights in '{tmp_path}' are damaged"):
        VLModel.from_pretrained(tmp_path)


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


@pytest.mark.parametrize("vision", [v for kind in VISION for v in variants("vision", kind)], ids=str)
def test_features_in_place_of_images(
    vision: dict[str, Any], make_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    model = make_model(vision={**vision, "frozen": True}).train()
    assert tiny_tree(vision={**vision, "frozen": True}).vision.is_frozen()
    texts = {name: value for name, value in batch.items() if name != "image.pixels_BHWC"}
    kept = {**texts, "image.features_BF": model.vision.compute_features(batch["image.pixels_BHWC"])}
    found = []
    for inputs in (batch, kept):
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    for wrong, given in (({**kept, **batch}, "both were"), (texts, "neither was")):
        with pytest.raises(ValueError, match=f"'image' comes as it is or as features, and {given} given"):
            model(**wrong)


def both_ways(model: VLModel, direct: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
    """The same loss and gradients of images and texts, and of kept features."""
    found = []
    for inputs in (direct, kept):
        model.zero_grad()
        loss = model(**inputs).loss
        assert loss is not None
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert found[0][1].keys() == found[1][1].keys()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["concat", "transformer"])
@pytest.mark.parametrize(
    "language",
    [v for kind in list_part_kinds("vlmodel.language") for v in variants("language", kind)]
    + [{"kind": "transformer", "pooling": "mean", "projection": 12, "activation": "gelu"}],
    ids=str,
)
def test_features_in_place_of_texts(
    language: dict[str, Any], fusion: str, make_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    parts = {"language": {**language, "frozen": True}, "fusion": {"kind": fusion}}
    tree, model = tiny_tree(**parts), make_model(**parts).train()
    assert tree.frozen_streams() == ("language",)
    # Nothing but the pooled vector is kept where it is all that is read, and follows from one token.
    pooled = (fusion == "concat" or language.get("output") == "pooled") and language.get("pooling") != "attention"
    pooled = pooled and "activation" not in language
    assert tree.text_feature_kind() == ("pooled" if pooled else "tokens")
    distinct_U = batch["distinct_U"]
    features = model.language.compute_features(batch["input_ids_NT"][distinct_U], batch["text_mask_NT"][distinct_U])
    if pooled:
        features = model.language.pool_features(*features)
        assert features[0].shape[1] == 1
    features_UTF = features[0].detach().masked_fill(~features[1].unsqueeze(-1), 0)
    kept = {name: value for name, value in batch.items() if name not in ("input_ids_NT", "text_mask_NT", "distinct_U")}
    both_ways(model, batch, {**kept, "text_features_UTF": features_UTF, "text_features_mask_UT": features[1]})


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
def test_requesting_attention_changes_no_answer(
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


@pytest.mark.parametrize("fusion", list_part_kinds("vlmodel.fusion"))
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
    model.vision.register_forward_hook(
        lambda _, __, inputs, ___: calls.append(len(inputs["pixels_BHWC"])), with_kwargs=True
    )
    once = model(**batch).logits_NK
    assert calls == [2]
    split = [Example(e.inputs, (text,)) for e in examples for text in e.texts]
    each = {name: torch.from_numpy(a) for name, a in collate(processor, split).items() if not name.startswith("labels")}
    torch.testing.assert_close(model(**{**each, "weights_N": None}).logits_NK, once, rtol=1e-5, atol=1e-6)


def test_equal_texts_are_encoded_once(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    first, second = examples
    again = [first, Example(second.inputs, (*second.texts, *first.texts), ("no", "blue", "no"))]
    batch = {name: torch.from_numpy(array) for name, array in collate(processor, again).items()}
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


def sample() -> list[dict[str, dict[str, Any]]]:
    """Few combinations in which every topology meets every fusion, and every other kind is found; those with new kinds
    come first.
    """
    pool = combinations()[::-1]  # those that classify before those that write, which take long to compile
    left = set().union(*map(_met, pool))
    chosen = []
    while left:
        chosen.append(max(pool, key=lambda combination: len(left & _met(combination))))  # of equals the first
        left -= _met(chosen[-1])
    return chosen


def _met(combination: dict[str, dict[str, Any]]) -> set[tuple[str, ...]]:
    kind = {package: part["kind"] for package, part in combination.items()}
    return {("meet", kind["topology"], kind["fusion"]), *kind.items()}


def _has_every_kind(found: list[dict[str, dict[str, Any]]]) -> bool:
    return all(
        {combination[package]["kind"] for combination in found} == set(kinds_of(package)) for package in PACKAGES
    )


def _compiled() -> list[Any]:
    """The sample; what follows after every kind was had once is slow, as each takes seconds to compile."""
    found = [*sample(), {"fusion": {"kind": "gated"}, "inputs": {"imu": IMU}}]
    enough = next(n for n in range(1, len(found) + 1) if _has_every_kind(found[:n]))
    return [
        pytest.param(combination, marks=pytest.mark.slow if n >= enough else (), id=name_of(combination))
        for n, combination in enumerate(found)
    ]


@pytest.mark.parametrize("combination", _compiled())
def test_compiled_is_the_same(
    combination: dict[str, dict[str, Any]],
    make_model: Callable[..., Any],
    processor: VLProcessor,
    examples: list[Example],
) -> None:
    model, tree = make_model(**combination), tiny_tree(**combination)
    batch = batch_for(processor, tree.task.tasks_by_name(), examples, tree)
    torch.compiler.reset()  # else what is compiled counts towards one limit of all, as they share their code
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)
