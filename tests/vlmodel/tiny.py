"""Tiny models of any parts, and batches for any tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmodel.config import find_part_config_class, parse_config
from vlmodel.encoder_parts import ModalityPart
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, VLProcessor
from vlmodel.sample import TEXTS, Question, Sample, SampleTexts
from vlmodel.task import Task

PACKAGES = ("vision", "language", "topology", "fusion", "task")

TINY: dict[tuple[str, str], dict[str, Any]] = {
    ("vision", "cnn"): {"name": "resnet18", "stages": 1, "projection": 16},
    ("vision", "vit"): {"image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "feed_forward": 32},
    ("vision", "timm"): {
        "name": "vit_tiny_patch16_224",
        "settings": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
        "weights": "",
    },
    ("vision", "hf"): {
        "architecture": "clip_vision_model",
        "settings": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                     "image_size": 32, "patch_size": 8},
    },
    ("language", "transformer"): {"width": 16, "depth": 1, "heads": 2, "positions": 12, "dropout": 0.0},
    ("fusion", "transformer"): {"width": 16, "dropout": 0.0},
}  # fmt: skip
"""Settings that make a kind tiny; another kind is made of width 16 where it has one, and without dropout."""

TINY_WIDTH: dict[str, Any] = {"width": 16, "dropout": 0.0}

DEFAULT_KINDS = {
    "vision": "cnn", "language": "transformer", "topology": "dual", "fusion": "transformer", "task": "vqa"
}  # fmt: skip


IMU: dict[str, Any] = {
    "kind": "series",
    "channels": 3,
    "stride": 2,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "dropout": 0.0,
}
"""Settings of a tiny encoder of the examples' input ``imu``."""


TINY_MODALITIES: dict[str, dict[str, Any]] = {
    "audio": {"rate": 2000, "mels": 8, "channels": 4, "time_stride": 2},
    "video": {
        "frames": 3,
        "image_size": 16,
        "tokens": "all",
        "vision": {"kind": "cnn", "name": "resnet18", "stages": 1},
    },
    "hf": {
        "architecture": "wav2vec2",
        "settings": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "conv_dim": (8, 8),
            "conv_kernel": (10, 8),
            "conv_stride": (5, 4),
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "feat_proj_dropout": 0.0,
            "feat_extract_norm": "layer",
        },
    },
    "row": {"numbers": {"age": {"mean": 40, "std": 10}, "height": {}}, "categories": {"colour": ["red", "blue"]}},
}
INPUT_OF_MEDIUM = {"series": "imu", "audio": "sound", "video": "clip", "row": "facts"}
"""The examples' input of each medium."""


def tiny_modality(kind: str) -> dict[str, Any]:
    """Settings of a tiny encoder of another kind."""
    known = find_part_config_class("vlmodel.modality", kind).model_fields
    small = {key: value for key, value in IMU.items() if key in known and key != "kind"}
    return {"kind": kind, **small, **TINY_MODALITIES.get(kind, {})}


def tiny_input(kind: str) -> dict[str, dict[str, Any]]:
    """``model.inputs`` with a tiny encoder of this kind, for the examples' input of its medium."""
    config = find_part_config_class("vlmodel.modality", kind)
    assert issubclass(config, ModalityPart)
    return {INPUT_OF_MEDIUM[config.medium]: tiny_modality(kind)}


def package_of(setting: str) -> str:
    """The package of the parts of a setting."""
    return "vlmodel.tasks" if setting == "task" else f"vlmodel.{setting}"


def tiny_tree(inputs: dict[str, dict[str, Any]] | None = None, **parts: dict[str, Any]) -> ModelConfig:
    """Tiny parts, with the given settings on top."""
    tree: dict[str, dict[str, Any]] = {"inputs": inputs or {}, "knowledge": parts.pop("knowledge", {})}
    for package, default in DEFAULT_KINDS.items():
        changes = parts.get(package, {})
        kind = changes.get("kind", default)
        known = find_part_config_class(package_of(package), kind).model_fields
        small: dict[str, Any] = {key: value for key, value in TINY_WIDTH.items() if key in known}
        if "head" in known:
            changes = {**changes, "head": {**TINY_WIDTH, **changes.get("head", {})}}
        tree[package] = {"kind": kind, **TINY.get((package, kind), small), **changes}
    return parse_config(ModelConfig, tree)


def for_tasks(processor: VLProcessor, tasks: Mapping[str, Task], tree: ModelConfig | None = None) -> VLProcessor:
    """The same processor for other tasks, and for the inputs of a model."""
    read = {"inputs": tree.inputs, "reads_images": tree.reads_images()} if tree is not None else {}
    return VLProcessor(processor.config, processor.tokenizer, processor.labels, tasks, **read)


def batch_for(
    processor: VLProcessor, tasks: Mapping[str, Task], examples: list[Example], tree: ModelConfig | None = None
) -> dict[str, Tensor]:
    """The examples as the rows of each task, with the inputs of a model."""
    made = for_tasks(processor, tasks, tree)
    rows = {task: [as_rows(example, fields) for example in examples] for task, fields in tasks.items()}
    return {
        name: torch.from_numpy(array)
        for name, array in made.collate_tasks([made.decode_inputs(example) for example in examples], rows).items()
    }


def collate(processor: VLProcessor, examples: Sequence[Example]) -> dict[str, Any]:
    """The examples as the rows of the first task."""
    return processor.collate_tasks(
        [processor.decode_inputs(example) for example in examples], {next(iter(processor.tasks)): examples}
    )


def as_rows(example: Example, task: Task) -> Example:
    """Questions and answers as the rows of a task: captions are made of the questions."""
    answered = zip(example.texts, example.targets or [None] * len(example.texts), strict=True)
    questions = tuple(Question(text, target) for text, target in answered)
    texts = SampleTexts(example.texts, questions, next(iter(example.targets), None))
    sample = Sample("", example.inputs, texts, frozenset(example.inputs) | TEXTS)
    rows = task.training_rows([sample])[0]
    if len(rows) > len(example.texts):
        raise AssertionError(f"{task.kind} makes {len(rows)} rows of {len(example.texts)} texts")
    weights = None if example.weights is None else example.weights[: len(rows)]
    return Example(example.inputs, tuple(row.text for row in rows), tuple(row.target for row in rows), weights)
