"""Base classes of encoder settings for processes that only read, decode and collate: this module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmodel.config import PartConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vlmodel.parts import ModalityEncoder

IMAGE, TEXT = "image", "text"
"""The inputs that ``model.vision`` and ``model.language`` encode."""

_STREAMS = {IMAGE: "vision", TEXT: "language"}


def stream_of_input(name: str) -> str:
    """Return the name of the stream into which an input is encoded."""
    return _STREAMS.get(name, name)


def input_of_stream(stream: str) -> str:
    """Return the name of the input that is encoded into a stream."""
    return next((name for name, of_name in _STREAMS.items() if of_name == stream), stream)


class EncoderPart(PartConfig):
    """The base class of the settings of an encoder.

    Attributes:
        non_backbone_settings: settings that do not change the result of ``compute_features``, except through
            the weights.
    """

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset()

    def is_frozen(self) -> bool:
        """Whether the whole backbone is frozen, so that its features of an input never change; False if it is only a
        table of embeddings.
        """
        return False


class ModalityPart(EncoderPart):
    """The settings of the encoder of an additional input of a sample (``model.inputs.NAME``).

    The processor decodes and collates with it, in training and in serving alike, so that its file, at import, needs no
    torch: the module is in a private file of its package, imported in ``build``.

    Attributes:
        medium: what the input's bytes are (``vlmodel.media``).
    """

    medium: ClassVar[str]

    def decode(self, data: bytes) -> Mapping[str, NDArray[Any]]:
        """Decode the bytes of one input to the arrays that the encoder takes.

        Raises:
            MediumError: the bytes are no input of this medium, or none that the encoder takes.
        """
        raise NotImplementedError

    def has_augmentation(self) -> bool:
        """Whether inputs are randomly augmented in training (``decode_augmented``)."""
        return False

    def decode_augmented(self, data: bytes, rng: np.random.Generator) -> Mapping[str, NDArray[Any]]:
        """Decode the bytes of one input for training, with random augmentation by the part's settings; ``rng`` is the
        only source of randomness.
        """
        return self.decode(data)

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """Stack the decoded arrays of B inputs along a new first dimension (B may be 0); the names of the results have
        shape letters.
        """
        raise NotImplementedError

    def resolve_settings(self) -> ModalityPart:
        """Return a copy that contains everything that ``build`` needs, so that a checkpoint depends on no other
        files.
        """
        return self

    def build(self) -> ModalityEncoder:
        """Build the module, whose ``forward`` takes the arrays of ``collate`` by their names."""
        raise NotImplementedError
