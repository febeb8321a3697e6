"""The encoders of a model as ONNX, for runtimes without torch: the vision tower, and the two halves of an embedding.

Files, each with batches of any size:

- ``vision.onnx``: ``pixels`` (B, H, W, 3) uint8 -> ``tokens`` (B, T, D), ``pooled`` (B, D).
- of each task that embeds, ``image.onnx``: ``pixels`` -> ``image_embeds`` (B, D) of length one, and ``text.onnx``:
  ``input_ids``, ``attention_mask`` (B, L) int64 -> ``text_embeds``. Their product is the similarity. With several tasks
  their names stand before: ``TASK-image.onnx``.

Pixels are those of ``VLProcessor.decode_image``, by the settings in ``processor.json``; the graphs normalise them
themselves. Token ids are those of the tokenizer beside them, cut to ``max_tokens``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmodel.config import ConfigError
from vlmodel.decoder.contrastive import ContrastiveDecoder
from vlmodel.model import VLModel
from vlmodel.processor import VLProcessor
from vlmodel.weights import error_in_one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference of an output from the model's own, as a share of its largest value."""
_OPSET = 18
_TRIED = (1, 3)
"""Batch sizes by which each graph is compared with the model."""


@dataclass(frozen=True)
class _Graph:
    """What one file holds.

    Attributes:
        module: takes the inputs in their order, and returns a tuple of the outputs.
        axes: of each input its axes whose length is free, by number, with their names.
        make_inputs: inputs of a batch of so many.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]
    make_inputs: Callable[[int], tuple[Tensor, ...]]


def save_onnx(model: VLModel, processor: VLProcessor, folder: Path) -> list[str]:
    """Write the graphs, the tokenizer's files and processor.json, and return the names of the graphs.

    Each graph is run by onnxruntime and compared with the model before this returns.

    Raises:
        ConfigError: the model has nothing that is exported, a graph cannot be made or differs from the model, or the
            packages for it are not installed.
    """
    onnxruntime = _import_onnxruntime()
    graphs = _graphs_of(model.eval(), processor)
    if not graphs:
        raise ConfigError(
            "export.format='onnx' writes encoders of images and embeddings (model.task.kind='contrastive'), and this "
            "model has neither; set export.format='merged'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph in graphs.items():
        file = folder / f"{name}.onnx"
        _export_graph(graph, file)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for size in _TRIED:
            _check_outputs(session, graph, graph.make_inputs(size), file.name)
    processor.save_pretrained(folder)
    return [f"{name}.onnx" for name in graphs]


def _graphs_of(model: VLModel, processor: VLProcessor) -> dict[str, _Graph]:
    graphs: dict[str, _Graph] = {}
    if model.vision is not None:
        graphs["vision"] = _image_graph(_VisionTokens(model.vision), ("tokens", "pooled"), processor)
    for task, head in model.decoder.task_decoders().items():
        if not isinstance(head, ContrastiveDecoder) or head.stream != "vision":
            continue
        assert model.vision is not None
        assert model.language is not None
        prefix = f"{task}-" if task else ""
        graphs[f"{prefix}image"] = _image_graph(_ImageEmbedding(model.vision, head), ("image_embeds",), processor)
        if not processor.knowledge.reads_facts:  # else a text's vector depends on facts that are looked up
            graphs[f"{prefix}text"] = _text_graph(_TextEmbedding(model.language, head), processor)
    return graphs


class _VisionTokens(nn.Module):
    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vision(pixels_BHWC)
        return tokens.x_BTD, tokens.pooled_BD


class _ImageEmbedding(nn.Module):
    def __init__(self, vision: nn.Module, head: ContrastiveDecoder) -> None:
        super().__init__()
        self.vision, self.head = vision, head

    def forward(self, pixels_BHWC: Tensor) -> tuple[Tensor]:
        return (self.head.embed_pooled(self.vision(pixels_BHWC).pooled_BD, self.head.image),)


class _TextEmbedding(nn.Module):
    def __init__(self, language: nn.Module, head: ContrastiveDecoder) -> None:
        super().__init__()
        self.language, self.head = language, head

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> tuple[Tensor]:
        tokens = self.language(input_ids_BT, attention_mask_BT.bool())
        return (self.head.embed_pooled(tokens.pooled_BD, self.head.text),)


def _image_graph(module: nn.Module, outputs: tuple[str, ...], processor: VLProcessor) -> _Graph:
    height, width = processor.config.image_resizing.size

    def pixels(size: int) -> tuple[Tensor, ...]:
        drawn = np.random.default_rng(size).integers(0, 256, (size, height, width, 3), np.uint8)
        return (torch.from_numpy(drawn),)

    return _Graph(module, ("pixels",), outputs, {"pixels": {0: "batch"}}, pixels)


def _text_graph(module: nn.Module, processor: VLProcessor) -> _Graph:
    longest, tokens = processor.config.max_tokens, len(processor.tokenizer)

    def texts(size: int) -> tuple[Tensor, ...]:
        """Texts of different lengths, the first one the longest; padded on the tokenizer's side."""
        rng = np.random.default_rng(size)
        length = max(2, longest - size)
        kept_B = np.maximum(1, length - np.arange(size))
        mask_BT = np.arange(length) < kept_B[:, None]
        if processor.tokenizer.padding_side == "left":
            mask_BT = mask_BT[:, ::-1].copy()
        ids_BT = np.where(mask_BT, rng.integers(0, tokens, (size, length)), processor.tokenizer.pad_token_id)
        return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT.astype(np.int64))

    free = {0: "batch", 1: "length"}
    axes = {"input_ids": free, "attention_mask": free}
    return _Graph(module, ("input_ids", "attention_mask"), ("text_embeds",), axes, texts)


def _export_graph(graph: _Graph, file: Path) -> None:
    free: dict[str, Any] = {}
    shapes = tuple(
        {axis: free.setdefault(name, torch.export.Dim.DYNAMIC) for axis, name in graph.axes[given].items()}
        for given in graph.inputs
    )
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its internals
            torch.onnx.export(
                graph.module.eval(), graph.make_inputs(3), str(file), input_names=list(graph.inputs),
                output_names=list(graph.outputs), dynamic_shapes=shapes, opset_version=_OPSET, dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises errors of many kinds
        raise ConfigError(
            f"export.format='onnx': torch cannot make {file.name} of this model: {error_in_one_line(error)}"
        ) from error


@torch.inference_mode()
def _check_outputs(session: Any, graph: _Graph, inputs: tuple[Tensor, ...], name: str) -> None:
    expected = graph.module(*inputs)
    given = {key: value.numpy() for key, value in zip(graph.inputs, inputs, strict=True)}
    found: list[NDArray[np.float32]] = session.run(list(graph.outputs), given)
    for output, own, other in zip(graph.outputs, expected, found, strict=True):
        own = own.numpy()
        difference = float(np.abs(own - other).max() / max(float(np.abs(own).max()), 1e-9))
        if own.shape != other.shape or not difference <= TOLERANCE:
            raise ConfigError(
                f"export.format='onnx': {output} of {name} differs from the model's by {difference:.2g} of its largest "
                "value; set export.format='merged'"
            )


def _import_onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'export.format="onnx" needs {error.name}; install it with pip install "raylm[onnx]"'
        ) from None
    return onnxruntime
