"""Low-rank adapters in any module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vlmodel import lora
from vlmodel.config import ConfigError, parse_config
from vlmodel.lora import LoraSettings
from vlmodel.weights import WeightsError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.fc = nn.Linear(4, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BTD = self.mlp(self.fc(self.conv(x_BCHW).flatten(2).transpose(1, 2)))
        return x_BTD + self.attention(x_BTD, x_BTD, x_BTD)[0]


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=9, attn_pdrop=0, resid_pdrop=0)
    return GPT2LMHeadModel(config).eval()


def changed(module: nn.Module) -> nn.Module:
    """With adapters whose product is not zero."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return module


def block(**settings: Any) -> Block:
    torch.manual_seed(0)
    module = Block().eval()
    lora.inject_adapters(module, parse_config(LoraSettings, settings))
    return module


INPUT = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_adapters_first_change_nothing_and_are_all_that_is_trained() -> None:
    torch.manual_seed(0)
    bare = Block().eval()
    adapted = block(rank=2)
    x_BTD = torch.randn(2, 5, 4)
    assert adapted.mlp(adapted.fc(x_BTD)).equal(bare.mlp(bare.fc(x_BTD)))
    trained = {name.partition(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    # Attention reads the weights of its output layer without calling it: an adapter there would learn nothing.
    assert trained == {"fc", "mlp.0", "mlp.2"}
    changed(adapted)(INPUT).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapted.parameters() if p.requires_grad)


def test_a_reload_is_bit_equal() -> None:
    first, second = changed(block(rank=3)), block(rank=3)
    state = lora.adapter_state_dict(first)
    assert {tuple(tensor.shape) for name, tensor in state.items() if "fc" in name} == {(3, 4), (8, 3)}
    assert not second(INPUT).equal(first(INPUT))
    lora.load_adapter_state(second, state)
    assert second(INPUT).equal(first(INPUT))


@pytest.mark.parametrize("other", [{"rank": 2}, {"rank": 3, "targets": ["fc"]}])
def test_weights_of_other_adapters_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="not those of these adapters"):
        lora.load_adapter_state(block(**other), lora.adapter_state_dict(block(rank=3)))


def test_merged_adapters_leave_the_module_as_it_was_with_other_weights() -> None:
    torch.manual_seed(0)
    bare, adapted = Block(), changed(block(rank=2))
    expected = adapted(INPUT)
    lora.merge_adapters(adapted)
    assert dict(adapted.named_modules()).keys() == dict(bare.named_modules()).keys()
    assert adapted.state_dict().keys() == bare.state_dict().keys()
    assert not adapted(INPUT).equal(bare.eval()(INPUT))
    torch.testing.assert_close(adapted(INPUT), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_language_model_with_its_weights_the_other_way_around() -> None:
    ids_NT = torch.tensor([[1, 5, 3]])
    model = gpt2()
    bare = model(ids_NT).logits
    lora.inject_adapters(model, LoraSettings(rank=2), exclude=["lm_head"])
    assert model(ids_NT).logits.equal(bare)
    assert not any("lm_head" in name for name in lora.adapter_state_dict(model))
    with_adapters = changed(model)(ids_NT).logits
    lora.merge_adapters(model)
    torch.testing.assert_close(model(ids_NT).logits, with_adapters, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(with_adapters, bare)


def test_targets_are_ends_of_paths_and_of_those_no_others() -> None:
    adapted = block(targets=["0", "conv"])
    trained = {name.partition(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"mlp.0", "conv"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj"], r"'q_proj', and Block has no such layer; its linear layers are called 0, 2, fc, out_proj"),
        (["1"], r"lora.targets=\['1'\]: Target module GELU.* is not supported"),
    ],
)
def test_targets_that_cannot_be(targets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        block(targets=targets)


def test_a_module_without_linear_layers() -> None:
    with pytest.raises(ConfigError, match="GELU has no linear layer"):
        lora.inject_adapters(nn.GELU(), LoraSettings())
