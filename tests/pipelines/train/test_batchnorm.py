"""BatchNorm over all workers, in the form that timm's backbones have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from pipelines.train.batchnorm import SyncBatchNorm2d, synchronize_batchnorm


@pytest.fixture
def one_worker(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    SyncBatchNorm2d.group = None
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_worker")
def test_the_norm_of_timm_is_synchronized_and_keeps_its_activation() -> None:
    """Of one worker the statistics are those of its own batch: outputs, gradients and running statistics are equal."""
    torch.manual_seed(0)
    x_BCHW, weights_BCHW = torch.randn(2, 5, 4, 3, 3)
    results = []
    for synchronized in (False, True):
        model = nn.Sequential(BatchNormAct2d(4), nn.BatchNorm2d(4))
        if synchronized:
            synchronize_batchnorm(model)
            assert all(isinstance(norm, SyncBatchNorm2d) for norm in model)
        given = x_BCHW.clone().requires_grad_()
        out = model(given)
        (out * weights_BCHW).sum().backward()
        results.append((out, given.grad, model[0].running_mean, model[0].running_var, model[0].weight.grad))
        assert model[0].eval()(x_BCHW).min() == 0  # the activation
    for plain, synchronized_value in zip(*results, strict=True):
        torch.testing.assert_close(synchronized_value, plain, rtol=1e-4, atol=1e-5)
