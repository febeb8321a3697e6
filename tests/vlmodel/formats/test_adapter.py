"""The adapters of a language model in peft's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.vlmodel.tiny import for_tasks
from vlmodel.config import ConfigError
from vlmodel.formats.adapter import BRIDGES, save_adapter
from vlmodel.processor import VLProcessor

SMALL: dict[str, Any] = {"kind": "llm", "width": 16, "depth": 1, "heads": 2, "positions": 64, "template": "plain"}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_reads_them(
    architecture: str, make_model: Callable[..., Any], processor: VLProcessor, tmp_path: Path
) -> None:
    base = make_model(task={"kind": "answer", "head": {**SMALL, "architecture": architecture}})
    base.decoder.inner.save_pretrained(tmp_path / "base")
    settings = {"kind": "llm", "pretrained": str(tmp_path / "base"), "training": "lora", "template": "plain"}
    model = make_model(task={"kind": "answer", "head": {**settings, "lora": {"rank": 2}}})
    for name, parameter in model.decoder.inner.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, for_tasks(processor, model.tasks), tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    ids_NT = torch.tensor([[4, 5, 6, 7]])
    before_NTK = plain(ids_NT).logits
    made = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    expected_NTK = model.decoder.inner(ids_NT).logits
    torch.testing.assert_close(made(ids_NT).logits, expected_NTK, rtol=1e-5, atol=1e-6)
    assert (before_NTK - expected_NTK).abs().max() > 1e-3
    assert load_file(tmp_path / "adapter" / BRIDGES).keys() == model.decoder.bridges.state_dict().keys()
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").get_vocab() == processor.tokenizer.get_vocab()


def test_models_without_adapters_are_refused(
    make_model: Callable[..., Any], processor: VLProcessor, tmp_path: Path
) -> None:
    for task in ({"kind": "answer", "head": SMALL}, {"kind": "vqa"}):
        model = make_model(task=task)
        with pytest.raises(ConfigError, match=r"writes the adapters of a language model, .*export.format='merged'"):
            save_adapter(model, for_tasks(processor, model.tasks), tmp_path)
