"""Fusions and their layers by themselves: gates worked by hand, cross-attention with nobody to ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from vlmodel.config import find_part_config_class
from vlmodel.layers import MultiHeadAttention, masked_softmax
from vlmodel.tokens import Tokens


def fusion_of(kind: str, widths: dict[str, int], **settings: Any) -> Any:
    torch.manual_seed(0)
    config: Any = find_part_config_class("vlmodel.fusion", kind)
    return config(**settings).build(widths).eval()


def one_token(*vectors: list[float], present: list[bool]) -> Tokens:
    pooled = torch.tensor(vectors)
    return Tokens(pooled.unsqueeze(1), torch.tensor(present)[:, None], pooled)


def test_gated_fusion_of_two_is_the_bimodal_unit() -> None:
    """h = z * tanh(W_a a) + (1 - z) * tanh(W_b b), z a sigmoid of both (Arevalo et al. 2017, equations 1 to 4)."""
    fusion = fusion_of("gated", {"a": 1, "b": 1}, width=1)
    with torch.no_grad():
        for name, weight, bias in (("a", 2.0, 0.5), ("b", -1.0, 0.25)):
            fusion.adapters[name].weight.fill_(weight)
            fusion.adapters[name].bias.fill_(bias)
        fusion.gate.weight.copy_(torch.tensor([[1.0, 2.0], [0.5, -1.0]]))
        fusion.gate.bias.copy_(torch.tensor([0.1, 0.3]))
    a = one_token([0.3], [0.3], [9.0], [9.0], present=[True, True, False, False])
    b = one_token([0.7], [9.0], [0.7], [9.0], present=[True, False, True, False])
    fused = fusion({"b": fusion.adapt_stream("b", b), "a": fusion.adapt_stream("a", a)})
    u, v = 2 * 0.3 + 0.5, -0.7 + 0.25
    z = 1 / (1 + np.exp(-((u + 2 * v + 0.1) - (0.5 * u - v + 0.3))))
    expected = [z * np.tanh(u) + (1 - z) * np.tanh(v), np.tanh(u), np.tanh(v), 0]
    np.testing.assert_allclose(fused.tokens.pooled_BD.detach()[:, 0], expected, rtol=1e-6)
    assert torch.equal(fused.tokens.x_BTD[:, 0], fused.tokens.pooled_BD)
    assert fused.tokens.mask_BT.tolist() == [[True], [True], [True], [False]]


def test_gates_of_many_sum_to_one() -> None:
    """Streams that agree come out as they are, however many are there."""
    fusion = fusion_of("gated", dict.fromkeys("abcd", 3), width=3)
    for adapter in fusion.adapters.values():
        nn.init.eye_(adapter.weight)
        nn.init.zeros_(adapter.bias)
    vector = [0.5, -0.2, 0.1]
    for missing in range(4):
        streams = {
            name: fusion.adapt_stream(name, one_token(vector, present=[i >= missing])) for i, name in enumerate("abcd")
        }
        torch.testing.assert_close(fusion(streams).tokens.pooled_BD, torch.tensor([vector]).tanh())


def test_a_single_stream_has_no_gate() -> None:
    fusion = fusion_of("gated", {"a": 2}, width=2)
    tokens = fusion.adapt_stream("a", one_token([1.0, 2.0], present=[True]))
    torch.testing.assert_close(fusion({"a": tokens}).tokens.pooled_BD, tokens.pooled_BD.tanh())
    assert {name for name, _ in fusion.named_parameters()} == {"adapters.a.weight", "adapters.a.bias"}


def test_without_other_streams_only_the_feed_forward_acts() -> None:
    """A missing partner and no partner at all are the same to the tokens of a stream."""
    pair = fusion_of("interactive", {"audio": 6, "vision": 6}, width=8, heads=2)
    for parameter in pair.parameters():
        nn.init.normal_(parameter, std=0.5)
    single = fusion_of("interactive", {"audio": 6}, width=8, heads=2)
    own = {name: value for name, value in pair.state_dict().items() if name in single.state_dict()}
    single.load_state_dict({**own, "combine.weight": single.combine.weight, "combine.bias": single.combine.bias})
    audio = Tokens(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 6))
    nothing = Tokens(torch.randn(2, 4, 6), torch.zeros(2, 4, dtype=torch.bool), torch.randn(2, 6))
    with_missing = pair({"audio": pair.adapt_stream("audio", audio), "vision": pair.adapt_stream("vision", nothing)})
    alone = single({"audio": single.adapt_stream("audio", audio)}, output_attention=True)
    assert not any("attention" in name for name, _ in single.named_parameters())
    torch.testing.assert_close(with_missing.tokens.x_BTD[:, :3], alone.tokens.x_BTD)
    assert alone.spans == {"audio": (0, 3)}
    assert alone.attention_LBQS is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_nothing_is_zero(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2).to(dtype)
    nn.init.ones_(attention.out.bias)
    x = torch.randn(3, 4, 8, dtype=dtype, requires_grad=True)
    context = torch.randn(3, 5, 8, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[True] * 5, [False] * 5, [True, False, False, False, False]])
    attended, weights = attention(x, context, mask, output_weights=True)
    attended.float().square().sum().backward()
    assert not attended[1].any()
    assert not weights[1].any()
    assert attended[[0, 2]].all()
    torch.testing.assert_close(weights[[0, 2]].sum(-1), torch.ones(2, 4), rtol=1e-2, atol=1e-2)
    assert weights[2, :, 0].tolist() == [1.0] * 4
    for leaf in (x, context, *attention.parameters()):
        assert leaf.grad.isfinite().all()
    assert not context.grad[1].any()
    assert not context.grad[2, 1:].any()
    assert context.grad[0].any(-1).all()


def test_masked_softmax() -> None:
    scores = torch.tensor([[1.0, 1.0, -3e38], [5.0, 6.0, 7.0], [torch.nan, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    result = masked_softmax(scores, mask)
    assert result.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    (result * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert scores.grad.tolist() == [[-0.25, 0.25, 0.0], [0.0, 0.0, 0.0], [0.0, -0.25, 0.25]]


def test_without_a_language_stream_the_first_token_is_the_mean() -> None:
    cls, mean = (fusion_of("transformer", {"vision": 4, "audio": 4}, width=8, pooling=p) for p in ("cls", "mean"))
    mean.load_state_dict(cls.state_dict())
    tokens = Tokens(torch.randn(2, 3, 4), torch.tensor([[True, True, False]] * 2), torch.randn(2, 4))
    adapted = {name: cls.adapt_stream(name, tokens) for name in ("vision", "audio")}
    for pooled_only in (False, True):
        pooled = [fusion.eval()(adapted, pooled_only=pooled_only).tokens.pooled_BD for fusion in (cls, mean)]
        torch.testing.assert_close(*pooled)


@pytest.mark.parametrize("kind", ["transformer", "interactive"])
def test_heads_must_share_the_width(kind: str) -> None:
    with pytest.raises(ValidationError, match="width=10 cannot be shared by heads=4"):
        fusion_of(kind, {"vision": 4}, width=10)


@pytest.mark.parametrize("missing", ["language", "vision"])
def test_interactive_fusion_combines_zeros_for_a_missing_stream(missing: str) -> None:
    fusion = fusion_of("interactive", {"language": 4, "vision": 4}, width=4, heads=2)
    combined: list[torch.Tensor] = []
    fusion.combine.register_forward_pre_hook(lambda _, inputs: combined.append(inputs[0]))
    streams = {}
    for name in ("language", "vision"):
        mask = torch.full((1, 3), name != missing)
        streams[name] = fusion.adapt_stream(name, Tokens(torch.randn(1, 3, 4), mask, torch.randn(1, 4)))
    fusion(streams)
    halves = dict(zip(streams, combined[0].chunk(2, dim=1), strict=True))
    assert {name for name, half in halves.items() if half.any()} == streams.keys() - {missing}
