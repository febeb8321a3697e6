"""One step: the same update however the global batch is cut, and none at all once something is not finite."""

from __future__ import annotations

import copy
import os
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pipelines.train.config import OptimizerConfig, StepConfig
from pipelines.train.optim import build_optimizer, learning_rate_factor
from pipelines.train.step import WEIGHT_ALIGNMENT, NonFiniteLossError, TrainStep
from tests.pipelines.train.conftest import TINY, images_and_texts
from vlmodel import bases
from vlmodel.config import load_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import VLProcessor

TEXTS = [1, 7, 2, 2]
"""Questions of the images of a batch: uneven, so that a mean of means would be wrong."""


def without_dropout(model: VLModel) -> VLModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def without_noise(model: VLModel) -> VLModel:
    """Dropout and batch statistics differ between cuts by design; everything else must not."""
    for module in without_dropout(model).modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = True, *_unit(module.num_features)
            module.train = lambda mode=True, m=module: torch.nn.Module.train(m, False)  # type: ignore[method-assign,misc,assignment]
    return model


def _unit(features: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(features), torch.ones(features)


def step_of(model: VLModel, steps: int = 10, **config: object) -> TrainStep:
    optimizer = OptimizerConfig(backbone_lr=1e-2, head_lr=1e-2, warmup=0.0, weight_decay=0.0)
    return TrainStep(model, optimizer, StepConfig(**config), steps=steps, seed=0)  # type: ignore[arg-type]


def micro_batch(batch: dict[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """Images ``first`` to ``last`` of a batch with their texts."""
    texts = (batch["sample_N"] >= first) & (batch["sample_N"] < last)
    cut = {name: t[texts] for name, t in batch.items() if name.endswith(("N", "NT"))}
    return {"image.pixels_BHWC": batch["image.pixels_BHWC"][first:last], **cut, "sample_N": cut["sample_N"] - first}


def weights(model: VLModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(trainer: TrainStep) -> dict[str, Tensor]:
    """The gradient of the first update, from Adam's first moment: the update itself is nearly its sign."""
    return {name: trainer.optimizer.state[p]["exp_avg"].clone() for name, p in trainer.model.named_parameters()}


def test_accumulation_makes_the_same_update(tiny_model: Callable[[], VLModel]) -> None:
    batch = images_and_texts(4, TEXTS)
    whole, cut = step_of(without_noise(tiny_model())), step_of(without_noise(tiny_model()))
    one = whole(0, [batch], 1)
    two = cut(0, [micro_batch(batch, 0, 1), micro_batch(batch, 1, 4)], 2)
    torch.testing.assert_close(one.totals, two.totals)
    torch.testing.assert_close(one.grad_norm, two.grad_norm, rtol=1e-4, atol=1e-6)
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(cut)[name], value, rtol=1e-4, atol=1e-7)


def test_small_weights_change_nothing_but_the_shares(tiny_model: Callable[[], VLModel]) -> None:
    """A loss is a weighted mean, so weights that are all a hundredth make the same update."""
    batch = images_and_texts(4, TEXTS)
    found = []
    for weight in (1.0, 0.01):
        trainer = step_of(without_noise(tiny_model()))
        weighted = {**batch, "weights_N": torch.full((sum(TEXTS),), weight)}
        result = trainer(0, [weighted], 1)
        found.append((float(result.totals[0] / result.totals[1]), float(result.grad_norm)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_batch_of_which_nothing_counts_is_no_failure(tiny_model: Callable[[], VLModel]) -> None:
    """Every answer is outside the vocabulary, say."""
    batch = images_and_texts(4, TEXTS)
    trainer = step_of(without_noise(tiny_model()))
    before = weights(trainer.model)
    result = trainer(0, [{**batch, "labels_N": torch.full((sum(TEXTS),), -1)}], 1)
    trainer.raise_if_failed(0)
    assert (float(result.totals[1]), float(result.grad_norm)) == (0, 0)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer.model).items())


def test_steps_on_kept_features_are_those_on_images(tiny_processor: VLProcessor) -> None:
    tree = load_config(ModelConfig, None, [*TINY, "vision.frozen=true"])
    trainers = []
    for _ in range(2):
        torch.manual_seed(0)
        trainers.append(step_of(VLModel.create_from_config(tree, tiny_processor)))
    seeing, remembering = trainers
    for step in range(4):
        batch = images_and_texts(4, TEXTS, seed=step)
        kept = {name: value for name, value in batch.items() if name != "image.pixels_BHWC"}
        kept["image.features_BF"] = remembering.model.vision.compute_features(batch["image.pixels_BHWC"])
        found = [t(step, [b], 1) for t, b in ((seeing, batch), (remembering, kept))]
        # Not weights: Adam makes a whole update of a gradient that is zero but for rounding, as that of a key's bias.
        torch.testing.assert_close(found[0].totals, found[1].totals, rtol=1e-5, atol=0)
        torch.testing.assert_close(found[0].grad_norm, found[1].grad_norm, rtol=1e-4, atol=0)


FROZEN = [*TINY, "vision.frozen=true", "language.frozen_layers=1"]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_is_frozen_is_neither_averaged_nor_in_the_state(tiny_processor: VLProcessor, ema: float) -> None:
    trainer = step_of(VLModel.create_from_config(load_config(ModelConfig, None, FROZEN), tiny_processor), ema=ema)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for number in range(3):
        trainer(number, [images_and_texts(4, TEXTS, seed=number)], 1)
    frozen = bases.frozen_tensor_names(trainer.model)
    assert {name.split(".")[0] for name in frozen} == {"vision", "language"}
    now, evaluated = trainer.model.state_dict(), trainer.evaluated_model.state_dict()
    for name in frozen:
        assert torch.equal(now[name], before[name]), name
        assert evaluated[name].data_ptr() == now[name].data_ptr(), "one copy for both"
    assert not torch.equal(now["vision.projection.weight"], before["vision.projection.weight"])
    assert (evaluated["vision.projection.weight"].data_ptr() != now["vision.projection.weight"].data_ptr()) == bool(ema)
    state = trainer.state()
    assert state["model"].keys() == now.keys() - frozen
    assert not ema or state["average"]["weights"].keys() == now.keys() - frozen
    with pytest.raises(ValueError, match="of a model with other trained weights"):
        step_of(VLModel.create_from_config(load_config(ModelConfig, None, TINY), tiny_processor)).load_state(state)


def without_images(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same samples, none of which has an image."""
    images = len(batch["image.pixels_BHWC"])
    return batch | {
        "image.pixels_BHWC": batch["image.pixels_BHWC"][:0],
        "image.place_B": torch.zeros(images, dtype=torch.long),
    }


def _worker(
    rank: int,
    port: int,
    folder: str,
    batch: dict[str, Tensor],
    model: VLModel,
    poison: bool,
    shared: bool,
    blind: Sequence[int],
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = copy.deepcopy(model)  # spawn had moved its memory to where both processes share it
    trainer = step_of(without_dropout(model), sync_batchnorm=True) if shared else step_of(without_noise(model))
    mine = micro_batch(batch, 0, 1) if rank == 0 else micro_batch(batch, 1, 4)
    if rank in blind:
        mine = without_images(mine)
    if poison and rank == 1:
        mine["weights_N"] = mine["weights_N"] * torch.nan
    result = trainer(0, [mine], 1)
    try:
        trainer.raise_if_failed(0)
        failed = False
    except NonFiniteLossError:
        failed = True
    found = {"weights": weights(trainer.model), "totals": result.totals, "failed": failed}
    found["buffers"] = dict(trainer.model.named_buffers())
    torch.save(found | {"gradients": gradients(trainer)}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(
    folder: Path,
    model: VLModel,
    batch: dict[str, Tensor],
    poison: bool = False,
    shared: bool = False,
    blind: Sequence[int] = (),
) -> list[dict[str, object]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (port, str(folder), batch, model, poison, shared, blind), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_workers_make_the_same_update_as_one(tiny_model: Callable[[], VLModel], tmp_path: Path) -> None:
    batch = images_and_texts(4, TEXTS)
    alone = step_of(without_noise(tiny_model()))
    expected = alone(0, [batch], 1)
    for found in in_two_processes(tmp_path, tiny_model(), batch, poison=False):
        assert not found["failed"]
        torch.testing.assert_close(found["totals"], expected.totals)
        for name, value in gradients(alone).items():
            torch.testing.assert_close(found["gradients"][name], value, rtol=1e-4, atol=1e-7)  # type: ignore[index]


def test_shared_batchnorm_makes_two_workers_one(tiny_model: Callable[[], VLModel], tmp_path: Path) -> None:
    batch = images_and_texts(4, TEXTS)
    alone = step_of(without_dropout(tiny_model()))
    expected = alone(0, [batch], 1)
    for found in in_two_processes(tmp_path, tiny_model(), batch, shared=True):
        torch.testing.assert_close(found["totals"], expected.totals)
        for name, value in gradients(alone).items():
            torch.testing.assert_close(found["gradients"][name], value, rtol=2e-3, atol=1e-6)  # type: ignore[index]
        for name, value in alone.model.named_buffers():
            torch.testing.assert_close(found["buffers"][name], value, rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_a_worker_without_images_takes_part(tiny_model: Callable[[], VLModel], tmp_path: Path) -> None:
    batch = images_and_texts(4, TEXTS)
    mixed = batch | {"image.pixels_BHWC": batch["image.pixels_BHWC"][1:], "image.place_B": torch.tensor([3, 0, 1, 2])}
    alone = step_of(without_dropout(tiny_model()))
    expected = alone(0, [mixed], 1)
    for found in in_two_processes(tmp_path, tiny_model(), batch, shared=True, blind=[0]):
        torch.testing.assert_close(found["totals"], expected.totals)
        for name, value in gradients(alone).items():
            torch.testing.assert_close(found["gradients"][name], value, rtol=2e-3, atol=1e-6)  # type: ignore[index]
        for name, value in alone.model.named_buffers():
            torch.testing.assert_close(found["buffers"][name], value, rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_workers_without_any_image_leave_shared_statistics_alone(
    tiny_model: Callable[[], VLModel], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in tiny_model().named_buffers() if "running" in name}
    assert before
    for found in in_two_processes(tmp_path, tiny_model(), images_and_texts(4, TEXTS), shared=True, blind=[0, 1]):
        assert not found["failed"]
        assert found["totals"][1] == found["totals"][3] == sum(TEXTS)  # type: ignore[index]
        for name, value in before.items():
            assert torch.equal(found["buffers"][name], value)  # type: ignore[index]
        for name, value in found["gradients"].items():  # type: ignore[attr-defined]
            assert value.isfinite().all()
            assert not (name.startswith("vision.") and value.any())


def test_one_worker_with_a_nan_stops_all_before_the_update(tiny_model: Callable[[], VLModel], tmp_path: Path) -> None:
    model = tiny_model()
    before = weights(model)
    for found in in_two_processes(tmp_path, model, images_and_texts(4, TEXTS), poison=True):
        assert found["failed"]
        for name, value in before.items():
            assert torch.equal(found["weights"][name], value)  # type: ignore[index]


def test_after_a_failure_no_later_step_updates(tiny_model: Callable[[], VLModel]) -> None:
    trainer = step_of(tiny_model())
    good, bad = images_and_texts(4, TEXTS), images_and_texts(4, TEXTS)
    bad["weights_N"] = bad["weights_N"] * torch.inf
    trainer(0, [bad], 1)
    before = weights(trainer.model)
    trainer(1, [good], 1)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer.model).items())
    with pytest.raises(NonFiniteLossError, match=r"before step 1.*Lower"):
        trainer.raise_if_failed(1)


def test_a_step_continues_from_its_state_bit_for_bit(tiny_model: Callable[[], VLModel]) -> None:
    batches = [images_and_texts(4, TEXTS, seed) for seed in range(4)]
    straight, first = step_of(tiny_model(), ema=0.9), step_of(tiny_model(), ema=0.9)
    for step, batch in enumerate(batches):
        straight(step, [batch], 1)
    for step in (0, 1):
        first(step, [batches[step]], 1)
    torch.manual_seed(12345)  # whatever happened to the generator in between
    second = step_of(tiny_model(), ema=0.9)
    second.load_state(first.state())
    for step in (2, 3):
        second(step, [batches[step]], 1)
    for one, other in ((straight.model, second.model), (straight.evaluated_model, second.evaluated_model)):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


def test_weights_of_a_file_make_the_same_step_as_new_ones(tiny_model: Callable[[], VLModel]) -> None:
    """Those of a file begin at any address, which a product with a single row depends on."""
    batch = images_and_texts(1, [1])
    new, read = without_dropout(tiny_model()), without_dropout(tiny_model())
    for tensor in (*read.parameters(), *read.buffers()):
        if tensor.is_floating_point():
            room = torch.empty(tensor.numel() + 1)
            tensor.data = room[1:].view(tensor.shape).copy_(tensor.data)
    assert any(p.data_ptr() % WEIGHT_ALIGNMENT for p in read.parameters())
    trainers = [step_of(model) for model in (new, read)]
    for trainer in trainers:
        trainer(0, [batch], 1)
    assert not any(p.data_ptr() % WEIGHT_ALIGNMENT for p in read.parameters())
    for name, value in gradients(trainers[0]).items():
        assert torch.equal(gradients(trainers[1])[name], value), name


def test_the_model_learns(tiny_model: Callable[[], VLModel]) -> None:
    trainer = step_of(tiny_model(), steps=40)
    figures = [trainer(step, [images_and_texts(8, [2] * 8, step)], 1).totals for step in range(40)]
    first, last = (sum(f[0] / f[1] for f in some) / 5 for some in (figures[:5], figures[-5:]))
    assert last < 0.5 * first


def test_schedule_warms_up_and_ends_low() -> None:
    config = OptimizerConfig(warmup=0.25, final=0.1)
    factors = [learning_rate_factor(step, 100, config) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 25)
    assert factors[24] == pytest.approx(1.0)
    assert factors[25:] == sorted(factors[25:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=1e-2)


def test_layers_near_the_input_learn_more_slowly(
    tmp_path: Path, tiny_model: Callable[[], VLModel], tiny_processor: VLProcessor
) -> None:
    new: Any = tiny_model()
    new.language.encoder.save_pretrained(tmp_path)
    model: Any = VLModel.create_from_config(
        load_config(ModelConfig, None, [*TINY, f"language.pretrained={tmp_path}"]), tiny_processor
    )
    optimizer = build_optimizer(model, OptimizerConfig(backbone_lr=0.1, head_lr=0.2, layer_decay=0.5))
    rates = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    encoder = model.language.encoder
    depth = len(encoder.encoder.layer)
    assert rates[id(encoder.embeddings.word_embeddings.weight)] == pytest.approx(0.1 * 0.5 ** (depth + 1))
    for number, layer in enumerate(encoder.encoder.layer):
        (rate,) = {rates[id(p)] for p in layer.parameters()}
        assert rate == pytest.approx(0.1 * 0.5 ** (depth - number))
    assert {rates[id(p)] for p in model.head_parameters()} == {0.2}
    assert optimizer.param_groups[-1]["peak_lr"] == 0.2  # the rate that is shown
    assert len(rates) == sum(p.requires_grad for p in model.parameters())


def test_parameters_are_numbered_the_same_in_every_process(tiny_model: Callable[[], VLModel]) -> None:
    """By these numbers a checkpoint stores the optimizer's state."""
    model = tiny_model()
    shuffled = list(model.parameters())
    random.Random(0).shuffle(shuffled)
    model.backbone_layers = lambda: iter([[shuffled]])  # type: ignore[method-assign]
    model.head_parameters = lambda: iter([])  # type: ignore[method-assign]
    place = {id(parameter): n for n, parameter in enumerate(model.parameters())}
    for group in build_optimizer(model, OptimizerConfig()).param_groups:
        places = [place[id(parameter)] for parameter in group["params"]]
        assert places == sorted(places)


def test_matrices_decay_and_vectors_do_not(tiny_model: Callable[[], VLModel]) -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3))
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    positions = {id(p) for name, p in model.named_parameters() if "position_embeddings" in name}
    assert positions
    assert positions <= decayed
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
