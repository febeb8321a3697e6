"""Large language models as heads: of any architecture, from scratch, pretrained, and with adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

from tests.vlmodel.tiny import batch_for, for_tasks
from vlmodel import bases, lora
from vlmodel.config import ConfigError, list_part_kinds, parse_config
from vlmodel.conversation import ConversationError, ConversationTurn, conversation_to_json
from vlmodel.decoder.llm import LanguageModel
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, VLProcessor
from vlmodel.sample import Sample, SampleTexts
from vlmodel.tokens import DecoderInput, Prompts, Tokens
from vlmodel.weights import WeightsError

FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "gpt2": {},
    "granite": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {"num_key_value_heads": 1},
    "mamba2": {"expand": 1, "head_dim": 8, "num_heads": 2, "n_groups": 1, "state_size": 8, "chunk_size": 4},
    "mistral": {},
    "olmo2": {},
    "phi3": {},
    "qwen3": {"tie_word_embeddings": True},
    "smollm3": {},
}
SMALL: dict[str, Any] = {"kind": "llm", "width": 16, "depth": 2, "heads": 2, "positions": 128}


def head(architecture: str = "llama", **settings: Any) -> dict[str, Any]:
    return {**SMALL, "architecture": architecture, "sizes": FAMILIES[architecture], **settings}


def loud(model: VLModel) -> VLModel:
    """Weights large enough for texts to differ."""
    torch.manual_seed(1)
    for name, parameter in model.decoder.named_parameters():
        if parameter.ndim > 1 and "lora_" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def predictor_of(model: VLModel, processor: VLProcessor) -> Predictor:
    return Predictor(model, for_tasks(processor, model.tasks))


def encoded(rows: int = 3, pictures: bool = True) -> DecoderInput:
    """Prompts of different lengths about pictures, of which the last row has none."""
    torch.manual_seed(2)
    ids_NT, mask_NT = torch.randint(4, 14, (rows, 6)), torch.ones(rows, 6, dtype=torch.bool)
    ids_NT[:, 2] = -1
    mask_NT[0, :2] = False
    mask_BS = torch.ones(rows, 5, dtype=torch.bool)
    mask_BS[0, 3:], mask_BS[-1] = False, False
    tokens = Tokens(torch.randn(rows, 5, 16), mask_BS & pictures, torch.randn(rows, 16))
    return DecoderInput({"vision": tokens}, {"vision": torch.arange(rows)}, None, prompts=Prompts(ids_NT, mask_NT))


def row(batch: DecoderInput, n: int) -> DecoderInput:
    assert batch.prompts is not None
    prompts = Prompts(batch.prompts.ids_NT[n : n + 1], batch.prompts.mask_NT[n : n + 1])
    streams = {"vision": batch.streams["vision"].select_rows(torch.tensor([n]))}
    return DecoderInput(streams, {"vision": torch.zeros(1, dtype=torch.long)}, None, prompts=prompts)


@pytest.fixture
def make_head(make_model: Callable[..., Any]) -> Callable[..., LanguageModel]:
    def make(**settings: Any) -> LanguageModel:
        return loud(make_model(task={"kind": "answer", "head": settings})).decoder  # type: ignore[return-value]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, make_model: Callable[..., Any], processor: VLProcessor, tmp_path: Path) -> None:
    model = loud(make_model(task={"kind": "answer", "head": head(family)}))
    decoder, batch, processor = model.decoder, encoded(), for_tasks(processor, model.tasks)
    assert isinstance(decoder, LanguageModel)

    # Written with a cache as without, and as a whole pass over the text would have it.
    x_NLD, mask_NL = decoder._embed_prompts(batch)
    options = {"inputs_embeds": x_NLD, "attention_mask": mask_NL.long(), "max_new_tokens": 5, "min_new_tokens": 5}
    options |= {"do_sample": False, "eos_token_id": 3, "pad_token_id": 3}
    with_cache = decoder.inner.generate(**options, return_dict_in_generate=True, output_logits=True)
    ids_NT = with_cache.sequences
    if family != "mamba2":  # which has no generation without its state
        assert decoder.inner.generate(**options, use_cache=False).equal(ids_NT)
    logits_NTK = decoder._text_logits((x_NLD, mask_NL), ids_NT, torch.ones_like(ids_NT, dtype=torch.bool))
    torch.testing.assert_close(torch.stack(with_cache.logits, 1), logits_NTK, rtol=1e-4, atol=1e-5)

    # Alone as in a batch, in which it is padded in front.
    together = decoder.generate_answers(batch, processor, 1, max_new_tokens=5)
    for n, answers in enumerate(together):
        [alone] = decoder.generate_answers(row(batch, n), processor, 1, max_new_tokens=5)
        assert [text for text, _ in alone] == [text for text, _ in answers]
        assert alone[0][1] == pytest.approx(answers[0][1], rel=1e-4)

    # A missing picture takes no place: the bare language model's logits.
    prompts = batch.prompts
    assert prompts is not None
    bare_NT = torch.cat([prompts.ids_NT[-1:, :2], prompts.ids_NT[-1:, 3:], ids_NT[-1:]], 1)
    bare = decoder.inner(input_ids=bare_NT).logits[:, -6:-1]
    torch.testing.assert_close(logits_NTK[-1:], bare, rtol=1e-4, atol=1e-5)

    # Pretrained with adapters: at first the same; the frozen weights lie apart; a reload is bit-equal.
    decoder.inner.save_pretrained(tmp_path / "llm")
    adapted = make_model(
        task={
            "kind": "answer",
            "head": {"kind": "llm", "pretrained": str(tmp_path / "llm"), "training": "lora", "template": "plain"},
        }
    ).eval()
    adapted.decoder.bridges.load_state_dict(decoder.bridges.state_dict())
    torch.testing.assert_close(
        adapted.decoder._text_logits((x_NLD, mask_NL), ids_NT, torch.ones_like(ids_NT, dtype=torch.bool)),
        logits_NTK,
        rtol=1e-5,
        atol=1e-6,
    )
    trained = [name for name, p in adapted.decoder.inner.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    for name in trained:
        torch.nn.init.normal_(adapted.decoder.inner.get_parameter(name), std=0.1)
    expected = adapted.decoder.generate_answers(batch, processor, 1, max_new_tokens=5)
    adapted.save_pretrained(tmp_path / "model")
    assert list(bases.read_base_weights_list(tmp_path / "model")) == ["decoder"]
    from safetensors import safe_open

    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as stored:
        assert all("lora_" in name for name in stored.keys() if name.startswith("decoder.inner."))  # noqa: SIM118
    again = VLModel.from_pretrained(tmp_path / "model").eval()
    assert again.decoder.generate_answers(batch, processor, 1, max_new_tokens=5) == expected
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in adapted.named_parameters() if p.requires_grad
    ]


@pytest.mark.parametrize("kind", ["caption", "answer"])
@pytest.mark.parametrize("reads", ["streams", "joint"])
@pytest.mark.parametrize("bridge", list_part_kinds("vlmodel.bridge"))
def test_every_weight_is_trained_and_a_text_is_learned(
    kind: str, reads: str, bridge: str, make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(task={"kind": kind, "head": head(reads=reads, bridge={"kind": bridge})})
    assert (model.topology is None) == (reads == "streams")
    assert (model.language is None) == (kind == "caption" or reads == "streams")
    batch = batch_for(processor, model.tasks, examples)
    output = model.train()(**batch)
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    # What is said, and its end.
    lengths = batch["target_mask_NT"].sum(1)
    assert lengths.tolist() == ([7, 7, 4] if kind == "caption" else [2, 2, 2])
    assert output.count.item() == (lengths * torch.tensor([1, 0.5, 1])).sum()
    if kind == "answer" and bridge == "mlp":
        known = [("red", "circle"), ("shape",)]
        examples = [Example(e.inputs, e.texts, targets) for e, targets in zip(examples, known, strict=True)]
        batch = batch_for(processor, model.tasks, examples)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        found = predictor_of(model, processor).predict(examples, 1)
        assert [p.answers[0][0] for rows in found for p in rows] == ["red", "circle", "shape"]


@pytest.mark.parametrize("reads", ["streams", "joint"])
def test_what_the_assistant_says_is_learned_and_nothing_else(
    reads: str, make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(task={"kind": "converse", "head": head(reads=reads)})
    [task] = model.tasks.values()
    turns = [
        ConversationTurn("user", (None, "what is it ?")),
        ConversationTurn("assistant", ("red",)),
        ConversationTurn("user", ("what shape ?",)),
    ]
    talked = SampleTexts(conversations=((*turns, ConversationTurn("assistant", ("circle",))),))
    sample = Sample("", examples[0].inputs, talked, frozenset({"image", "conversations"}))
    [rows] = task.training_rows([sample])
    example = Example(sample.inputs, tuple(row.text for row in rows), tuple(row.target for row in rows))
    made = for_tasks(processor, model.tasks)
    batch = {
        name: torch.from_numpy(array)
        for name, array in made.collate_tasks([made.decode_inputs(example)], {"": [example]}).items()
    }
    words = [made.tokenizer.convert_ids_to_tokens(ids[mask]) for ids, mask in
             zip(batch["target_ids_NT"], batch["target_mask_NT"], strict=True)]  # fmt: skip
    assert words == [["red", "[SEP]"], ["circle", "[SEP]"]]
    # The second prompt holds the first reply; an encoder of texts reads what is asked last.
    longer, shorter = batch["prompt_mask_NT"].sum(1).flip(0).tolist()
    assert longer > shorter + 4
    if reads == "joint":
        read = [made.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids_NT"]]
        assert read == ["what is ?", "what shape ?"]
    output = model(**batch)
    assert output.count.item() == 4
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    [found] = Predictor(model, made).predict([example], 1)
    assert [prediction.answers[0][0] for prediction in found] == ["red", "circle"]


def test_a_head_that_reads_no_conversation() -> None:
    with pytest.raises(ConfigError, match=r"head.kind='sequence' reads no conversation; use head.kind='llm'"):
        parse_config(ModelConfig, {"task": {"kind": "converse", "head": {"kind": "sequence"}}})


def test_padding_and_neighbours_change_nothing(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = loud(make_model(task={"kind": "answer", "head": head()}))
    batch = batch_for(processor, model.tasks, examples)
    whole = model(**batch)
    alone = [model(**batch_for(processor, model.tasks, [example])) for example in examples]
    for figure in ("loss_sum", "count", "correct"):
        torch.testing.assert_close(sum(getattr(o, figure) for o in alone), getattr(whole, figure))
    padded = dict(batch)
    for name in ("prompt", "target"):
        padded[f"{name}_ids_NT"] = F.pad(batch[f"{name}_ids_NT"], (3, 0), value=5)
        padded[f"{name}_mask_NT"] = F.pad(batch[f"{name}_mask_NT"], (3, 0), value=False)
    torch.testing.assert_close(model(**padded).loss_sum, whole.loss_sum)
    unknown = {**batch, "target_mask_NT": batch["target_mask_NT"].clone()}
    unknown["target_mask_NT"][1] = False
    weights = torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(model(**unknown).loss_sum, model(**{**batch, "weights_N": weights}).loss_sum)


def test_a_batch_without_rows_has_every_gradient(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(task={"kind": "answer", "head": head()})
    nothing = batch_for(processor, model.tasks, [Example(e.inputs, ()) for e in examples])
    output = model.train()(**nothing)
    assert output.loss.item() == 0
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_tokens_stand_where_the_slot_is(make_head: Callable[..., LanguageModel]) -> None:
    decoder, batch = make_head(**head()), encoded()
    x_NLD, mask_NL = decoder._embed_prompts(batch)
    assert batch.prompts is not None
    ids_NT = batch.prompts.ids_NT
    bridged, _ = decoder.bridges["vision"](batch.streams["vision"].x_BTD, batch.streams["vision"].mask_BT)
    words = decoder.inner.get_input_embeddings()(ids_NT.clamp_min(0))
    for n, expected in enumerate(
        [
            torch.cat([bridged[0, :3], words[0, 3:]]),
            torch.cat([words[1, :2], bridged[1], words[1, 3:]]),
            torch.cat([words[2, :2], words[2, 3:]]),
        ]
    ):
        assert mask_NL[n].sum() == len(expected)
        torch.testing.assert_close(x_NLD[n, mask_NL[n]], expected)


def test_streams_have_bridges_of_their_own_and_follow_in_order(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    from tests.vlmodel.tiny import IMU

    model = loud(make_model(inputs={"imu": IMU}, task={"kind": "answer", "head": head()}))
    assert list(model.decoder.bridges) == ["imu", "vision"]
    tree = model.config.model
    parsed = parse_config(ModelConfig, tree)
    batch = batch_for(processor, model.tasks, examples, parsed)
    model.train()(**batch).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    made = for_tasks(processor, model.tasks, parsed)
    both = Predictor(model, made).predict(examples[:1], 1, max_new_tokens=4)
    without = Predictor(model, made).predict(
        [Example({"image": examples[0].inputs["image"]}, examples[0].texts)], 1, max_new_tokens=4
    )
    assert both[0][0].answers[0][1] != without[0][0].answers[0][1]


def test_a_text_is_streamed_as_it_is_written(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = loud(make_model(task={"kind": "caption", "head": head()}))
    predictor = predictor_of(model, processor)
    example = Example(examples[0].inputs, ("",))
    [[whole]] = predictor.predict([example], 1, max_new_tokens=6)
    streamer = TextIteratorStreamer(predictor.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    predictor.predict([example], 1, max_new_tokens=6, streamer=streamer)
    assert "".join(streamer).strip() == whole.answers[0][0]


def test_merged_adapters_give_the_same_texts(make_head: Callable[..., LanguageModel], tmp_path: Path) -> None:
    make_head(**head()).inner.save_pretrained(tmp_path)
    decoder = make_head(kind="llm", pretrained=str(tmp_path), training="lora", template="plain")
    for name, parameter in decoder.inner.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    batch = encoded()
    before = decoder._text_logits(
        decoder._embed_prompts(batch), torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2, dtype=torch.bool)
    )
    lora.merge_adapters(decoder.inner)
    after = decoder._text_logits(
        decoder._embed_prompts(batch), torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2, dtype=torch.bool)
    )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_frozen_and_checkpointed(
    make_model: Callable[..., Any], make_head: Callable[..., LanguageModel], processor: VLProcessor,
    examples: list[Example], tmp_path: Path,
) -> None:  # fmt: skip
    make_head(**head()).inner.save_pretrained(tmp_path)
    gradients = []
    for checkpointing in (False, True):
        settings = {"kind": "llm", "pretrained": str(tmp_path), "training": "frozen", "template": "plain"}
        model = make_model(task={"kind": "answer", "head": {**settings, "gradient_checkpointing": checkpointing}})
        assert not any(p.requires_grad for p in model.decoder.inner.parameters())
        model.train()(**batch_for(processor, model.tasks, examples)).loss.backward()
        gradients.append([p.grad for p in model.decoder.bridges.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_base_without_a_chat_template(make_head: Callable[..., LanguageModel], tmp_path: Path) -> None:
    make_head(**head()).inner.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no chat template; use one that has, .* or set head.template='plain'"):
        make_head(kind="llm", pretrained=str(tmp_path))


def test_a_tokenizer_of_another_model(
    make_head: Callable[..., LanguageModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models

    make_head(**head()).inner.save_pretrained(tmp_path)
    other = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=other, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"and the tokenizer differ: the token .* set vocabulary.tokenizer="):
        make_head(kind="llm", pretrained=str(tmp_path), template="plain")
    tokenizer.save_pretrained(tmp_path)
    make_head(kind="llm", pretrained=str(tmp_path), template="plain")


def test_a_prompt_longer_than_the_window(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(task={"kind": "answer", "head": head(positions=40)})
    with pytest.raises(ConversationError, match=r"the prompt has \d+ tokens with its inputs, and .* takes 40"):
        predictor_of(model, processor).predict(examples, 1)
    with pytest.raises(ConversationError, match=r"have \d+ tokens, and the language model takes 40; lower"):
        model(**batch_for(processor, model.tasks, examples))


def test_more_pictures_than_the_model_takes(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(task={"kind": "answer", "head": head()})
    asked = conversation_to_json((ConversationTurn("user", (None, None, "is there a circle ?")),))
    with pytest.raises(ConversationError, match=r"has places for 2 inputs, and the model takes 1: image; leave out"):
        predictor_of(model, processor).predict([Example(examples[0].inputs, (asked,))], 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "lama"}, "architecture='lama' is unknown to transformers; close names: llama"),
        ({"architecture": "vit"}, "architecture='vit' is no causal language model"),
        ({"architecture": "bert"}, "architecture='bert' reads texts in both directions"),
        ({"architecture": "cpmant"}, "takes no inputs_embeds, as which a picture is read; use one such as llama"),
        ({"training": "lora"}, "training='lora' leaves weights as they are, and without pretrained they are random"),
        ({"width": 30, "heads": 4}, "width=30 cannot be shared by heads=4"),
    ],
)
def test_language_models_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, {"task": {"kind": "answer", "head": {"kind": "llm", **settings}}})


def test_sizes_that_an_architecture_does_not_have(make_head: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ConfigError, match=r"sizes has 'widht', which llama has no setting of"):
        make_head(**{**SMALL, "sizes": {"widht": 3}})


def test_a_language_encoder_that_is_not_built_limits_no_text(
    make_model: Callable[..., Any], processor: VLProcessor
) -> None:
    tree = {"language": {"positions": 8}, "task": {"kind": "answer", "head": head()}}
    parse_config(ModelConfig, tree).check_processor(processor.config)
    assert parse_config(ModelConfig, tree).text_limits(processor) == (None, 128)
    encoded = {**tree, "task": {"kind": "answer", "head": head(reads="joint")}}
    with pytest.raises(ConfigError, match=r"max_tokens=12 is more than the 8 tokens that model.language takes"):
        parse_config(ModelConfig, encoded).check_processor(processor.config)


def test_a_file_that_is_no_gguf(make_head: Callable[..., LanguageModel], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(WeightsError, match=r"model.gguf' cannot be opened"):
        make_head(kind="llm", pretrained=str(tmp_path / "model.gguf"), template="plain")


@pytest.mark.parametrize("reads", ["streams", "joint"])
@pytest.mark.parametrize("bridge", ["mlp", "resampler"])
@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_a_text_looks_at_what_changes_it(
    family: str,
    bridge: str,
    reads: str,
    make_model: Callable[..., Any],
    processor: VLProcessor,
    examples: list[Example],
) -> None:
    """Each row by itself, with weights that are frozen, too, and without a trace in the model."""
    settings = head(family, reads=reads, bridge={"kind": bridge})
    model = loud(make_model(vision={"grid": 2}, task={"kind": "answer", "head": settings}))
    predictor = predictor_of(model, processor)
    whole = predictor.predict(examples, 1, attention=True)
    for of_example, example in zip(whole, examples, strict=True):
        for n, one in enumerate(of_example):
            assert one.attention_HW is not None
            assert one.attention_HW.shape == (2, 2)
            assert one.attention_HW.sum() == pytest.approx(1, abs=1e-4)
            alone = Example(example.inputs, example.texts[n : n + 1])
            [[again]] = predictor.predict([alone], 1, attention=True)
            assert again.attention_HW == pytest.approx(one.attention_HW, abs=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen = predictor_of(model.requires_grad_(False), processor).predict(examples, 1, attention=True)
    assert frozen[0][0].attention_HW == pytest.approx(whole[0][0].attention_HW, abs=1e-5)


def test_a_text_does_not_look_at_what_it_never_read(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    """Of two inputs each has its weights; what has no weight changes no loss, and the greatest changes it most."""
    model = loud(make_model(vision={"grid": 2}, task={"kind": "answer", "head": SMALL}))
    predictor = predictor_of(model, processor)
    example = Example(examples[0].inputs, examples[0].texts[:1])
    decoder: Any = model.decoder
    made = for_tasks(processor, model.tasks)
    batch = made.collate_tasks([made.decode_inputs(example)], {next(iter(made.tasks)): [example]})
    with torch.inference_mode():
        _, encoded = predictor._encode_batch(batch, next(iter(made.tasks)), attention=False)
        relevance = decoder.compute_stream_attention(encoded, made, [[("a red circle", 1.0)]])["vision"]
    targets = {
        key: torch.from_numpy(value) for key, value in decoder.config.collate_targets(["a red circle"], made).items()
    }
    tokens = encoded.streams["vision"]
    step, changes = 1e-3, []
    for n in range(tokens.x_BTD.shape[1]):
        losses = []
        for sign in (1, -1):
            x_BTD = tokens.x_BTD.clone()
            x_BTD[:, n] *= 1 + sign * step
            moved = Tokens(x_BTD, tokens.mask_BT.clone(), tokens.pooled_BD.clone())
            with torch.no_grad():
                losses.append(
                    decoder(
                        DecoderInput({"vision": moved}, encoded.rows, None, prompts=encoded.prompts), **targets
                    ).loss_sum
                )
        changes.append(float(losses[0] - losses[1]) / (2 * step))
    assert relevance[0].tolist() == pytest.approx([abs(change) for change in changes], rel=0.05, abs=2e-3)
