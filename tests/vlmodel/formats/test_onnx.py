"""Encoders as ONNX: a runtime without torch gives what the model gives."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.real_weights import efficientnet_lite0, minilm
from vlmodel.config import ConfigError, parse_config
from vlmodel.formats import onnx
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "runs", "two", "men"]
TEXTS = ("a dog runs", "two men", "dog", "a a a a a a dog")
SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32
}  # fmt: skip
TOWER = {"kind": "tower", "width": 16, "depth": 1, "heads": 2, "positions": 12}
CLIP = {"kind": "hf", "architecture": "clip_vision_model", "settings": {**SMALL, "image_size": 32, "patch_size": 8}}
TREES: dict[str, dict[str, Any]] = {
    "cnn": {
        "vision": {"kind": "cnn", "name": "resnet18", "stages": 1, "grid": 2},
        "language": {"width": 16, "depth": 1, "heads": 2, "positions": 12, "pooling": "mean"},
    },
    "lora": {
        "vision": {**CLIP, "output": "pooled"},
        "language": {"width": 16, "depth": 1, "heads": 2, "positions": 12, "lora": {"rank": 2}},
    },
    "clip": {"vision": {**CLIP, "output": "pooled"}, "language": {**TOWER, "architecture": "clip_text_model"}},
    "siglip": {
        "vision": {**CLIP, "architecture": "siglip_vision_model", "output": "pooled"},
        "language": {**TOWER, "architecture": "siglip_text_model"},
    },
}


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip


def make(tree: dict[str, Any], words: Any = None, **settings: Any) -> Predictor:
    torch.manual_seed(0)
    config = parse_config(ModelConfig, {"task": {"kind": "contrastive", "width": 8}, **tree})
    given = parse_config(ProcessorConfig, {"image_size": 32, "max_tokens": 12, **settings})
    processor = VLProcessor(given, words or tokenizer(), ["yes", "no"], config.task.tasks_by_name())
    model = VLModel.create_from_config(config, processor).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ("lora_" in name or not words):
            nn.init.normal_(parameter, std=0.2)
    return Predictor(model, processor)


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def run(file: Path, **given: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return list(session.run(None, given))


def check_embeddings(predictor: Predictor, folder: Path) -> None:
    """Pictures and texts of a request, from their bytes and letters to their similarities."""
    examples = [Example({"image": picture(n)}, TEXTS if n == 0 else ()) for n in range(2)]
    embedded = predictor.embed(examples)
    read = VLProcessor.from_pretrained(folder)
    pixels = np.stack([read.decode_image(example.inputs["image"]) for example in examples])
    [image_BD] = run(folder / "image.onnx", pixels=pixels)
    limit = {"padding": True, "truncation": True, "max_length": read.config.max_tokens}
    encoded = read.tokenizer(list(TEXTS), return_tensors="np", **limit)
    given = {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    [text_ND] = run(folder / "text.onnx", **given)
    expected = np.stack([of_input for of_input, _ in embedded if of_input is not None])
    np.testing.assert_allclose(image_BD, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(text_ND, embedded[0][1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(image_BD @ text_ND.T, expected @ embedded[0][1].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", TREES)
def test_embeddings_are_the_models(parts: str, tmp_path: Path) -> None:
    predictor = make(TREES[parts])
    assert onnx.save_onnx(predictor.model, predictor.processor, tmp_path) == ["vision.onnx", "image.onnx", "text.onnx"]
    check_embeddings(predictor, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"processor.json", "tokenizer.json"}


def test_the_tower_of_a_model_that_does_not_embed(tmp_path: Path) -> None:
    predictor = make({**TREES["cnn"], "task": {"kind": "vqa"}}, image_size=[32, 64])
    assert onnx.save_onnx(predictor.model, predictor.processor, tmp_path) == ["vision.onnx"]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 64, 3), np.uint8)
    tokens_BTD, pooled_BD = run(tmp_path / "vision.onnx", pixels=pixels)
    vision: Any = predictor.model.vision
    with torch.no_grad():
        expected = vision(torch.from_numpy(pixels))
    for found, own in ((tokens_BTD, expected.x_BTD), (pooled_BD, expected.pooled_BD)):
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-4 * float(own.abs().max()))


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make({"vision": {"kind": "none"}, "language": TREES["cnn"]["language"], "task": {"kind": "vqa"}})
    with pytest.raises(ConfigError, match=r"this model has neither; set export\.format='merged'"):
        onnx.save_onnx(predictor.model, predictor.processor, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r'needs onnxscript; install it with pip install "raylm\[onnx\]"'):
        onnx.save_onnx(predictor.model, predictor.processor, tmp_path)


def test_a_graph_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make({**TREES["cnn"], "task": {"kind": "vqa"}})
    export = torch.onnx.export

    def exported_of_other_weights(module: Any, *given: Any, **options: Any) -> Any:
        done = export(module, *given, **options)
        module.vision.backbone[0].weight.data.mul_(1.5)
        return done

    monkeypatch.setattr(torch.onnx, "export", exported_of_other_weights)
    with pytest.raises(ConfigError, match=r"tokens of vision\.onnx differs from the model's by .* set export\.format"):
        onnx.save_onnx(predictor.model, predictor.processor, tmp_path)


@pytest.mark.slow
def test_real_towers(tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(str(minilm()), local_files_only=True)
    lite0 = {"kind": "timm", "name": "tf_efficientnet_lite0", "weights": str(efficientnet_lite0()), "match": "order"}
    tree = {
        "vision": {**lite0, "output": "pooled"}, "language": {"pretrained": str(minilm()), "pooling": "mean"}
    }  # fmt: skip
    predictor = make(tree, words, image_size=224, max_tokens=32)
    onnx.save_onnx(predictor.model, predictor.processor, tmp_path)
    check_embeddings(predictor, tmp_path)
