"""Examples whose inputs were decoded before they joined a batch, and a processor for them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlmodel.processor import Decoded, Example, VLProcessor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DecodedExample(Example):
    """An example with decoded inputs, by their names."""

    decoded: Decoded = field(default_factory=dict)


class PredecodedProcessor(VLProcessor):
    """A processor that takes decoded inputs, and that several threads may use at once."""

    # A tokenizer stores padding and truncation as state, which each call sets.
    _lock = threading.Lock()

    def collate_tasks(
        self, decoded: Sequence[Decoded], examples: Mapping[str, Sequence[Example]]
    ) -> dict[str, NDArray[np.generic]]:
        with self._lock:
            return super().collate_tasks(decoded, examples)

    def are_texts_truncated(self, texts: Sequence[str]) -> list[bool]:
        with self._lock:
            return super().are_texts_truncated(texts)

    def decode_inputs(self, example: Example) -> Decoded:
        return example.decoded if isinstance(example, DecodedExample) else super().decode_inputs(example)


def make_blank_example(processor: VLProcessor) -> DecodedExample:
    """Make an example of a blank image (if the model reads images) and a text."""
    return DecodedExample({}, ("what is this?",), decoded=processor.blank_inputs())
