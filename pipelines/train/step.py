"""One optimizer step: forward and backward over the rank's micro-batches, then one update.

The loss of a step is the mean over all counted texts of the global batch: each backward pass runs on the sum of its
micro-batch's losses, and the summed gradient is divided once by the global count. So neither the number of workers nor
accumulation changes the objective, however unevenly texts are distributed over images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pipelines.data.stream.plan import derive_seed
from pipelines.train import sharding
from pipelines.train.batchnorm import synchronize_batchnorm
from pipelines.train.config import OptimizerConfig, StepConfig
from pipelines.train.ema import EMA
from pipelines.train.optim import build_optimizer, learning_rate_factor
from pipelines.train.teacher import Teacher, select_student_arrays
from vlmodel import bases
from vlmodel.errors import ExpectedError
from vlmodel.model import VLModel

WEIGHT_ALIGNMENT = 64
"""Bytes; torch's own allocator begins each tensor in CPU memory at a multiple of it."""


class NonFiniteLossError(ExpectedError, RuntimeError):
    """The loss or the gradient is not finite. No rank made the update."""


@dataclass(frozen=True)
class StepResult:
    """Sums over the global batch, still on the device.

    Attributes:
        totals: loss sum, count, correct, number of counted texts; float64 scalars in one tensor.
        grad_norm: norm of the mean gradient before clipping.
        lr: learning rate of the last group (the head's).
    """

    totals: Tensor
    grad_norm: Tensor
    lr: float


