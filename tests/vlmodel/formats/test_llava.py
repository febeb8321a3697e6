"""Models of LLaVA's parts, out to transformers and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vlmodel.config import ConfigError, parse_config
from vlmodel.conversation import Conversation, ConversationTurn, conversation_from_question
from vlmodel.decoder.llm import LanguageModel
from vlmodel.formats import llava
from vlmodel.formats.merged import merge_adapters
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.weights import WeightsError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {"architecture": "clip_vision_model", "settings": {**SMALL, "image_size": 32, "patch_size": 8}},
    "siglip": {"architecture": "siglip_vision_model", "settings": {**SMALL, "image_size": 32, "patch_size": 8}},
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] | trim }}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
LLAVA_15 = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] }} : {% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image> a {% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
TURNS = (
    *conversation_from_question("is it red?"),
    ConversationTurn("assistant", ("a circle",)),
    ConversationTurn("user", ("what color?",)),
)


@pytest.fixture
def chat_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    import copy

    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"})
    made.add_tokens(["user", "assistant", "system", "it", ":"])
    made.chat_template = CHATML
    return made


def build(
    tokenizer: PreTrainedTokenizerFast, vision: dict[str, Any], template: str = "chat", **settings: Any
) -> tuple[VLModel, VLProcessor]:
    """A model with weights large enough for logits to differ."""
    torch.manual_seed(0)
    head = {"kind": "llm", "width": 16, "depth": 2, "heads": 2, "positions": 128, "template": template, **settings}
    tree = parse_config(ModelConfig, {"vision": {"kind": "hf", **vision}, "task": {"kind": "converse", "head": head}})
    config = ProcessorConfig(image_size=32, max_tokens=12, crop=0.8, interpolation="bicubic")
    processor = VLProcessor(config, tokenizer, (), tree.task.tasks_by_name())
    model = VLModel.create_from_config(tree, processor)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), processor


def picture(side: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)


@torch.inference_mode()
def logits_of(folder: Path, turns: Conversation, pixels_HWC: np.ndarray) -> Tensor:
    """transformers' logits of the first token of a reply, all of it done by transformers."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    messages = [
        {
            "role": turn.role,
            "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.parts],
        }
        for turn in turns
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    given = processor(images=Image.fromarray(pixels_HWC), text=text, return_tensors="pt")
    return model(**given).logits[0, -1]


@torch.inference_mode()
def own_logits(model: VLModel, processor: VLProcessor, turns: Conversation, pixels_HWC: np.ndarray) -> Tensor:
    return llava.first_token_logits(model, processor, pixels_HWC, turns)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("vision", "settings"),
    [({}, {"template": "plain"}), ({"layer": -2}, {"system": 'be "brief"'}), ({}, {"behind_input": " a "})],
)
def test_transformers_gives_the_same_logits(
    tower: str, architecture: str, vision: dict[str, Any], settings: dict[str, Any],
    chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
) -> None:  # fmt: skip
    tied = {"sizes": {"tie_word_embeddings": architecture == "qwen3"}}
    model, processor = build(chat_tokenizer, {**TOWERS[tower], **vision}, architecture=architecture, **tied, **settings)
    llava.save_llava(model, processor, tmp_path)
    pixels_HWC = picture()
    ours_K = own_logits(model, processor, TURNS, pixels_HWC)
    # crop=0.8 of a picture of 32 pixels is one of 40, whose middle stays: here it is given as it is.
    settings_file = tmp_path / "processor_config.json"
    prepared = json.loads(settings_file.read_text())
    assert prepared["image_processor"]["size"] == {"height": 40, "width": 40}
    prepared["image_processor"] |= {"do_resize": False}
    settings_file.write_text(json.dumps(prepared))
    theirs_K = logits_of(tmp_path, TURNS, pixels_HWC)
    torch.testing.assert_close(theirs_K[: len(ours_K)], ours_K, rtol=1e-4, atol=1e-4)

    # And back.
    again, made = llava.load_llava(tmp_path)
    torch.testing.assert_close(own_logits(again, made, TURNS, pixels_HWC)[: len(ours_K)], ours_K, rtol=1e-4, atol=1e-4)
    assert made.config.image_resizing == processor.config.image_resizing
    again.save_pretrained(tmp_path / "own")
    reloaded = VLModel.from_pretrained(tmp_path / "own")
    torch.testing.assert_close(
        own_logits(reloaded, made, TURNS, pixels_HWC)[: len(ours_K)], ours_K, rtol=1e-4, atol=1e-4
    )


