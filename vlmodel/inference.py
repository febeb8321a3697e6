"""Answers from a saved model: the same processor and model as in training, without gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlmodel.model import VLModel, VLOutput
from vlmodel.processor import Example, VLProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INPUTS = ("pixels_BHWC", "input_ids_NT", "text_mask_NT", "text_image_N", "distinct_U", "text_distinct_N")


@dataclass(frozen=True)
class Prediction:
    """Answers to one text.

    Attributes:
        answers: (answer, probability), the most probable first.
        attention_HW: attention from the text's tokens over the cells of the image grid, of sum 1; None where it was
            not asked for or the model has none.
    """

    answers: list[tuple[str, float]]
    attention_HW: NDArray[np.float32] | None = None


class Predictor:
    """A model in evaluation mode with its processor."""

    def __init__(self, model: VLModel, processor: VLProcessor, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model, self.processor = model.eval().to(self.device), processor
        self.id2label: dict[int, str] = dict(enumerate(processor.labels))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "cpu", threads: int | None = None
    ) -> Predictor:
        """Load the inference part of a checkpoint.

        Args:
            threads: processor threads of torch, for the whole process; None leaves them as they are.

        Raises:
            FileNotFoundError: the folder does not exist or holds no model.
            WeightsError: the weights do not fit the configuration.
        """
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no model; name the `model` folder of a checkpoint")
        if threads is not None:
            torch.set_num_threads(threads)
        processor = VLProcessor.from_pretrained(folder)
        return cls(VLModel.from_pretrained(str(folder), local_files_only=True), processor, device)

    def predict(self, examples: Sequence[Example], top_k: int = 5, attention: bool = False) -> list[list[Prediction]]:
        """The ``top_k`` best answers to each text of each example.

        Raises:
            ImageError: an image cannot be decoded.
        """
        batch = self.processor.collate(examples)
        if not batch["text_image_N"].size:
            return [[] for _ in examples]
        probabilities_NK, output = self._run(batch, attention)
        top_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :top_k]
        maps = self._maps(output, batch["text_mask_NT"]) if attention else None
        flat = [
            Prediction(
                [(self.id2label[int(k)], float(probabilities_NK[n, k])) for k in row],
                maps[n] if maps is not None else None,
            )
            for n, row in enumerate(top_NK)
        ]
        stops = np.cumsum([len(example.texts) for example in examples])
        return [flat[stop - len(example.texts) : stop] for stop, example in zip(stops, examples, strict=True)]

    def predict_collated(self, batch: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Probabilities of all classes (N, K) for a batch of the processor's."""
        return self._run(batch, attention=False)[0]

    @torch.inference_mode()
    def _run(self, batch: Mapping[str, NDArray[Any]], attention: bool) -> tuple[NDArray[np.float32], VLOutput]:
        inputs: dict[str, Tensor] = {
            name: torch.from_numpy(batch[name]).to(self.device) for name in _INPUTS if name in batch
        }
        output: VLOutput = self.model(**inputs, output_attention=attention)
        assert output.logits_NK is not None
        return output.logits_NK.float().softmax(-1).cpu().numpy(), output

    def _maps(self, output: VLOutput, mask_NT: NDArray[Any]) -> NDArray[np.float32] | None:
        """(N, H, W): attention of the last round, averaged over the real tokens of each text."""
        spans = output.spans or {}
        if output.attention_LNQS is None or not {"vision", "language"} <= spans.keys():
            return None
        text, image = slice(*spans["language"]), slice(*spans["vision"])
        attention_NTS = output.attention_LNQS[-1, :, text, image].float().cpu().numpy()
        # A language stream that was pooled to one token has no padding left.
        mask_NT = mask_NT if mask_NT.shape[1] == attention_NTS.shape[1] else np.ones((len(mask_NT), 1), np.bool_)
        # A language encoder may have made one token of a text.
        real_NT = mask_NT[:, : attention_NTS.shape[1]].astype(np.float32)
        map_NS = np.einsum("nts,nt->ns", attention_NTS, real_NT)
        # The processor makes square images, so the grid is square.
        side = math.isqrt(map_NS.shape[1])
        return (map_NS / map_NS.sum(1, keepdims=True)).reshape(-1, side, side)
