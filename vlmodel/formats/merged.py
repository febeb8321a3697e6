"""Merges the low-rank adapters of a model into its weights; the result is an ordinary model without adapters."""

from __future__ import annotations

from typing import Any

from vlmodel import lora
from vlmodel.config import dump_config, parse_config, parse_part_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import VLProcessor
from vlmodel.saved_config import VLConfig


def merge_adapters(model: VLModel, processor: VLProcessor) -> tuple[VLModel, VLProcessor]:
    """Merge a model's adapters into its weights and return the new model, which answers the same, with its processor.
    ``model`` must not be used afterwards.

    What was frozen but for its adapters can be trained as a whole.
    """
    tree = _without_adapters(
        dump_config(parse_config(ModelConfig, model.config.checked_model_settings(str(model.name_or_path))))
    )
    tasks = {
        name: parse_part_config("vlmodel.tasks", _without_adapters(dump_config(task)))
        for name, task in processor.tasks.items()
    }
    inputs = {
        name: parse_part_config("vlmodel.modality", _without_adapters(dump_config(part)))
        for name, part in processor.inputs.items()
    }
    plain = VLProcessor(
        processor.config, processor.tokenizer, processor.labels, tasks, processor.normalizer, inputs,
        processor.reads_images, processor.knowledge,
    )  # fmt: skip
    lora.merge_adapters(model)
    merged = VLModel(VLConfig.from_processor(tree, plain))
    merged.load_state_dict(model.state_dict())
    return merged.eval(), plain


def _without_adapters(tree: Any) -> Any:
    """Change a tree of settings so that no part has adapters: ``training="lora"`` of a language model becomes "full",
    ``lora`` of other parts becomes None.
    """
    if isinstance(tree, list):
        return [_without_adapters(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    plain = {name: _without_adapters(value) for name, value in tree.items()}
    if "training" in plain and "lora" in plain:
        return plain | ({"training": "full"} if plain["training"] == "lora" else {})
    return plain | ({"lora": None} if "lora" in plain else {})
