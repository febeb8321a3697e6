"""The decoders that write texts."""

from __future__ import annotations

import io
import itertools
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, PreTrainedTokenizerFast, TextIteratorStreamer

from pipelines.data.texts.corpus import train_tokenizer
from tests.vlmodel.tiny import batch_for, collate, for_tasks, tiny_tree
from vlmodel.config import ConfigError, list_part_kinds, parse_config
from vlmodel.decoder._causal import ARCHITECTURES
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.part_configs import Vocabulary
from vlmodel.processor import Example, ProcessorConfig, VLProcessor
from vlmodel.tokens import DecoderInput, FusedStream, Tokens
from vlmodel.weights import WeightsError

KINDS = ("caption", "answer")
SMALL = {"width": 16, "heads": 2, "depth": 1, "positions": 40}


def batch_of(model: VLModel, processor: VLProcessor, examples: list[Example]) -> dict[str, Tensor]:
    return batch_for(processor, model.tasks, examples)


def predictor_of(model: VLModel, processor: VLProcessor) -> Predictor:
    return Predictor(model, for_tasks(processor, model.tasks))


def loud(model: VLModel) -> VLModel:
    """Weights large enough for texts to differ."""
    torch.manual_seed(1)
    for parameter in model.decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def memory(rows: int, width: int = 16, seed: int = 0) -> DecoderInput:
    torch.manual_seed(seed)
    mask_BT = torch.ones(rows, 6, dtype=torch.bool)
    mask_BT[::2, 4:] = False
    tokens = Tokens(torch.randn(rows, 6, width), mask_BT, torch.randn(rows, width))
    return DecoderInput({}, {}, FusedStream(tokens, {"vision": (0, 6)}))


