"""Weights, gradients and moments in shards over the workers: torch's FSDP2 (``fully_shard``; Zhao et al. 2023,
arXiv:2304.11277).

A worker holds its part of each parameter. The layers of a model are each gathered when they run and freed behind it, in
the forward as in the backward pass; what is in no layer is gathered for the whole pass. Gradients are averaged over the
workers, as DDP averages them, and each worker gets those of its part.

A state for a checkpoint is gathered to rank 0, a tensor at a time, in its memory beside the device, and has the form of
a training without shards. torch.distributed.checkpoint would have each worker write its shards, in files that only such
a training reads. But the model's file must be gathered anyway, for what serves and registers it, and so one format
continues on any number of workers, with and without shards. Of a language model with adapters these are megabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from vlmodel.model import VLModel


def shard_model(model: VLModel, device: torch.device, precision: str) -> None:
    """Move a model to the device and shard it over all workers, in place, layer by layer: only one layer is ever whole
    on the device. A collective: all workers call it, with the same weights.

    Args:
        precision: of the step. With bf16 a layer's weights are gathered as such: autocast would keep a copy of each.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world: Any = dist.group.WORLD
    mesh = DeviceMesh.from_group(world, device.type)
    for parameter in model.parameters():
        # A vision encoder's are in the order of the channels.
        parameter.data = parameter.data.contiguous()
    for layer in _find_layers(model):
        has_batchnorm = any(isinstance(module, _BatchNorm) for module in layer.modules())
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        in_bf16 = precision == "bf16" and not has_batchnorm  # whose kernels take no weights of another precision
        fully_shard(layer, mesh=mesh, mp_policy=policy if in_bf16 else MixedPrecisionPolicy())
    # So that parameters are always shards outside of a pass; by default those of the root would stay whole.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return this worker's part of each tensor, which shares its memory; a tensor without shards is returned itself."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def gather_whole(tree: Any, *, keep: bool) -> Any:
    """Copy containers with whole tensors in place of shards, outside of the device. A collective: all workers call it
    with the same tree.

    Args:
        keep: whether this worker gets them; the others get None for each tensor.
    """
    return _gather(tree, keep, {})


def _gather(tree: Any, keep: bool, gathered: dict[int, Tensor | None]) -> Any:
    if isinstance(tree, Mapping):
        return {name: _gather(value, keep, gathered) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_gather(value, keep, gathered) for value in tree)
    if not isinstance(tree, Tensor):
        return tree
    # A tied tensor stays one.
    if id(tree) not in gathered:
        whole = tree.detach()
        whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
        gathered[id(tree)] = whole.to("cpu", copy=True) if keep else None
    return gathered[id(tree)]


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return this worker's shard of a whole tensor, which all workers have, sharded as ``like``; the tensor itself if
    that has no shards, or is of another shape.
    """
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    shard = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    # Its memory may be that of a file.
    return DTensor.from_local(
        shard.to_local().clone(), like.device_mesh, like.placements, run_check=False, shape=like.shape,
        stride=like.stride(),
    )  # fmt: skip


def _find_layers(model: VLModel) -> list[nn.Module]:
    """Find the layers of the model's parts, as transformers names them for each architecture, inner ones first. What is
    in none, such as all layers of timm's and torchvision's, is in the root.

    Gathering is a collective, so all workers must run a layer equally often. Those of the text encoder run once for
    each group of texts of like length, and workers have different numbers of groups.
    """
    apart = set(model.language.modules()) if model.language is not None else set()
    # A tied parameter, as of word embeddings and output, must be in one group.
    paths = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: dict[nn.Module, None] = {}
    for inner in model.modules():
        if not isinstance(inner, PreTrainedModel) or inner is model or inner in apart:
            continue
        names = set(inner._no_split_modules or ())
        for module in inner.modules():
            if type(module).__name__ in names and all(paths[id(p)] == 1 for p in module.parameters()):
                found[module] = None
    return list(reversed(found))
