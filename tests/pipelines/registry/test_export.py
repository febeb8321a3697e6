"""Models written for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from pipelines.registry.export import ExportConfig, export_model
from pipelines.workflows import export
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError, parse_config
from vlmodel.conversation import conversation_from_question
from vlmodel.formats import llava
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig, VLProcessor

CLIP: dict[str, Any] = {
    "kind": "hf",
    "architecture": "clip_vision_model",
    "settings": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
        "patch_size": 8,
    },
}  # fmt: skip
LLM: dict[str, Any] = {"kind": "llm", "width": 16, "depth": 1, "heads": 2, "positions": 128, "template": "plain"}
PIXELS_HWC = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def save(folder: Path, vision: dict[str, Any], **settings: Any) -> torch.Tensor:
    """Save a model into a folder. Returns logits of its."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "it", "?"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    tree = parse_config(ModelConfig, {"vision": vision, "task": {"kind": "answer", "head": {**LLM, **settings}}})
    processor = VLProcessor(ProcessorConfig(image_size=32), tokenizer, (), tree.task.tasks_by_name())
    model = VLModel.create_from_config(tree, processor).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return logits(folder)


@torch.inference_mode()
def logits(folder: Path) -> torch.Tensor:
    model, processor = VLModel.from_pretrained(folder).eval(), VLProcessor.from_pretrained(folder)
    return llava.first_token_logits(model, processor, PIXELS_HWC, conversation_from_question("what is it?"))


def test_the_format_follows_the_parts(tmp_path: Path) -> None:
    expected_K = save(tmp_path / "model", CLIP)
    out = tmp_path / "export"
    assert export_model(tmp_path / "model", ExportConfig(), out) == "llava"
    LlavaForConditionalGeneration.from_pretrained(out / "llava")
    # A folder of LLaVA's is read back.
    assert export_model(out / "llava", ExportConfig(), out) == "merged"
    torch.testing.assert_close(logits(out / "merged")[: len(expected_K)], expected_K, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"llava exists; name another folder, or remove it"):
        export_model(tmp_path / "model", ExportConfig(), out)


def test_adapters(tmp_path: Path) -> None:
    cnn = {"kind": "cnn", "name": "resnet18", "stages": 1}
    save(tmp_path / "first", cnn)
    VLModel.from_pretrained(tmp_path / "first").decoder.inner.save_pretrained(tmp_path / "base")  # type: ignore[union-attr, operator]
    expected_K = save(tmp_path / "model", cnn, pretrained=str(tmp_path / "base"), training="lora", lora={"rank": 2})
    out = tmp_path / "export"
    assert export_model(tmp_path / "model", ExportConfig(), out) == "adapter"
    assert {file.name for file in (out / "adapter").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "bridges.safetensors", "tokenizer.json"
    }  # fmt: skip
    AutoModelForCausalLM.from_pretrained(tmp_path / "base").load_adapter(str(out / "adapter"))
    assert export_model(tmp_path / "model", ExportConfig(format="merged"), out) == "merged"
    torch.testing.assert_close(logits(out / "merged"), expected_K, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"format='llava': vision.kind='cnn' is no CLIP or SigLIP tower"):
        export_model(tmp_path / "model", ExportConfig(format="llava"), out)
    assert sorted(file.name for file in out.iterdir()) == ["adapter", "merged"]


def test_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "model", {"kind": "cnn", "name": "resnet18", "stages": 1})
    settings = {"evaluate": {"model": str(tmp_path / "model")}, "storage": str(tmp_path / "runs")}
    work = Workspace(parse_config(JobConfig, {**settings, "export": {"out": str(tmp_path / "out")}}))
    assert export.run(work) == tmp_path / "out"
    assert "version 0 as merged" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"export.out='s3://a/b' is a URI, and an export is a local folder"):
        export.run(Workspace(parse_config(JobConfig, {**settings, "export": {"out": "s3://a/b"}})))
