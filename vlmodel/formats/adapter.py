"""Exports the adapters of a language model as a folder of peft (https://huggingface.co/docs/peft), for programs that
load an adapter onto the base model; the bridges, which feed pictures into it, are written beside them.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from vlmodel import lora
from vlmodel.config import ConfigError
from vlmodel.decoder.llm import LanguageModel
from vlmodel.model import VLModel
from vlmodel.processor import VLProcessor

BRIDGES = "bridges.safetensors"
"""The weights of the bridges, by their names in the model: "vision.layers.0.weight"."""


def save_adapter(model: VLModel, processor: VLProcessor, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which ``peft.PeftModel.from_pretrained(BASE, FOLDER)``
    reads, and beside them the tokenizer's files and the bridges.

    Raises:
        ConfigError: the model has no language model with adapters.
    """
    head = model.decoder
    if not isinstance(head, LanguageModel) or head.config.training != "lora":
        kind = f"head.training={head.config.training!r}" if isinstance(head, LanguageModel) else "no language model"
        raise ConfigError(
            f"export.format='adapter' writes the adapters of a language model, and this model has {kind}; set "
            "export.format='merged'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = lora.peft_config(head.inner)
    settings.base_model_name_or_path = head.config.pretrained
    settings.task_type, settings.inference_mode = "CAUSAL_LM", True
    settings.save_pretrained(str(folder))
    state = lora.adapter_state_dict(head.inner)
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    bridges = {name: tensor.detach().cpu().contiguous() for name, tensor in head.bridges.state_dict().items()}
    save_file(bridges, folder / BRIDGES, {"format": "pt"})
    processor.tokenizer.save_pretrained(str(folder))
