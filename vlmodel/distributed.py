"""Gathers tensors from all data-parallel processes, with gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_distributed() -> bool:
    """Whether torch.distributed runs with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_gather_counts(counts: Sequence[int]) -> list[list[int]]:
    """Gather the ``counts`` of each process, in the order of the ranks. The collective runs on CPUs, so it waits for no
    GPU.
    """
    own = torch.tensor(counts)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    world: Any = dist.group.WORLD
    dist.all_gather(gathered, own, group=_cpu_process_group(world))
    return [of_rank.tolist() for of_rank in gathered]


@functools.lru_cache(maxsize=1)
def _cpu_process_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Create a process group of the same processes that transfers CPU tensors."""
    if dist.get_backend(world) == "gloo":
        return world
    group: Any = dist.new_group(backend="gloo")
    return group


def all_gather_rows(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the rows ``x`` of all processes in the order of the ranks, with gradients. Forward and backward are
    collectives.

    The gradient of a row is the sum of its gradients in all processes, as for the sum of their losses.

    Args:
        x: (counts[rank], ...).
        counts: rows of each process, which may differ.
    """
    gathered: Tensor = _AllGatherRows.apply(x, counts)
    return gathered


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(x)
        # Collectives need equal sizes, and some refuse empty ones.
        padded = x.new_zeros(max(1, *counts), *x.shape[1:])
        padded[: len(x)] = x
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Reduce-scatter would send less, but the processes have different numbers of rows.
        total = gradient.contiguous().clone()
        if total.numel():
            dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count], None