def test_transformers_prepares_pictures_alike(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, processor = build(chat_tokenizer, TOWERS["clip"])
    llava.save_llava(model, processor, tmp_path)
    smooth_HWC = np.stack(np.meshgrid(*[np.linspace(0, 255, n) for n in (90, 70)], indexing="ij") * 2, -1)[..., :3]
    photograph = Image.fromarray(smooth_HWC.astype(np.uint8))
    made = LlavaProcessor.from_pretrained(tmp_path)
    theirs_BCHW = made.image_processor(photograph, return_tensors="pt")["pixel_values"]
    import io

    file = io.BytesIO()
    photograph.save(file, "PNG")
    ours_HWC = torch.from_numpy(processor.decode_image(file.getvalue()))
    assert model.vision is not None
    ours_BCHW = model.vision.normalise_pixels(ours_HWC[None])
    assert (theirs_BCHW - ours_BCHW).abs().max() < 0.05  # of a range of about four


def test_the_picture_is_never_a_word(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, processor = build(chat_tokenizer, TOWERS["clip"])
    llava.save_llava(model, processor, tmp_path)
    made = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert made.generation_config.suppress_tokens == [made.config.image_token_index]
    assert made.config.image_token_index == len(chat_tokenizer)
    assert made.generation_config.eos_token_id == [chat_tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_adapters_are_merged(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base, _ = build(chat_tokenizer, TOWERS["clip"])
    assert isinstance(base.decoder, LanguageModel)
    base.decoder.inner.save_pretrained(tmp_path / "base")
    lora = {"rank": 2}
    model, processor = build(
        chat_tokenizer,
        {**TOWERS["clip"], "lora": lora},
        pretrained=str(tmp_path / "base"),
        training="lora",
        lora=lora,
    )
    before_K = own_logits(model, processor, TURNS, picture())
    merged, plain = merge_adapters(model, processor)
    assert not any("lora_" in name for name in merged.state_dict())
    torch.testing.assert_close(own_logits(merged, plain, TURNS, picture()), before_K, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    plain.save_pretrained(tmp_path / "merged")
    again, read = VLModel.from_pretrained(tmp_path / "merged"), VLProcessor.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(own_logits(again, read, TURNS, picture()), before_K, rtol=1e-4, atol=1e-4)
    llava.save_llava(merged, plain, tmp_path / "llava")


@pytest.mark.parametrize(
    ("vision", "settings", "message"),
    [
        ({**TOWERS["clip"], "projection": 12}, {}, "vision.projection=12, and LLaVA has null"),
        ({**TOWERS["clip"], "grid": 2}, {}, "vision.grid=2, and LLaVA has null"),
        ({"architecture": "dinov2", "settings": {**SMALL, "patch_size": 8}}, {}, "is no CLIP or SigLIP tower"),
        (TOWERS["clip"], {"bridge": {"kind": "resampler", "width": 8}}, "'resampler' is no MLP of two layers"),
        (TOWERS["clip"], {"bridge": {"kind": "mlp", "layers": 1}}, "'mlp' is no MLP of two layers"),
        (TOWERS["clip"], {"reads": "joint"}, "no language model that reads the image's stream alone"),
        (TOWERS["clip"], {"architecture": "gpt2"}, "'gpt2' is not a body and a linear output"),
    ],
)
def test_other_models_are_refused(
    vision: dict[str, Any], settings: dict[str, Any], message: str, chat_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:  # fmt: skip
    model, processor = build(chat_tokenizer, vision, **settings)
    with pytest.raises(ConfigError, match=f"export.format='llava': .*{message}.*set export.format='merged'"):
        llava.save_llava(model, processor, tmp_path)


def test_an_output_that_is_scaled_gives_other_logits(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, processor = build(chat_tokenizer, TOWERS["clip"], architecture="granite", sizes={"logits_scaling": 3.0})
    with pytest.raises(ConfigError, match=r"logits differ by .* of the largest"):
        llava.save_llava(model, processor, tmp_path)


def test_a_template_of_parts_is_read(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, processor = build(chat_tokenizer, TOWERS["clip"])
    llava.save_llava(model, processor, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(LLAVA_15)
    read, made = llava.load_llava(tmp_path)
    assert isinstance(read.decoder, LanguageModel)
    assert read.decoder.config.behind_input.strip() == "a"
    settings_file = tmp_path / "processor_config.json"
    prepared = json.loads(settings_file.read_text())
    prepared["image_processor"] |= {"do_resize": False}
    settings_file.write_text(json.dumps(prepared))
    torch.testing.assert_close(
        own_logits(read, made, conversation_from_question("is it red?"), picture()),
        logits_of(tmp_path, conversation_from_question("is it red?"), picture()),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": [-2, -1]}, r"names several; use one"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full', and what is read"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
    ],
)
def test_checkpoints_that_cannot_be_read(
    change: dict[str, Any], message: str, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, processor = build(chat_tokenizer, TOWERS["clip"])
    llava.save_llava(model, processor, tmp_path)
    assert llava.is_llava(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | change))
    with pytest.raises(ConfigError, match=message):
        llava.load_llava(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    file.write_text(json.dumps(stored))
    with pytest.raises(WeightsError, match="is no checkpoint of LLaVA that can be read"):
        llava.load_llava(tmp_path)
    file.unlink()
    assert not llava.is_llava(tmp_path)
    with pytest.raises(WeightsError, match=r"has no config\.json of LLaVA"):
        llava.load_llava(tmp_path)
