"""Rows of all data-parallel processes in one tensor, through which gradients find their way back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_distributed() -> bool:
    """Whether there are other processes to gather from."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_gather_counts(counts: Sequence[int]) -> list[list[int]]:
    """Each process's ``counts``, in the order of the ranks. A collective.

    The hosts tell each other, and wait for each other, but not for their GPUs.
    """
    mine = torch.tensor(counts)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    world: Any = dist.group.WORLD
    dist.all_gather(everyone, mine, group=_cpu_group(world))
    shared: list[list[int]] = torch.stack(everyone).tolist()
    return shared


@functools.lru_cache(maxsize=1)
def _cpu_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """The processes of ``world`` in a group that takes tensors of the host."""
    if dist.get_backend(world) == "gloo":
        return world
    of_hosts: Any = dist.new_group(backend="gloo")
    return of_hosts


def gather(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows ``x`` of all processes, in the order of the ranks. A collective, and so is its gradient.

    The gradient of a row is the sum of those that it gets in all processes: that of the sum of their losses.

    Args:
        x: (counts[rank], ...).
        counts: rows of each process, which may differ.
    """
    gathered: Tensor = _Gather.apply(x, counts)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(x)
        # Collectives want equal sizes, and some refuse empty ones.
        padded = x.new_zeros(max(1, *counts), *x.shape[1:])
        padded[: len(x)] = x
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([rows[:count] for rows, count in zip(everyone, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Reduce-scatter would send less, but the processes' rows are of different numbers.
        total = gradient.contiguous().clone()
        if total.numel():
            dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count], None
