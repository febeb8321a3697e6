"""The contrastive loss against its formula, over one process and two."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.vlmodel.conftest import encode
from tests.vlmodel.tiny import collate, for_tasks, tiny_tree
from vlmodel.config import ConfigError, parse_config
from vlmodel.decoder.contrastive import ContrastiveDecoder
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, VLProcessor
from vlmodel.tasks import vqa
from vlmodel.tasks.contrastive import Config
from vlmodel.tokens import DecoderInput, Tokens

CAPTIONS = [["a red circle", "a circle"], ["the shape"], ["a circle", "is red", "the color"], ["a red shape"]]
"""Of four images; one caption is that of two of them."""


def stream(x_BD: Tensor) -> Tokens:
    return Tokens(x_BD.unsqueeze(1), torch.ones(len(x_BD), 1, dtype=torch.bool), x_BD)


def encoded(image_BD: Tensor, text_UD: Tensor, image_N: Sequence[int], text_N: Sequence[int]) -> DecoderInput:
    rows = {"vision": torch.tensor(image_N).long(), "language": torch.tensor(text_N).long()}
    return DecoderInput({"vision": stream(image_BD), "language": stream(text_UD)}, rows, None)


def make(seed: int = 0, **settings: Any) -> ContrastiveDecoder:
    torch.manual_seed(seed)
    return ContrastiveDecoder(parse_config(Config, {"width": 8, **settings}), 6, 5)


def test_dropout_is_of_what_the_encoders_give_and_in_training_alone() -> None:
    decoder = make(dropout=0.5)
    images, texts = torch.ones(64, 6), torch.ones(64, 5)
    given = encoded(images, texts, range(64), range(64))
    for embedding in decoder.eval().embed_batch(given):
        torch.testing.assert_close(embedding, embedding[:1].expand_as(embedding))
    for embedding in decoder.train().embed_batch(given):
        assert len(embedding.unique(dim=0)) > 8
    with pytest.raises(ConfigError, match=r"dropout"):
        parse_config(Config, {"dropout": 1.0})


def by_hand(
    image_BD: np.ndarray,
    text_ND: np.ndarray,
    image_N: list[int],
    text_N: list[int],
    weights_N: list[float],
    scale: float,
    lone: Sequence[int] = (),
) -> tuple[float, float, float]:
    """Loss sum, count and correct in float64, pair by pair."""
    image_BD, text_ND = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image_BD, text_ND))
    real = [n for n, weight in enumerate(weights_N) if weight > 0]
    belongs = {(image_N[n], text_N[n]) for n in real}
    loss = count = correct = 0.0
    for n in real:
        scores = {m: scale * image_BD[image_N[n]] @ text_ND[m] for m in real}
        right = {m for m in real if (image_N[n], text_N[m]) in belongs}
        images = {b: scale * image_BD[b] @ text_ND[n] for b in {*(image_N[m] for m in real), *lone}}
        right_images = {b for b in images if (b, text_N[n]) in belongs}
        for found, partners in ((scores, right), (images, right_images)):
            wrong = found.keys() - partners
            if not wrong:
                continue
            log_sum = np.log(sum(np.exp(value) for value in found.values()))
            loss += weights_N[n] / 2 * np.mean([log_sum - found[p] for p in partners])
            count += weights_N[n] / 2
            best = max(found[p] for p in partners) > max(found[w] for w in wrong)
            correct += weights_N[n] / 2 * best
    return float(loss), count, correct


@pytest.mark.parametrize(
    ("image_N", "text_N", "weights_N"),
    [
        ([0, 1, 2], [0, 1, 2], [1, 1, 1]),
        ([0, 0, 1, 2, 2, 2], [0, 1, 2, 1, 3, 4], [1, 1, 1, 1, 1, 1]),
        ([0, 0, 1, 2, 2, 2], [0, 1, 2, 1, 3, 4], [0.5, 0, 2, 1, 0, 1]),
        ([0, 1, 1, 2], [0, 0, 1, 0], [1, 1, 1, 1]),
        ([0, 0, 0], [0, 1, 2], [1, 1, 1]),
        ([2, 0, 1], [2, 1, 0], [1, 0, 0]),
    ],
)
def test_loss_is_its_formula(image_N: list[int], text_N: list[int], weights_N: list[float]) -> None:
    for seed in range(3):
        decoder = make(seed, temperature=0.2)
        image_BD, text_UD = torch.randn(3, 6), torch.randn(5, 5)
        out = decoder(encoded(image_BD, text_UD, image_N, text_N), weights_N=torch.tensor(weights_N))
        projected = [
            x.double().numpy() @ linear.weight.detach().double().numpy().T
            for x, linear in ((image_BD, decoder.image), (text_UD, decoder.text))
        ]
        expected = by_hand(projected[0], projected[1][text_N], image_N, text_N, weights_N, scale=5.0)
        assert (out.loss_sum.item(), out.count.item(), out.correct.item()) == pytest.approx(
            expected, rel=2e-6, abs=1e-6
        )
        assert out.total.item() == out.count.item()


def test_unpaired_images_are_negatives_of_every_text() -> None:
    decoder = make(temperature=0.2)
    image_BD, text_UD = torch.randn(4, 6, requires_grad=True), torch.randn(5, 5)
    image_N, text_N = [0, 0, 2], [0, 1, 2]
    given = encoded(image_BD, text_UD, image_N, text_N)
    out = decoder(given, unpaired_image_mask_B=torch.tensor([False, False, False, True]))
    projected = [
        x.detach().double().numpy() @ linear.weight.detach().double().numpy().T
        for x, linear in ((image_BD, decoder.image), (text_UD, decoder.text))
    ]
    expected = by_hand(projected[0], projected[1][text_N], image_N, text_N, [1, 1, 1], 5.0, lone=[3])
    assert (out.loss_sum.item(), out.count.item(), out.correct.item()) == pytest.approx(expected, rel=2e-6, abs=1e-6)
    assert out.loss_sum > decoder(given).loss_sum
    out.loss_sum.backward()
    assert image_BD.grad is not None
    assert image_BD.grad.any(1).tolist() == [True, False, True, True]
    assert torch.equal(
        decoder(given, unpaired_image_mask_B=torch.zeros(4, dtype=torch.bool)).loss_sum, decoder(given).loss_sum
    )


def test_equal_texts_by_their_keys_and_by_their_rows() -> None:
    decoder = make()
    image_BD, text_UD = torch.randn(3, 6), torch.randn(3, 5)
    shared = decoder(encoded(image_BD, text_UD, [0, 1, 2, 2], [0, 1, 2, 0]))
    apart = encoded(image_BD, text_UD[[0, 1, 2, 0]], [0, 1, 2, 2], [0, 1, 2, 3])
    by_key = decoder(apart, text_key_N=torch.tensor([7, -1, 9, 7]))
    torch.testing.assert_close(by_key.loss_sum, shared.loss_sum)
    assert decoder(apart).loss_sum > shared.loss_sum


def test_a_pair_of_weight_zero_is_as_if_it_were_not_there() -> None:
    decoder = make()
    image_BD, text_UD = torch.randn(4, 6), torch.randn(4, 5)
    image_BD.requires_grad_()
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    filled = decoder(encoded(image_BD, text_UD, [0, 1, 2, 3], [0, 1, 2, 3]), weights_N=weights)
    filled.loss_sum.backward()
    without = decoder(encoded(image_BD[:3], text_UD[:3], [0, 1, 2], [0, 1, 2]))
    torch.testing.assert_close(filled.loss_sum, without.loss_sum)
    assert image_BD.grad[:3].any(dim=1).all()
    assert not image_BD.grad[3].any()


@pytest.mark.parametrize("weights_N", [None, torch.ones(3)], ids=["even", "weighted"])
def test_a_missing_image_changes_nothing(weights_N: Tensor | None) -> None:
    decoder = make()
    results = []
    for filling in (torch.nan, 3.0):
        image_BD, text_UD = torch.ones(3, 6).tril(), torch.ones(3, 5).triu().requires_grad_()
        image_BD[2] = filling
        given = encoded(image_BD, text_UD, [0, 1, 2], [0, 1, 2])
        given.streams["vision"].mask_BT[2] = False
        out = decoder(given, weights_N)
        out.loss_sum.backward()
        results.append(torch.cat([out.loss_sum.view(1), out.count.view(1), text_UD.grad.flatten()]))
        assert decoder.embed_batch(given)[0][2].eq(0).all()
    assert torch.equal(*results)
    assert results[0].isfinite().all()
    assert results[0][1].item() == 2


@pytest.mark.parametrize(("images", "image_N"), [(2, []), (1, [0, 0]), (1, [0])])
def test_without_negatives_nothing_is_counted(images: int, image_N: list[int]) -> None:
    decoder = make()
    out = decoder(encoded(torch.randn(images, 6), torch.randn(2, 5), image_N, range(len(image_N))))
    out.loss_sum.backward()
    assert [value.item() for value in (out.loss_sum, out.count, out.correct, out.total)] == [0, 0, 0, 0]
    assert all(p.grad is not None and not p.grad.any() for p in decoder.parameters())


def test_collapsed_embeddings_are_not_correct() -> None:
    out = make()(encoded(torch.ones(3, 6), torch.ones(3, 5), [0, 1, 2], [0, 1, 2]))
    assert (out.correct.item(), out.count.item()) == (0, 3)


def test_the_scale_is_learned_and_limited() -> None:
    decoder = make(temperature=0.01).train()
    given = encoded(torch.randn(3, 6), torch.randn(3, 5), [0, 1, 2], [0, 1, 2])
    with torch.no_grad():
        decoder.log_scale.fill_(20.0)
    limited = decoder(given).loss_sum
    limited.backward()
    assert decoder.log_scale.exp().item() == pytest.approx(100)
    assert decoder.log_scale.grad.item() != 0
    torch.testing.assert_close(limited, make(temperature=0.01)(given).loss_sum)


def test_autocast_does_not_coarsen_the_similarities() -> None:
    decoder = make(temperature=0.01)
    given = encoded(torch.randn(8, 6), torch.randn(8, 5), range(8), range(8))
    with torch.autocast("cpu", torch.bfloat16):
        image_BD, text_ND = decoder.embed_batch(given)
        loss = decoder(given).loss_sum
    scores = 100 * image_BD @ text_ND.T
    both = torch.nn.functional.cross_entropy(scores, torch.arange(8), reduction="sum")
    both += torch.nn.functional.cross_entropy(scores.T, torch.arange(8), reduction="sum")
    torch.testing.assert_close(loss, both / 2, rtol=1e-5, atol=1e-5)


def pictures(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def captioned() -> list[Example]:
    return [Example({"image": image}, tuple(texts)) for image, texts in zip(pictures(4), CAPTIONS, strict=True)]


@pytest.fixture(scope="module")
def contrastive(processor: VLProcessor) -> VLProcessor:
    return for_tasks(processor, {"": Config()})


def tensors(processor: VLProcessor, examples: Sequence[Example]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in collate(processor, examples).items()}


def plain_model(processor: VLProcessor, decoder: dict[str, Any]) -> VLModel:
    """Without dropout and batch statistics, which differ between cuts of a batch by design."""
    torch.manual_seed(0)
    vision = {
        "kind": "vit",
        "image_size": 32,
        "patch_size": 16,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "feed_forward": 16,
    }
    return VLModel.create_from_config(tiny_tree(vision=vision, task=decoder), processor)


def test_text_keys_are_those_of_what_the_model_reads(contrastive: VLProcessor, captioned: list[Example]) -> None:
    keys = collate(contrastive, captioned)["text_key_N"].tolist()
    assert keys[1] == keys[3]
    assert len(set(keys)) == 6
    # In another batch, padded to another length, and after what is cut off anyway.
    longer = "a circle" + " red" * 20
    other = collate(contrastive, [Example(captioned[0].inputs, ("a circle", longer, longer + " there"))])["text_key_N"]
    assert other[0] == keys[1]
    assert other[1] == other[2] != other[0]
    assert collate(contrastive, [Example(captioned[0].inputs, ())])["text_key_N"].shape == (0,)


def test_nothing_is_fused_for_it(contrastive: VLProcessor, captioned: list[Example], tmp_path: Path) -> None:
    model = plain_model(contrastive, {"kind": "contrastive", "width": 8}).train()
    assert model.topology is None
    out = model(**tensors(contrastive, captioned))
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.eval().save_pretrained(tmp_path)
    loaded = VLModel.from_pretrained(tmp_path)
    batch = tensors(contrastive, captioned)
    assert torch.equal(loaded(**batch).loss_sum, model(**batch).loss_sum)


def test_answers_are_the_similarities_of_the_embeddings(contrastive: VLProcessor, captioned: list[Example]) -> None:
    predictor = Predictor(plain_model(contrastive, {"kind": "contrastive", "width": 8}), contrastive)
    embedded = predictor.embed_collated(collate(contrastive, captioned))
    assert embedded is not None
    image_BD, text_ND = embedded
    assert (image_BD.shape, text_ND.shape) == ((4, 8), (7, 8))
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(embedded), axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(text_ND[1], text_ND[3])
    predictions = predictor.predict(captioned)
    assert [len(rows) for rows in predictions] == [2, 1, 3, 1]
    rows = zip(np.repeat(range(4), [2, 1, 3, 1]), (p for of_image in predictions for p in of_image), strict=True)
    for n, (b, prediction) in enumerate(rows):
        ((name, value),) = prediction.answers
        assert name == "similarity"
        assert value == pytest.approx(float(image_BD[b] @ text_ND[n]), abs=1e-6)


def test_compiled_is_the_same(contrastive: VLProcessor, captioned: list[Example]) -> None:
    model, batch = plain_model(contrastive, {"kind": "contrastive"}).train(), tensors(contrastive, captioned)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize(
    "decoder",
    [{"kind": "contrastive"}, {"kind": "multitask", "heads": {"a": {"kind": "contrastive"}, "b": {"kind": "vqa"}}}],
)
def test_a_topology_that_encodes_text_is_refused(decoder: dict[str, Any]) -> None:
    message = f"topology.kind='single' .* task.kind='{decoder['kind']}' .* use topology.kind='dual'"
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, {"topology": {"kind": "single"}, "task": decoder})
    for tree in ({"topology": {"kind": "single"}}, {"task": decoder}):
        parse_config(ModelConfig, tree)


Case = tuple[VLModel, list[dict[str, Tensor]], list[dict[str, Tensor]]]
"""A model, the parts of a batch that two processes take, and those that one process takes one after the other."""


def _worker(rank: int, port: int, folder: str, cases: dict[str, Case]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for name, (shared, parts, _) in cases.items():
        model = copy.deepcopy(shared).train()  # spawn had moved its memory to where both processes share it
        wrapped = DistributedDataParallel(model)
        for _ in range(2):  # DDP makes other buckets after the first pass
            wrapped.zero_grad(set_to_none=False)
            out = wrapped(**parts[rank])
            out.loss_sum.backward()
        gradients = {name: p.grad * 2 for name, p in model.named_parameters()}
        sums = torch.stack([out.loss_sum.detach(), out.count, out.correct])
        dist.all_reduce(sums)
        # Evaluation, of which the workers may have different numbers of batches, is nothing that they do together.
        model.eval()
        alone = [model(**parts[0]).loss_sum.item() for _ in range(1 + rank)]
        found[name] = {"gradients": gradients, "sums": sums, "alone": alone}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def with_unpaired(processor: VLProcessor, examples: list[Example], count: int) -> dict[str, Tensor]:
    """A batch, and ``count`` further images without texts."""
    rng = np.random.default_rng(7)
    lone = [Example({"image": encode(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))}, ()) for _ in range(count)]
    unpaired_image_mask_B = torch.arange(len(examples) + count) >= len(examples)
    return tensors(processor, [*examples, *lone]) | {"unpaired_image_mask_B": unpaired_image_mask_B}


TOGETHER = ("gathered", "apart", "lone images", "some captions", "captions of one", "no captions")


@pytest.fixture(scope="module")
def cases(contrastive: VLProcessor, processor: VLProcessor, captioned: list[Example]) -> dict[str, Case]:
    model = plain_model(contrastive, {"kind": "contrastive", "width": 8})
    # Uneven images and texts, a text of both, an image without any text, a pair of weight zero.
    filler = Example(captioned[0].inputs, captioned[0].texts, weights=(0.0, 0.0))
    cut = [captioned[:1], [*captioned[1:], Example(captioned[3].inputs, ()), filler]]
    halves = [tensors(contrastive, part) for part in (captioned[:2], captioned[2:])]
    found: dict[str, Case] = {
        "gathered": (model, [tensors(contrastive, part) for part in cut], [tensors(contrastive, captioned)]),
        "lone images": (
            model,
            [with_unpaired(contrastive, captioned[:1], 0), with_unpaired(contrastive, captioned[1:], 2)],
            [with_unpaired(contrastive, captioned, 2)],
        ),
        "apart": (plain_model(contrastive, {"kind": "contrastive", "width": 8, "gather": False}), halves, halves),
    }
    # Of two tasks, where one process or both have no row of one.
    heads = {"vqa": {"kind": "vqa"}, "find": {"kind": "contrastive", "width": 8}}
    both = for_tasks(processor, {"find": Config(), "vqa": vqa.Config()})
    none = [Example(example.inputs, ()) for example in captioned]
    asked = [Example(captioned[0].inputs, ("what color?",), ("red",)), *none[1:]]
    model = plain_model(both, {"kind": "multitask", "heads": heads})
    for name, captions in zip(TOGETHER[3:], (captioned, [*none[:3], captioned[3]], none), strict=True):
        parts = []
        for some in (slice(0, 3), slice(3, 4), slice(0, 4)):
            decoded = [both.decode_inputs(example) for example in captioned[some]]
            arrays = both.collate_tasks(decoded, {"find": captions[some], "vqa": asked[some]})
            parts.append({key: torch.from_numpy(array) for key, array in arrays.items()})
        found[name] = (model, parts[:2], parts[2:])
    return found


@pytest.fixture(scope="module")
def of_two_processes(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (port, str(folder), cases), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_are_one(name: str, cases: dict[str, Case], of_two_processes: list[dict[str, Any]]) -> None:
    """Loss, counts and the gradient of every parameter, whatever rows each process has."""
    shared, _, parts = cases[name]
    model = copy.deepcopy(shared).train()
    outs = [model(**part) for part in parts]
    sum(out.loss_sum for out in outs).backward()
    expected = sum(torch.stack([out.loss_sum.detach(), out.count, out.correct]) for out in outs)
    for found in (of_rank[name] for of_rank in of_two_processes):
        torch.testing.assert_close(found["sums"], expected)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(found["gradients"][key], parameter.grad, rtol=1e-3, atol=1e-5)
    assert expected[1].item() == {"gathered": 7, "apart": 7, "lone images": 7, "some captions": 8}.get(name, 1)


def test_in_evaluation_each_process_is_alone(cases: dict[str, Case], of_two_processes: list[dict[str, Any]]) -> None:
    for name, (shared, parts, _) in cases.items():
        expected = copy.deepcopy(shared).eval()(**parts[0]).loss_sum.item()
        assert [value for of_rank in of_two_processes for value in of_rank[name]["alone"]] == pytest.approx(
            [expected] * 3
        )


def test_keys_are_needed_to_compare_with_others(
    contrastive: VLProcessor, captioned: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmodel.decoder.contrastive.is_distributed", lambda: True)
    batch = tensors(contrastive, captioned)
    del batch["text_key_N"]
    model = plain_model(contrastive, {"kind": "contrastive"}).train()
    with pytest.raises(ValueError, match=r"text_key_N is needed .* task\.gather=false"):
        model(**batch)
    assert model.eval()(**batch).count.item() == 7
