"""A training in shards is that of whole copies: the same losses, updates and files, and the same refusal to go on."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pipelines.train.config import OptimizerConfig, StepConfig, TrainConfig
from pipelines.train.step import NonFiniteLossError, TrainStep
from pipelines.train.validation import evaluate
from tests.vlmodel.conftest import LABELS, encode, processor, tokenizer  # noqa: F401 - fixtures
from tests.vlmodel.tiny import batch_for, for_tasks, tiny_tree
from vlmodel import bases
from vlmodel.config import ConfigError, parse_config
from vlmodel.model import VLModel
from vlmodel.processor import Example, VLProcessor

STEPS, WORLD, MICRO_BATCHES = 3, 2, 2
HEAD: dict[str, Any] = {"kind": "llm", "width": 16, "depth": 2, "heads": 2, "positions": 64, "template": "plain",
                        "sizes": {"tie_word_embeddings": True}}  # fmt: skip
TOWER: dict[str, Any] = {"kind": "hf"}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # An odd width has shards of other sizes, and a vector is smaller than there are workers.
    "answers": ({"vision": {"projection": 15}}, {"ema": 0.9}),
    "llm": ({"vision": TOWER, "task": {"kind": "answer", "head": {**HEAD, "gradient_checkpointing": True}}}, {}),
    "adapters": ({"vision": TOWER}, {"precision": "bf16"}),
}  # fmt: skip
"""The parts of each model, and settings of its step."""


def step_of(model: VLModel, sharded: bool, **config: Any) -> TrainStep:
    optimizer = OptimizerConfig(backbone_lr=1e-2, head_lr=1e-2, warmup=0.0)
    return TrainStep(model, optimizer, StepConfig(**config), steps=STEPS + 1, seed=0, sharded=sharded)


def loaded(folder: Path) -> VLModel:
    model: VLModel = VLModel.from_pretrained(folder, base_folder=folder.parent / "model" / bases.FOLDER)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # statistics are each worker's own
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


Batches = list[list[list[dict[str, Tensor]]]]
"""By step, rank and micro-batch."""


def run(trainer: TrainStep, batches: Batches, step: int, ranks: list[int]) -> list[float]:
    """Mean loss and norm of the gradient of a step on the micro-batches of these ranks."""
    given = [one for rank in ranks for one in batches[step][rank]]
    result = trainer(step, given, len(given))
    return [float(result.totals[0] / result.totals[1]), float(result.grad_norm)]


def _worker(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    found = {name: _train(folder / name, rank, config) for name, (_, config) in MODELS.items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _train(folder: Path, rank: int, config: Mapping[str, Any]) -> dict[str, Any]:
    batches: Batches = torch.load(folder / "batches.pt", weights_only=True)
    found: dict[str, Any] = {}
    steps = {kind: step_of(loaded(folder / "model"), kind == "sharded", **config) for kind in ("whole", "sharded")}
    for kind, trainer in steps.items():
        found[kind] = [run(trainer, batches, step, [rank]) for step in range(STEPS)]
    sharded, whole = steps["sharded"], steps["whole"]
    found["layers"] = sum(isinstance(module, FSDPModule) for module in sharded.model.modules())
    found["are shards"] = all(isinstance(p, DTensor) for p in sharded.model.parameters())

    # Another worker has evaluated the last batch; this one runs along.
    val = [{name: t.numpy() for name, t in batches[0][rank][0].items()} for _ in range(2)]
    sizes = [2, 2 if rank == 0 else 0]
    for arrays, size in zip(val, sizes, strict=True):
        arrays |= {"row_B": torch.zeros(2).numpy(), "counts_B": torch.full((2,), size > 0).numpy()}
    found["val"] = [
        vars(evaluate(step.evaluated_model, given, step.autocast()))
        for step, given in ((sharded, val), (whole, val[: 2 - rank]))
    ]

    state, weights = sharded.state(), sharded.evaluated_weights()
    if rank == 0:
        torch.save(state, folder / "sharded.pt")
        listed = bases.read_base_weights_list(folder / "model")
        sharded.evaluated_model.save_pretrained(folder / "sharded", stored=listed, trained=weights)
        torch.save(whole.state(), folder / "whole.pt")
        whole.evaluated_model.save_pretrained(folder / "whole", stored=listed)
    else:
        assert not any(value is not None for value in [*state["model"].values(), *weights.values()])
    dist.barrier()

    # Each goes on from the state of the other.
    for kind, other in (("sharded", "whole"), ("whole", "sharded")):
        trainer = step_of(loaded(folder / "model"), kind == "sharded", **config)
        trainer.load_state(torch.load(folder / f"{other}.pt", weights_only=True, mmap=True))
        found[f"{kind} goes on"] = run(trainer, batches, STEPS, [rank])

    if rank == 1:
        for name, value in batches[0][1][0].items():
            if name.endswith("weights_N"):
                batches[0][1][0][name] = value * torch.nan
    run(sharded, batches, 0, [rank])
    try:
        sharded.raise_if_failed(0)
    except NonFiniteLossError:
        found["failed"] = True
    after = sharded.state()
    trained = [name for name, p in sharded.model.named_parameters() if p.requires_grad]  # BatchNorm counts its batches
    found["unchanged"] = rank > 0 or all(torch.equal(after["model"][key], state["model"][key]) for key in trained)
    return found


def make_batches(model: VLModel, processor: VLProcessor) -> Batches:  # noqa: F811
    """Micro-batches of two pictures each, with uneven numbers of questions."""
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(5)]
    texts = ["what color is the shape?", "a circle?", "is there a red circle?", "the shape?"]
    numbers = itertools.count()

    def batch() -> dict[str, Tensor]:
        examples = []
        for number in (next(numbers), next(numbers)):
            asked = tuple(texts[: 1 + number % 4])
            answers = tuple(LABELS[(number + n) % 4] for n in range(len(asked)))
            examples.append(Example({"image": images[number % 5]}, asked, answers))
        return batch_for(processor, model.tasks, examples)

    return [[[batch() for _ in range(MICRO_BATCHES)] for _ in range(WORLD)] for _ in range(STEPS + 1)]


@pytest.fixture(scope="module")
def trained(
    processor: VLProcessor,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of all models, and what each of two workers found."""
    folder = tmp_path_factory.mktemp("sharding")
    for name, (parts, _) in MODELS.items():
        if name == "adapters":
            pretrained = {"kind": "llm", "pretrained": str(folder / "pretrained"), "training": "lora"}
            parts = {**parts, "task": {"kind": "answer", "head": {**pretrained, "template": "plain"}}}
        torch.manual_seed(0)
        tree = tiny_tree(**parts)
        model: Any = VLModel.create_from_config(tree, for_tasks(processor, tree.task.tasks_by_name(), tree))
        if name == "llm":
            model.decoder.inner.save_pretrained(folder / "pretrained")
        model.save_pretrained(folder / name / "model")
        torch.save(make_batches(model, processor), folder / name / "batches.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (port, folder), nprocs=WORLD)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", MODELS)