class TrainStep:
    """Holds the model, its optimizer and its EMA. Each call runs one global step. Independent of Ray.

    Args:
        model: is moved to the device.
        sharded: shard weights, gradients and moments over the workers (``pipelines.train.sharding``); of one worker it
            changes nothing.
        device: where it trains; where it is if not given.
        steps: global steps of the whole training, for the schedule.
        teacher: whose answers are learned, too; on the same device.
    """

    def __init__(
        self,
        model: VLModel,
        optimizer: OptimizerConfig,
        config: StepConfig,
        *,
        steps: int,
        seed: int,
        teacher: Teacher | None = None,
        sharded: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.teacher = teacher
        self.distributed = dist.is_initialized() and dist.get_world_size() > 1
        self.world = dist.get_world_size() if self.distributed else 1
        self.rank = dist.get_rank() if self.distributed else 0
        if config.sync_batchnorm and self.distributed:
            synchronize_batchnorm(model)
        self.sharded = sharded and self.distributed
        self.model = model.train()
        self.device = device or next(model.parameters()).device
        if not self.sharded:
            model.to(self.device)  # type: ignore[arg-type]
        align_weights(model)
        self.steps, self.seed = steps, seed
        self.config, self.schedule = config, optimizer
        self._frozen = bases.frozen_tensor_names(model)
        self.average = EMA(model, config.ema, self._frozen) if config.ema else None
        if self.sharded:
            # Copied before, as what is sharded cannot be.
            for whole in dict.fromkeys((model, self.evaluated_model)):
                sharding.shard_model(whole, self.device, config.precision)
        self.optimizer = build_optimizer(model, optimizer)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        forward: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
        # Buffers are broadcast from rank 0 before they are read (broadcast_buffers), not in each forward pass.
        self.forward = (
            DistributedDataParallel(forward, gradient_as_bucket_view=True, forward_sync_buffers=False)
            if self.distributed and not self.sharded
            else forward
        )
        # Once set it stays set, so that no later update runs before the host reads it.
        self._failed = torch.zeros((), device=self.device)

    @property
    def evaluated_model(self) -> VLModel:
        """The model whose weights are evaluated, stored and served: the EMA if there is one."""
        return cast(VLModel, self.average.module) if self.average is not None else self.model

    def __call__(self, step: int, micro_batches: Iterable[Mapping[str, Any]], n_micro_batches: int) -> StepResult:
        """Run global step ``step`` over this rank's ``n_micro_batches`` micro-batches (collated, on the device).

        Every rank must call this for the same step with the same number.
        """
        # Dropout depends only on (seed, step, rank): a restart needs no stored random state.
        torch.manual_seed(derive_seed(self.seed, step, self.rank, "step") % 2**63)
        totals = torch.zeros(4, dtype=torch.float64, device=self.device)
        for number, micro_batch in enumerate(micro_batches, start=1):
            with self._gradient_sync(number == n_micro_batches):
                with self.autocast():
                    out = self.forward(**select_student_arrays(micro_batch))
                    loss_sum = out.loss_sum
                    if self.teacher is not None:
                        loss_sum = self.teacher.loss_sum(loss_sum, out.logits_NK, micro_batch)
                loss_sum.backward()
            sums = [
                loss_sum.detach().double(),
                out.count.double(),
                out.correct.double(),
                _count_texts(select_student_arrays(micro_batch), self.device),
            ]
            totals += torch.stack(sums)
        if self.distributed:
            dist.all_reduce(totals)
        factor = learning_rate_factor(step, self.steps, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        grad_norm = self._update_weights(totals)
        return StepResult(totals, grad_norm, self.optimizer.param_groups[-1]["lr"])

    def raise_if_failed(self, step: int) -> None:
        """Raise NonFiniteLossError on all ranks if the failure flag is set. Waits for the device."""
        if self._failed.item():
            raise NonFiniteLossError(
                f"loss or gradient is not finite at or before step {step}; no update was made from there on. Lower "
                "train.optimizer.head_lr / backbone_lr or clip, use precision fp32, or look at the step's data"
            )

    def broadcast_buffers(self) -> None:
        """Broadcast rank 0's BatchNorm statistics, which are those in a checkpoint, to all workers."""
        if self.distributed:
            for buffer in self.evaluated_model.buffers():
                dist.broadcast(buffer, 0)

    def autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _gradient_sync(self, last: bool) -> AbstractContextManager[object]:
        if isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return nullcontext()

    @torch.no_grad()
    def _update_weights(self, totals: Tensor) -> Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # They are averages over all ranks; this rescales them to the mean over the global batch's texts.
        # If nothing is counted the gradient is zero, and must not be multiplied by infinity.
        scale = torch.where(totals[1] > 0, self.world / totals[1], 0.0).float()
        norm = nn.utils.get_total_norm(gradients)
        grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm) * scale
        finite = torch.isfinite(grad_norm) & torch.isfinite(totals[0])
        self._failed = torch.maximum(self._failed, (~finite).float())
        torch._foreach_mul_(
            sharding.local_tensors(gradients), scale * (self.schedule.clip / (grad_norm + 1e-6)).clamp(max=1.0)
        )
        # Fused AdamW skips the update on the device if found_inf is set, without waiting for the host (as GradScaler).
        self.optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not isinstance(self.forward, DistributedDataParallel))
        if self.average is not None:
            self.average.update_parameters(self.model)
        return grad_norm

    def state(self) -> dict[str, Any]:
        """Return the state from which training continues bit for bit: tensors and plain containers, without frozen
        weights. Of a sharded model this is a collective, and rank 0 gets the state.
        """
        named = self.model.state_dict(keep_vars=self.sharded)  # a tied tensor then has one identity
        trained = {name: value for name, value in named.items() if name not in self._frozen}
        average = self.average.state() if self.average is not None else None
        state = {"model": trained, "optimizer": self.optimizer.state_dict(), "average": average}
        return sharding.gather_whole(state, keep=self.rank == 0) if self.sharded else state

    def evaluated_weights(self) -> dict[str, Tensor]:
        """Return the trained tensors of ``evaluated_model`` by name; of a sharded model as ``state``."""
        named = self.evaluated_model.state_dict(keep_vars=self.sharded)
        trained: dict[str, Tensor] = {name: value for name, value in named.items() if name not in self._frozen}
        return sharding.gather_whole(trained, keep=self.rank == 0) if self.sharded else trained

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``; the model must have the same configuration and the same frozen weights.

        Raises:
            ValueError: it has other weights to train.
        """
        if self.sharded:
            state = self._shard_state(state)
        missing, unexpected = self.model.load_state_dict(state["model"], strict=False)
        if others := sorted({*unexpected, *missing} - self._frozen):
            names = ", ".join(others[:3])
            raise ValueError(f"the state is of a model with other trained weights ({names}); give it that model's step")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state(state["average"])

    def _shard_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the tensors of a whole state by this worker's shards of them."""

        def shard_named(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
            own = model.state_dict()
            return {name: sharding.shard_like(value, own.get(name, value)) for name, value in tensors.items()}

        moments = {
            number: {name: sharding.shard_like(value, self.parameters[number]) for name, value in values.items()}
            for number, values in state["optimizer"]["state"].items()
        }
        average = state["average"]
        if average is not None and self.average is not None:
            average = {**average, "weights": shard_named(average["weights"], self.average.module)}
        return {
            "model": shard_named(state["model"], self.model),
            "optimizer": {**state["optimizer"], "state": moments},
            "average": average,
        }


@torch.no_grad()
def align_weights(model: nn.Module) -> None:
    """Move weights in CPU memory to addresses that torch chooses, in place.

    A product with a single row has other last bits where its matrix does not begin at a multiple of 64 bytes, and
    weights read from a safetensors file begin anywhere. With torch's own addresses a training that goes on from a
    checkpoint makes the same updates as one that was never stopped.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % WEIGHT_ALIGNMENT:
            tensor.data = tensor.data.clone()


def _count_texts(micro_batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """Count the texts of a micro-batch that count in the loss, over all tasks; ``VLOutput.count`` may count their
    tokens instead.
    """
    weights = [tensor for name, tensor in micro_batch.items() if name.rpartition(".")[2] == "weights_N"]
    return sum(((weights_N > 0).sum().double() for weights_N in weights), torch.zeros((), device=device).double())
