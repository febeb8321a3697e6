"""Every topology with every fusion, over one, two and three streams: what is missing, padded or reordered.

Each has three texts; of the two pictures the first belongs to two of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.config import find_part_config_class, list_part_kinds
from vlmodel.tokens import FusedStream, Tokens

WIDTHS = {"audio": 7, "language": 12, "vision": 10}
TOKENS = {"audio": 3, "language": 5, "vision": 4}
ROWS = torch.tensor([0, 0, 1])
STREAMS = [("vision",), ("audio", "vision"), ("language", "vision"), ("audio", "language", "vision")]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "transformer": [{"pooling": "cls"}, {"pooling": "mean"}, {"pooling": "attention"}]
}
FUSIONS = [(kind, variant) for kind in list_part_kinds("vlmodel.fusion") for variant in VARIANTS.get(kind, [{}])]
GRID = [
    (topology, fusion, names)
    for topology, fusion, names in itertools.product(list_part_kinds("vlmodel.topology"), FUSIONS, STREAMS)
    if fusion[1].get("pooling") != "cls" or "language" in names
]
grid = pytest.mark.parametrize(
    ("topology", "fusion", "names"),
    GRID,
    ids=["-".join([t, *f[1].values(), f[0], *names]) for t, f, names in GRID],
)


def small(package: str, kind: str, **settings: Any) -> Any:
    config = find_part_config_class(f"vlmodel.{package}", kind)
    sizes = {"width": 8, "heads": 2, "rounds": 2, "depth": 2, "expansion": 2, "dropout": 0.0}
    return config(**{key: value for key, value in sizes.items() if key in config.model_fields}, **settings)


def build(topology: str, fusion: tuple[str, dict[str, Any]], names: Iterable[str]) -> parts.Topology:
    torch.manual_seed(0)
    widths = {name: WIDTHS[name] for name in names}
    config = small("topology", topology)
    inner = small("fusion", fusion[0], **fusion[1]).build(config.fusion_widths(widths))
    module: parts.Topology = config.build(inner, widths).eval()
    for parameter in module.parameters():  # biases are no zeros, so that what they leak is seen
        nn.init.normal_(parameter, std=0.5)
    return module


def tokens_of(name: str, seed: int = 0) -> Tokens:
    """Random tokens; row 0 of texts and sounds is padded."""
    generator = torch.Generator().manual_seed(seed)
    count = 2 if name == "vision" else 3
    mask = torch.ones(count, TOKENS[name], dtype=torch.bool)
    if name != "vision":
        mask[0, 2:] = False
    x = torch.randn(count, TOKENS[name], WIDTHS[name], generator=generator)
    return Tokens(x, mask, torch.randn(count, WIDTHS[name], generator=generator))


def streams_of(names: Iterable[str]) -> dict[str, Tokens]:
    return {name: tokens_of(name, seed) for seed, name in enumerate(names)}


def rows_of(streams: Mapping[str, Tokens]) -> dict[str, Tensor]:
    return {"vision": ROWS} if "vision" in streams else {}


def without(tokens: Tokens, rows: list[int], fill: float | None = None) -> Tokens:
    """Missing in ``rows``, where it holds ``fill``, or what it held."""
    x, mask, pooled = tokens.x_BTD.clone(), tokens.mask_BT.clone(), tokens.pooled_BD.clone()
    mask[rows] = False
    if fill is not None:
        x[rows], pooled[rows] = fill, fill
    return Tokens(x, mask, pooled)


def close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@grid
def test_missing_stream_changes_nothing(topology: str, fusion: Any, names: tuple[str, ...]) -> None:
    model, streams = build(topology, fusion, names), streams_of(names)
    rows = rows_of(streams)
    whole = model(streams, rows).tokens.pooled_BD
    for name in names:
        # The last row of each stream is that of the last text, and nobody else's.
        held = without(streams[name], [-1])
        results = []
        for tokens in (held, without(held, [-1], 1e4), without(held, [-1], torch.nan)):
            model.zero_grad()
            fused = model({**streams, name: tokens}, rows)
            # To the pooled vector and to each real token.
            real = fused.tokens.x_BTD.masked_fill(~fused.tokens.mask_BT.unsqueeze(-1), 0)
            results.append(torch.cat([fused.tokens.pooled_BD, real.flatten(1)], dim=1))
            results[-1].square().sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        close(results[0][:2, : whole.shape[1]], whole[:2])
        assert not torch.allclose(results[0][2, : whole.shape[1]], whole[2])
        if len(names) == 1:
            continue
        # Nor does it matter whether it is missing in each row, or not given.
        gone = {other: tokens for other, tokens in streams.items() if other != name}
        absent = {**gone, name: without(streams[name], [0, 1, -1], 1.0)}
        close(model(gone, rows_of(gone)).tokens.pooled_BD, model(absent, rows).tokens.pooled_BD)


@grid
def test_rows_of_nothing_are_finite(topology: str, fusion: Any, names: tuple[str, ...]) -> None:
    model, streams = build(topology, fusion, names), streams_of(names)
    whole = model(streams, rows_of(streams)).tokens.pooled_BD
    results = []
    for fill in (0.0, 5.0):
        empty = {name: without(tokens, [-1], fill) for name, tokens in streams.items()}
        inputs = {name: replace(tokens, x_BTD=tokens.x_BTD.requires_grad_()) for name, tokens in empty.items()}
        for precision in (False, True):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision):
                fused = model(inputs, rows_of(streams), output_attention=True)
                loss = fused.tokens.pooled_BD.float().square().sum() + fused.tokens.x_BTD.float().square().sum()
            loss.backward()
            assert loss.isfinite()
            assert all(p.grad.isfinite().all() for p in model.parameters())
            for tokens in inputs.values():
                assert tokens.x_BTD.grad is None or not tokens.x_BTD.grad[-1].any()
            if fused.attention_LBQS is not None:
                assert not fused.attention_LBQS[:, 2].any()
            if not precision:
                results.append(fused.tokens.pooled_BD)
    close(results[0], results[1])
    close(results[0][:2], whole[:2])


@grid
def test_padding_and_neighbours_change_nothing(topology: str, fusion: Any, names: tuple[str, ...]) -> None:
    model, streams = build(topology, fusion, names), streams_of(names)
    rows = rows_of(streams)
    whole = model(streams, rows).tokens.pooled_BD
    padded = {}
    for name, tokens in streams.items():
        noise = torch.full((len(tokens.x_BTD), 2, WIDTHS[name]), 3.0)
        x = tokens.x_BTD.masked_fill(~tokens.mask_BT.unsqueeze(-1), 7)
        mask = nn.functional.pad(tokens.mask_BT, (0, 2))
        padded[name] = Tokens(torch.cat([x, noise], dim=1), mask, tokens.pooled_BD)
    close(model(padded, rows).tokens.pooled_BD, whole)

    order = torch.tensor([2, 0, 1])
    moved = {name: tokens if name in rows else tokens.select_rows(order) for name, tokens in streams.items()}
    close(model(moved, {name: index[order] for name, index in rows.items()}).tokens.pooled_BD, whole[order])
    for n in range(3):
        only = torch.tensor([n])
        alone = {name: t.select_rows(rows[name][only] if name in rows else only) for name, t in streams.items()}
        close(model(alone, {}).tokens.pooled_BD, whole[only])


@grid
def test_gradients_reach_every_parameter(topology: str, fusion: Any, names: tuple[str, ...]) -> None:
    model, streams = build(topology, fusion, names), streams_of(names)
    direction = torch.randn(3, 8)
    results, gradients = [], []
    for pooled_only in (False, True):
        model.zero_grad()
        results.append(model(streams, rows_of(streams), pooled_only=pooled_only).tokens.pooled_BD)
        (results[-1] * direction).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    close(results[0], results[1])
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient)
        # A key's bias moves all scores of a softmax alike.
        if not name.endswith("key_value.bias"):
            assert gradient.abs().max() > 1e-6, name


@grid
def test_half_precision(topology: str, fusion: Any, names: tuple[str, ...]) -> None:
    model, streams = build(topology, fusion, names), streams_of(names)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    whole = model(streams, rows_of(streams)).tokens.pooled_BD
    with torch.autocast("cpu", torch.bfloat16):
        low = model(streams, rows_of(streams)).tokens.pooled_BD
    torch.testing.assert_close(low.float(), whole, rtol=0.1, atol=0.1)
    low.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def rounds_of(topology: str, fusion: str, streams: int) -> int:
    own = {"dual": 0, "single": 2, "interactive": 4 if streams > 1 else 2}[topology]
    return own + {"transformer": 2, "interactive": 2 if streams > 1 else 0}.get(fusion, 0)


@grid
def test_attention(topology: str, fusion: Any, names: tuple[str, ...]) -> None:
    model, streams = build(topology, fusion, names), streams_of(names)
    rows = rows_of(streams)
    plain = model(streams, rows)
    asked = model(streams, rows, pooled_only=True, output_attention=True)
    assert plain.attention_LBQS is None
    close(asked.tokens.pooled_BD, plain.tokens.pooled_BD)
    rounds = rounds_of(topology, fusion[0], len(names))
    if not rounds:
        assert asked.attention_LBQS is None
        return
    stops = list(itertools.accumulate(TOKENS[name] for name in names))
    assert asked.spans == {n: (stop - TOKENS[n], stop) for n, stop in zip(names, stops, strict=True)}
    assert asked.attention_LBQS.shape == (rounds, 3, stops[-1], stops[-1])
    close(asked.attention_LBQS.sum(-1), torch.ones(rounds, 3, stops[-1]))
    mask_BT = torch.cat([t.select_rows(ROWS).mask_BT if n in rows else t.mask_BT for n, t in streams.items()], dim=1)
    assert not asked.attention_LBQS.masked_select(~mask_BT[None, :, None]).any()
    own = torch.zeros(stops[-1], stops[-1], dtype=torch.bool)
    for start, stop in asked.spans.values():
        own[start:stop, start:stop] = True
    crossing = (asked.attention_LBQS * ~own).sum((1, 2, 3)) > 0
    staying = (asked.attention_LBQS * own).sum((1, 2, 3)) > 0
    if topology == "interactive" and len(names) > 1:  # self-attention and cross-attention in turn
        assert crossing[:4].tolist() == [False, True, False, True]
        assert staying[:4].tolist() == [True, False, True, False]
    if fusion[0] == "interactive" and len(names) > 1:
        assert not staying[-2:].any()
    # Of a stream that is not given there is no place.
    if len(names) > 1 and topology != "dual":
        gone = {name: streams[name] for name in names[1:]}
        part = model(gone, rows_of(gone), output_attention=True)
        assert list(part.spans) == list(names[1:])
        assert part.spans[names[-1]][1] == part.attention_LBQS.shape[-1] == stops[-1] - TOKENS[names[0]] + 1


class OtherSequence(parts.Fusion):
    """A fusion whose sequence is none of the topology's."""

    width = 8

    def adapt_stream(self, name: str, tokens: Tokens) -> Tokens:
        return tokens

    def forward(self, streams: Mapping[str, Tokens], **_: bool) -> FusedStream:
        tokens = streams["vision"]
        return FusedStream(tokens, {"vision": (0, 4)}, torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("topology", ["single", "interactive"])
def test_attention_over_another_sequence_stays_apart(topology: str) -> None:
    names = ("language", "vision")
    model = small("topology", topology).build(OtherSequence(), {name: WIDTHS[name] for name in names})
    fused = model(streams_of(names), {"vision": ROWS}, output_attention=True)
    assert fused.spans == {"vision": (0, 4)}
    assert fused.attention_LBQS.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("topology", list_part_kinds("vlmodel.topology"))
def test_a_shared_image_is_adapted_once(topology: str) -> None:
    model = build(topology, ("transformer", {}), ("language", "vision"))
    outer = model.fusion.adapters if topology == "dual" else model.adapters
    counts = []
    outer["vision"].register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    if topology == "interactive":
        model.own[0].attentions["vision"].register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    model(streams_of(("language", "vision")), {"vision": ROWS})
    assert set(counts) == {2}


def test_who_encodes_text() -> None:
    found = [kind for kind in list_part_kinds("vlmodel.topology") if small("topology", kind).encodes_text]
    assert found == ["single"]


def test_widths_that_the_fusion_sees() -> None:
    assert small("topology", "dual").fusion_widths(WIDTHS) == WIDTHS
    for kind in ("single", "interactive"):
        assert small("topology", kind).fusion_widths(WIDTHS) == {"audio": 8, "language": 8, "vision": 8}


@pytest.mark.parametrize("kind", ["single", "interactive"])
def test_heads_must_share_the_width(kind: str) -> None:
    config: Any = find_part_config_class("vlmodel.topology", kind)
    with pytest.raises(ValidationError, match="width=10 cannot be shared by heads=4"):
        config(width=10)


@pytest.mark.parametrize("topology", list_part_kinds("vlmodel.topology"))
@pytest.mark.parametrize("fusion", list_part_kinds("vlmodel.fusion"))
def test_compiled_is_the_same(topology: str, fusion: str) -> None:
    """In one graph, which also says that nothing of it waits for a value of a tensor."""
    names = ("language", "vision")
    model, streams = build(topology, (fusion, {}), names), streams_of(names)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(compiled(streams, {"vision": ROWS}).tokens.pooled_BD, model(streams, {"vision": ROWS}).tokens.pooled_BD)