def test_shards_make_the_steps_of_whole_copies(name: str, trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, by_rank = trained
    bf16 = MODELS[name][1].get("precision") == "bf16"
    near: dict[str, Any] = {"rel": 5e-2} if bf16 else {"rel": 1e-5, "abs": 1e-5}
    for found in (one[name] for one in by_rank):
        assert found["are shards"]
        for sharded, whole in zip(found["sharded"], found["whole"], strict=True):
            assert sharded == pytest.approx(whole, **near)
        assert found["sharded goes on"] == pytest.approx(found["whole goes on"], **near)
        for metric in ("loss", "units", "images", *(() if bf16 else ("accuracy",))):
            assert found["val"][0][metric] == pytest.approx(found["val"][1][metric], **near)
    # The root, two layers of the language model, embeddings and layer of the tower.
    assert by_rank[0][name]["layers"] == (1 if name == "answers" else 5)
    one, other = (load_file(folder / name / kind / "model.safetensors") for kind in ("sharded", "whole"))
    assert one.keys() == other.keys()
    assert all(one[key].shape == value.shape for key, value in other.items())
    if not bf16:
        for key, value in ((key, value) for key, value in other.items() if value.is_floating_point()):
            # Adam makes a whole step of a gradient that is zero but for rounding.
            assert (one[key] - value).abs().mean() < 1e-4, key


@pytest.mark.parametrize("name", MODELS)
def test_a_state_of_shards_goes_on_without_them(name: str, trained: tuple[Path, list[dict[str, Any]]]) -> None:
    """In one process, on the micro-batches of both."""
    folder, by_rank = trained
    config = MODELS[name][1]
    batches: Batches = torch.load(folder / name / "batches.pt", weights_only=True)
    alone = step_of(loaded(folder / name / "model"), True, **config)
    assert not alone.sharded
    alone.load_state(torch.load(folder / name / "sharded.pt", weights_only=True))
    found = run(alone, batches, STEPS, [0, 1])
    assert found == pytest.approx(by_rank[0][name]["whole goes on"], rel=5e-2 if "precision" in config else 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_shards_is_loaded_as_any(name: str, trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = trained
    model = loaded(folder / name / "sharded")
    assert model.config.architectures == ["VLModel"]
    batches: Batches = torch.load(folder / name / "batches.pt", weights_only=True)
    with torch.no_grad():
        assert model.eval()(**batches[0][0][0]).loss.isfinite()


@pytest.mark.parametrize("name", MODELS)
def test_a_worker_with_a_nan_stops_all_before_the_update(name: str, trained: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in (one[name] for one in trained[1]):
        assert found["failed"]
        assert found["unchanged"]


def test_a_compiled_model_is_not_sharded() -> None:
    with pytest.raises(ConfigError, match=r"sharding='fsdp2'.*set step\.compile to false"):
        parse_config(TrainConfig, {"sharding": "fsdp2", "step": {"compile": True}})