class Waits(TorchDispatchMode):
    """Finds the operations for whose result a CPU would have to wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("topology", "fusion", "kind"),
    list(itertools.product(list_part_kinds("vlmodel.topology"), list_part_kinds("vlmodel.fusion"), KINDS)),
)
def test_with_every_topology_and_fusion(
    topology: str,
    fusion: str,
    kind: str,
    make_model: Callable[..., Any],
    processor: VLProcessor,
    examples: list[Example],
) -> None:
    model = make_model(topology={"kind": topology}, fusion={"kind": fusion}, task={"kind": kind, "head": SMALL})
    assert (model.language is None) == (kind == "caption")
    batch = batch_of(model, processor, examples)
    model.train()(**batch).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    predictor = predictor_of(model, processor)
    rows = [Example(e.inputs, e.texts if kind == "answer" else ("",) * len(e.texts)) for e in examples]
    with_map = [p for found in predictor.predict(rows, top_k=2, attention=True, max_new_tokens=4) for p in found]
    assert len(with_map) == 3
    assert all(1 <= len(p.answers) <= 2 for p in with_map)
    keeps_sequence = fusion in ("transformer", "interactive")
    if keeps_sequence:
        assert all(p.attention_HW is not None and p.attention_HW.shape == (8, 8) for p in with_map)
        assert all(p.attention_HW.sum() == pytest.approx(1, abs=1e-5) for p in with_map)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_of_tokens(
    kind: str, make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = loud(make_model(task={"kind": kind, "head": SMALL}))
    batch = batch_of(model, processor, examples)
    output = model(**batch)
    lengths = batch["target_mask_NT"].sum(1) - 1
    assert lengths.tolist() == ([7, 7, 4] if kind == "caption" else [2, 2, 2])
    assert output.count.item() == output.total.item() == (lengths * torch.tensor([1, 0.5, 1])).sum()
    assert output.logits_NK is None
    torch.testing.assert_close(output.loss, output.loss_sum / output.count)

    # Padding of the targets, whatever token it holds, and neighbours change nothing.
    padded = dict(batch)
    padded["target_ids_NT"] = F.pad(batch["target_ids_NT"], (0, 3), value=5)
    padded["target_mask_NT"] = F.pad(batch["target_mask_NT"], (0, 3), value=False)
    torch.testing.assert_close(model(**padded).loss_sum, output.loss_sum)
    assert model(**padded).correct.item() == output.correct.item()
    alone = [model(**batch_of(model, processor, [example])) for example in examples]
    for figure in ("loss_sum", "count", "correct"):
        torch.testing.assert_close(sum(getattr(o, figure) for o in alone), getattr(output, figure))

    # An unknown target is as one of weight zero.
    masked = {**batch, "target_mask_NT": batch["target_mask_NT"].clone()}
    masked["target_mask_NT"][1] = False
    without = model(**{**batch, "weights_N": torch.tensor([1.0, 0.0, 1.0])})
    torch.testing.assert_close(model(**masked).loss_sum, without.loss_sum)
    assert model(**masked).count.item() == without.count.item()
    nothing = model(**{**batch, "target_mask_NT": torch.zeros_like(batch["target_mask_NT"])})
    assert (nothing.loss.item(), nothing.count.item(), nothing.correct.item(), nothing.total.item()) == (0, 0, 0, 0)
    nothing.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_correct_are_those_that_would_have_been_chosen(make_model: Callable[..., Any], processor: VLProcessor) -> None:
    decoder = loud(make_model(task={"kind": "caption", "head": SMALL})).decoder
    encoded = memory(2)
    ids_NT = torch.tensor([[2, 4, 5, 3], [2, 6, 3, 0]])
    mask_NT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    x_NSD, seen_NS = decoder._cross_attention_memory(encoded)
    logits = decoder.inner(
        input_ids=ids_NT, encoder_hidden_states=x_NSD, encoder_attention_mask=seen_NS.long(), use_cache=False
    ).logits
    ids_NT = torch.where(torch.rand(ids_NT.shape) < 0.5, F.pad(logits.argmax(-1)[:, :-1], (1, 0)), ids_NT)
    ids_NT[:, 0] = 2
    logits = decoder.inner(
        input_ids=ids_NT, encoder_hidden_states=x_NSD, encoder_attention_mask=seen_NS.long(), use_cache=False
    ).logits
    right = (logits[:, :-1].argmax(-1) == ids_NT[:, 1:])[mask_NT[:, 1:]]
    decoded = decoder(encoded, target_ids_NT=ids_NT, target_mask_NT=mask_NT)
    assert decoded.correct.item() == right.sum().item()
    assert 0 < right.sum() < 5


def test_a_missing_stream_changes_nothing(make_model: Callable[..., Any], processor: VLProcessor) -> None:
    decoder = loud(make_model(task={"kind": "caption", "head": SMALL})).decoder
    targets = processor.tokenize_targets(["a red circle"])
    given = {key: torch.from_numpy(value) for key, value in targets.items()}
    losses, texts = [], []
    for seed in (1, 2):
        tokens = memory(1, seed=seed).fused_stream.tokens
        x_BTD = tokens.x_BTD.clone().requires_grad_()
        absent = Tokens(x_BTD, torch.zeros_like(tokens.mask_BT), tokens.pooled_BD)
        encoded = DecoderInput({}, {}, FusedStream(absent, {}))
        losses.append(decoder(encoded, **given).loss_sum)
        losses[-1].backward()
        assert not x_BTD.grad.any()
        texts.append(decoder.generate_answers(encoded, processor, 2))
    torch.testing.assert_close(*losses)
    assert losses[0].isfinite()
    assert texts[0] == texts[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(
    architecture: str,
    make_model: Callable[..., Any],
    processor: VLProcessor,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    settings = {"kind": "caption", "head": {**SMALL, "depth": 2, "width": 24, "architecture": architecture}}
    model = loud(make_model(task=settings, fusion={"width": 16, "heads": 2}))
    decoder, batch = model.decoder, batch_of(model, processor, examples)

    # With a cache as in one pass without.
    encoded = memory(3)
    (best, *_), *_ = found = decoder.generate_answers(encoded, processor, 1, max_new_tokens=8)
    ids_NT = torch.full((3, 1), 2)
    log_probability_N = torch.zeros(3)
    with torch.no_grad():
        for _ in range(8):
            scores_NK = (
                decoder._forward_texts(decoder.inner, ids_NT, decoder._cross_attention_memory(encoded))
                .logits[:, -1]
                .log_softmax(-1)
            )
            alive_N = (ids_NT != 3).all(1)
            log_probability_N += scores_NK.max(-1).values * alive_N
            chosen_N = torch.where(alive_N, scores_NK.argmax(-1), 0)
            ids_NT = torch.cat([ids_NT, chosen_N[:, None]], dim=1)
    expected = processor.tokenizer.batch_decode(ids_NT.tolist(), skip_special_tokens=True)
    assert [row[0][0] for row in found] == expected
    assert len(set(expected)) > 1
    np.testing.assert_allclose([row[0][1] for row in found], log_probability_N.exp(), rtol=1e-4)
    assert best == found[0][0]

    # Tied embeddings come back.
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert loaded.decoder.inner.get_output_embeddings().weight is loaded.decoder.inner.get_input_embeddings().weight
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss, rtol=0, atol=0)
    assert loaded.decoder.generate_answers(encoded, processor, 1, max_new_tokens=8) == found

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, model(**batch).loss.float(), rtol=0.1, atol=0.1)
        assert len(decoder.generate_answers(encoded, processor, 2, max_new_tokens=3)) == 3
    compiled = torch.compile(decoder, backend="eager", fullgraph=True)
    targets = {name: batch[name] for name in ("target_ids_NT", "target_mask_NT", "weights_N")}
    with Waits() as waits:
        decoder(encoded, **targets)
    assert waits.found == []
    torch.testing.assert_close(compiled(encoded, **targets).loss_sum, decoder(encoded, **targets).loss_sum)
    torch._dynamo.reset()

    model.train()(**batch).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    # A batch without any row has a gradient for every parameter too.
    model.zero_grad()
    empty = batch_of(model, processor, [Example(e.inputs, ()) for e in examples])
    output = model(**empty)
    output.loss.backward()
    assert (output.loss.item(), output.count.item()) == (0, 0)
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_beams_rank_by_probability(architecture: str, make_model: Callable[..., Any], processor: VLProcessor) -> None:
    """With as many beams as there are prefixes the search is exhaustive."""
    settings = {"kind": "answer", "head": {**SMALL, "architecture": architecture}}
    decoder = loud(make_model(task=settings)).decoder
    encoded = memory(2)
    size = len(processor.tokenizer)
    found = decoder.generate_answers(encoded, processor, 3, max_new_tokens=2, num_beams=2 * size)
    texts = [(a,) if a == 3 else (a, b) for a in range(size) for b in range(size) if a != 3 or b == 0]
    x_NSD, mask_NS = decoder._cross_attention_memory(encoded)
    for n, answers in enumerate(found):
        scores = {}
        for text in texts:
            ids = torch.tensor([[2, *text]])
            logits = decoder._forward_texts(decoder.inner, ids[:, :-1], (x_NSD[n : n + 1], mask_NS[n : n + 1])).logits
            scores[text] = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).sum().exp().item()
        best = sorted(scores.items(), key=lambda item: -item[1])[:3]
        written = [processor.tokenizer.decode(text, skip_special_tokens=True).strip() for text, _ in best]
        assert [text for text, _ in answers] == list(dict.fromkeys(written))
        first = {text: p for text, (_, p) in reversed(list(zip(written, best, strict=True)))}
        np.testing.assert_allclose([p for _, p in answers], [first[text] for text, _ in answers], rtol=1e-4)


def test_length_penalty_prefers_longer_texts(make_model: Callable[..., Any], processor: VLProcessor) -> None:
    decoder = loud(make_model(task={"kind": "caption", "head": SMALL})).decoder
    encoded = memory(6)
    lengths = [
        np.mean(
            [len(row[0][0].split()) for row in decoder.generate_answers(encoded, processor, 4, length_penalty=penalty)]
        )
        for penalty in (-3.0, 3.0)
    ]
    assert lengths[0] < lengths[1]


def test_samples_follow_the_model(make_model: Callable[..., Any], processor: VLProcessor) -> None:
    decoder = loud(make_model(task={"kind": "answer", "head": SMALL})).decoder
    encoded = memory(1)
    torch.manual_seed(0)
    found = decoder.generate_answers(encoded, processor, 400, do_sample=True, max_new_tokens=1)[0]
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert len(found) > 5
    # Cold samples are the greedy text.
    greedy = decoder.generate_answers(encoded, processor, 1, max_new_tokens=1)[0]
    assert (
        decoder.generate_answers(encoded, processor, 5, do_sample=True, temperature=1e-4, max_new_tokens=1)[0] == greedy
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beam": 3}, "'num_beam' is no setting of generation; they are .*num_beams"),
        ({"num_beams": "3"}, "num_beams='3': Input should be a valid integer"),
        ({"do_sample": 1}, "do_sample=1: Input should be a valid boolean"),
        ({"num_beams": 1}, "num_beams=1 cannot find top_k=2 texts"),
        ({"max_new_tokens": 41}, "max_new_tokens=41 is more than the 40 that the decoder knows"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: Input should be greater than or equal to 1"),
        (
            {"do_sample": True, "temperature": -1.0},
            "temperature=-1.0: Input should be greater than or equal to 0.000001",
        ),
        ({"streamer": object()}, "streamer takes the text of one row .* there are 2 rows with top_k=2"),
    ],
)
def test_settings_that_cannot_be(
    settings: dict[str, Any], message: str, make_model: Callable[..., Any], processor: VLProcessor
) -> None:
    model = make_model(task={"kind": "caption", "head": SMALL})
    with pytest.raises(ValueError, match=message):
        model.tasks[""].predict_answers(model.decoder, memory(2), processor, 2, **settings)


def test_as_many_tokens_as_there_are_positions(make_model: Callable[..., Any], processor: VLProcessor) -> None:
    decoder = loud(make_model(task={"kind": "caption", "head": SMALL})).decoder
    with torch.no_grad():
        decoder.inner.get_output_embeddings().bias[3] = -1e4  # never ends
    decoder.generate_answers(memory(2), processor, 1, max_new_tokens=40)
    text = decoder.generate_answers(memory(1), processor, 1)[0][0][0]
    assert len(text.split()) <= processor.config.max_target_tokens - 1


def test_text_is_streamed(make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]) -> None:
    model = loud(make_model(task={"kind": "caption", "head": SMALL}))
    predictor = predictor_of(model, processor)
    example = Example(examples[0].inputs, ("",))
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    found: list[Any] = []
    writing = threading.Thread(
        target=lambda: found.append(predictor.predict([example], top_k=1, streamer=streamer)[0][0])
    )
    writing.start()
    pieces = list(streamer)
    writing.join()
    assert "".join(pieces).strip() == found[0].answers[0][0]
    assert len([piece for piece in pieces if piece]) > 1


def test_attention_is_of_the_decoder(make_model: Callable[..., Any], processor: VLProcessor) -> None:
    model = loud(make_model(task={"kind": "caption", "head": {**SMALL, "depth": 2}}))
    decoder, encoded = model.decoder, memory(3)
    texts = ["a red circle", "what", ""]
    tokens, weights_NLT = decoder.compute_token_attention(encoded, processor, texts)
    assert tokens == [["a", "red", "circle", "[SEP]"], ["what", "[SEP]"], ["[SEP]"]]
    assert weights_NLT.shape == (3, 4, 6)
    assert not weights_NLT[1, 2:].any()
    assert not weights_NLT[2, 1:].any()
    assert not weights_NLT[0, :, 4:].any()
    assert weights_NLT[1, :2].all()
    # By hand: the softmax of each head of each layer.
    x_NSD, mask_NS = decoder._cross_attention_memory(encoded)
    seen: list[Tensor] = []
    for layer in decoder.inner.bert.encoder.layer:
        attention = layer.crossattention.self

        def weigh(_: Any, inputs: tuple[Tensor, ...], attention: Any = attention) -> None:
            q, k = (
                t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (attention.query(inputs[0]), attention.key(x_NSD))
            )
            scores = (q @ k.mT / math.sqrt(8)).masked_fill(~mask_NS[:, None, None], -torch.inf)
            seen.append(scores.softmax(-1).mean(1))

        attention.register_forward_pre_hook(weigh)
    ids_NT = torch.from_numpy(processor.tokenize_targets(texts)["target_ids_NT"])
    decoder._forward_texts(decoder.inner, ids_NT[:, :-1], (x_NSD, mask_NS))
    expected = torch.stack(seen).mean(0)[..., :-1]
    torch.testing.assert_close(weights_NLT[0], expected[0])
    torch.testing.assert_close(weights_NLT[1, :2], expected[1, :2])

    looked_NT = decoder.compute_attention(encoded, processor, [[(text, 1.0)] for text in texts])
    torch.testing.assert_close(looked_NT, torch.stack([expected[0, :3].mean(0), expected[1, 0], expected[2, 0]]))
    assert decoder.inner.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_a_joint_stream_of_one_token_is_attended_once(
    fusion: str, make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(fusion={"kind": fusion}, task={"kind": "caption", "head": SMALL})
    batch = batch_of(model, processor, examples)
    seen: list[DecoderInput] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = model(**batch)
    (encoded,) = seen
    decoder, joint = model.decoder, encoded.fused_stream.tokens
    x_NSD, mask_NS = decoder._cross_attention_memory(encoded)
    assert torch.equal(x_NSD, joint.pooled_BD.unsqueeze(1))
    assert mask_NS.shape == (3, 1)
    assert mask_NS.all()
    _, weights_NLT = decoder.compute_token_attention(encoded, processor, ["a red circle"] * 3)
    assert torch.equal(weights_NLT, torch.ones(3, 4, 1))
    # Twice the same key is as good as once, so that models trained so write what they wrote.
    twice = DecoderInput({}, {}, FusedStream(joint, {}))
    assert decoder._cross_attention_memory(twice)[0].shape == (3, 2, 16)
    targets = {name: batch[name] for name in ("target_ids_NT", "target_mask_NT", "weights_N")}
    torch.testing.assert_close(decoder(twice, **targets).loss_sum, output.loss_sum)
    written = [[row[0][0] for row in decoder.generate_answers(given, processor, 1)] for given in (twice, encoded)]
    assert written[0] == written[1]


def test_no_attention_where_the_joint_stream_is_none_of_the_spans(
    make_model: Callable[..., Any], processor: VLProcessor
) -> None:
    decoder = make_model(task={"kind": "caption", "head": SMALL}).decoder
    tokens = memory(1).fused_stream.tokens
    pooled = Tokens(tokens.x_BTD[:, :1], tokens.mask_BT[:, :1], tokens.pooled_BD)
    assert (
        decoder.compute_attention(
            DecoderInput({}, {}, FusedStream(pooled, {"vision": (0, 6)})), processor, [[("a", 1.0)]]
        )
        is None
    )


def test_label_smoothing(make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]) -> None:
    plain, smooth = (
        make_model(task={"kind": "caption", "head": {**SMALL, "label_smoothing": share}}) for share in (0.0, 0.9)
    )
    batch = batch_of(plain, processor, examples)
    assert plain(**batch).loss != smooth(**batch).loss
    even = math.log(len(processor.tokenizer))
    with torch.no_grad():
        for parameter in smooth.decoder.inner.cls.parameters():
            parameter.zero_()
    torch.testing.assert_close(smooth(**batch).loss, torch.tensor(even))


def test_pretrained(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example], tmp_path: Path
) -> None:
    first = loud(make_model(task={"kind": "caption", "head": SMALL}))
    first.decoder.inner.save_pretrained(tmp_path / "decoder")
    model = make_model(task={"kind": "caption", "head": {"pretrained": str(tmp_path / "decoder")}}, seed=5)
    assert all(map(torch.equal, model.decoder.inner.parameters(), first.decoder.inner.parameters()))
    backbone = {id(p) for p in model.backbone_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in backbone}
    assert "decoder.inner.bert.embeddings.word_embeddings.weight" in names
    assert not any("crossattention" in name or "adapter" in name for name in names)
    assert len(names) + len(list(model.head_parameters())) == len(list(model.parameters()))
    # The checkpoint needs the folder no more.
    model.save_pretrained(tmp_path / "model")
    for file in (tmp_path / "decoder").iterdir():
        file.unlink()
    batch = batch_of(model, processor, examples)
    torch.testing.assert_close(VLModel.from_pretrained(tmp_path / "model")(**batch).loss, model(**batch).loss)
    with pytest.raises(WeightsError, match=r"task.head.pretrained=.*cannot be opened"):
        make_model(task={"kind": "caption", "head": {"pretrained": str(tmp_path / "decoder")}})


def test_start_from_an_encoder(make_model: Callable[..., Any], tmp_path: Path) -> None:
    encoder = make_model(language={"width": 16, "depth": 2, "positions": 40}).language.encoder
    encoder.save_pretrained(tmp_path)
    model = make_model(
        task={"kind": "answer", "head": {"pretrained": str(tmp_path)}}, fusion={"width": 8, "heads": 2}, seed=3
    )
    state = model.decoder.inner.bert.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    small = make_model(language={"width": 16, "depth": 1, "positions": 40}).language.encoder
    small.config.num_hidden_layers = 2
    small.save_pretrained(tmp_path / "cut")
    with pytest.raises(WeightsError, match=r"lacks \d+ weights of its own architecture: bert.encoder.layer.1"):
        make_model(task={"kind": "answer", "head": {"pretrained": str(tmp_path / "cut")}})


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"architecture": "t5"}, "architecture='t5' is none of the decoders that were tried; use one of bart, bert"),
        ({"width": 30, "heads": 4}, "width=30 cannot be shared by heads=4"),
    ],
)
def test_decoders_that_cannot_be(decoder: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, {"task": {"kind": "caption", "head": decoder}})


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_an_end_is_refused(kind: str) -> None:
    config = tiny_tree(task={"kind": kind}).task
    for vocabulary in (Vocabulary(14, 0, 2, begin=2), Vocabulary(14, 0, 2, end=3)):
        with pytest.raises(ConfigError, match=r"head.kind='sequence' writes texts between .* set its bos_token"):
            config.build({"joint": 16}, vocabulary)


def test_texts_longer_than_the_positions_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tree = tiny_tree(task={"kind": "multitask", "heads": {"a": {"kind": "caption", "head": {"positions": 9}}, "b": {}}})
    processor = VLProcessor(
        ProcessorConfig(image_size=32, max_tokens=12), tokenizer, ["a", "b"], tree.task.tasks_by_name()
    )
    with pytest.raises(ConfigError, match=r"processor.max_target_tokens=32 is more than the 9 tokens that model.task"):
        VLModel.create_from_config(tree, processor)


def test_captions_of_four_images_are_learned(tmp_path: Path) -> None:
    """With the tokenizer of the pipeline, so that its texts come back as they were."""
    captions = {
        "a red dog.": (220, 30, 30),
        "a green parrot, on a tree": (30, 200, 30),
        "the unbelievably blue sea!": (30, 30, 220),
        "nothing": (240, 240, 240),
    }
    tokenizer = train_tokenizer(caption.replace("unbelievably", "un believ ably") for caption in captions)
    assert any("##" in token for token in tokenizer.tokenize("unbelievably"))
    tree = tiny_tree(
        language={"positions": 40},
        task={"kind": "caption", "head": {"width": 32, "heads": 2, "depth": 1, "dropout": 0.0}},
    )
    processor = VLProcessor(ProcessorConfig(image_size=32), tokenizer, [], tree.task.tasks_by_name())
    examples = []
    for caption, color in captions.items():
        file = io.BytesIO()
        Image.new("RGB", (32, 32), color).save(file, "PNG")
        examples.append(Example({"image": file.getvalue()}, ("",), (caption,)))
    batch = {name: torch.from_numpy(array) for name, array in collate(processor, examples).items()}
    torch.manual_seed(0)
    model = VLModel.create_from_config(tree, processor).train()
    model.vision.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    predictor = Predictor.from_pretrained(tmp_path)
    asked = [Example(example.inputs, ("",)) for example in examples]
    for top_k in (1, 3):
        written = [found[0].answers[0] for found in predictor.predict(asked, top_k=top_k)]
        assert [text for text, _ in written] == list(captions)
        assert min(probability for _, probability in written) > 0.5
