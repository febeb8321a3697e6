"""No part of a training step makes the host wait for the device: it would stand still until all queued work is done."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from pipelines.train.config import OptimizerConfig, StepConfig
from pipelines.train.ema import EMA
from pipelines.train.prefetcher import arrays_to_tensors
from pipelines.train.step import TrainStep
from tests.vlmodel.tiny import as_rows, for_tasks, tiny_tree
from vlmodel import lengths
from vlmodel.config import list_part_kinds
from vlmodel.model import VLModel
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten._unique2, aten.bincount, aten.equal, aten.masked_select, aten.nonzero,
    aten.unique_consecutive, aten.unique_dim,
}  # fmt: skip
"""What gives the host a value, or a shape that depends on one; ``item``, ``tolist``, ``bool`` and ``if`` end there."""
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}

SMALL = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0}
DECODERS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in list_part_kinds("vlmodel.tasks") if kind != "multitask"},
    "multitask": {
        "kind": "multitask",
        "heads": {
            "ask": {"kind": "vqa"}, "tell": {"kind": "caption", "head": SMALL},
            "near": {"kind": "contrastive", "width": 16},
        },
    },
}  # fmt: skip


class Waiting(TorchDispatchMode):
    """Refuses operations for which the host would wait for a GPU, if the tensors of ``device`` were there."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        devices = {value.device.type for value in args if isinstance(value, Tensor)}
        waits = packet in WAITS or (packet is aten.repeat_interleave and kwargs.get("output_size") is None)
        waits |= packet in BY_INDEX and any(t is not None and t.dtype == torch.bool for t in args[1])
        if (target := kwargs.get("device")) is not None:
            devices.add(torch.device(target).type)
        # What is not pinned is copied at once, and after all that was queued before it.
        waits |= packet in (aten._to_copy, aten.copy_) and len(devices) > 1
        if waits and self.device in devices:
            raise AssertionError(f"the host would wait for {func}")
        return func(*args, **kwargs)


class Reading(TorchFunctionMode):
    """Refuses what reads a tensor's memory without an operation of torch's, and would fetch it from a GPU first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            raise AssertionError(f"the host would wait for {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        with Waiting(), Reading():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def writing_processor(tiny_processor: VLProcessor) -> VLProcessor:
    """One that can begin and end a text, and groups texts by length."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_processor.tokenizer.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        bos_token="what", eos_token="is",
    )  # fmt: skip
    config = ProcessorConfig(image_size=32, max_tokens=8, length_groups=2)
    return VLProcessor(config, tokenizer, tiny_processor.labels)


def batch_on(device: torch.device, processor: VLProcessor, model: VLModel) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    asked = (("this", "what is this colour", "colour is this what is"), ("what colour", "this", "is this what"))
    examples = [Example({"image": file.getvalue()}, texts, ("red", "blue", "this is")) for texts in asked]
    tasks = model.tasks
    made = for_tasks(processor, tasks)
    rows = {task: [as_rows(example, fields) for example in examples] for task, fields in tasks.items()}
    return arrays_to_tensors(made.collate_tasks([made.decode_inputs(example) for example in examples], rows), device)


@pytest.mark.parametrize("ema", [0.0, 0.9])
# The masks that transformers makes for a language model look whether all tokens are real, and so wait.
@pytest.mark.parametrize("decoder", sorted(DECODERS.keys() - {"converse"}))
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU"))])  # fmt: skip
def test_a_step_waits_for_nothing(
    device: str, decoder: str, ema: float, writing_processor: VLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu" and ema:
        pytest.skip("the average's counter is the host's own, which on the CPU looks like the device's")
    monkeypatch.setattr(lengths, "MIN_SAVED_SHARE", 0.0)
    monkeypatch.setattr(lengths, "MIN_SAVED_TOKENS", 0)
    place = torch.device(device)
    tree = tiny_tree(
        task={"head": SMALL, **DECODERS[decoder]} if decoder in ("answer", "caption") else DECODERS[decoder]
    )
    model = VLModel.create_from_config(tree, for_tasks(writing_processor, tree.task.tasks_by_name())).to(place)
    step = TrainStep(model, OptimizerConfig(), StepConfig(ema=ema), steps=10, seed=0)
    batch = batch_on(place, writing_processor, model)
    assert all(len(groups) == 2 for name, groups in batch.items() if name.endswith("G3"))
    step(0, [batch], 1)  # the first one makes the optimizer's state
    with no_waiting(place):
        result = step(1, [batch, batch], 2)
    assert result.totals[0].isfinite()


def test_the_check_sees_what_waits() -> None:
    x = torch.arange(3.0)
    waits: list[Callable[[], object]] = [
        lambda: x[0].item(), lambda: bool(x.any()), x.tolist, lambda: x[x > 1], lambda: x.nonzero(),
        lambda: torch.equal(x, x), lambda: x.repeat_interleave(torch.tensor([1, 2, 3])), lambda: x.to("meta"),
    ]  # fmt: skip
    for wait in waits:
        with no_waiting(torch.device("cpu")), pytest.raises(AssertionError, match="the host would wait"):
            wait()


def test_the_average_waits_for_nothing() -> None:
    """Its counter is the host's; a meta tensor stands for the device, and has no values to be asked for."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to("meta")
    average = EMA(model, 0.9)
    for _ in range(2):
        with Waiting("meta"):
            average.update_parameters(model)
    assert average.updates == 2


def test_the_average_is_its_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = EMA(model, 0.75)
    expected: list[Tensor] = []
    for number in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model(torch.randn(4, 3))
        average.update_parameters(model)
        now = [t.detach().double() for t in (*model.parameters(), model[1].running_mean, model[1].running_var)]
        expected = now if number == 0 else [0.75 * old + 0.25 * new for old, new in zip(expected, now, strict=True)]
    inner = average.module
    for found, value in zip((*inner.parameters(), inner[1].running_mean, inner[1].running_var), expected, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
    assert inner[1].num_batches_tracked.item() == 3
