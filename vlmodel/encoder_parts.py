"""Settings of encoders, as the processes that only read, decode and collate know them: torch is not imported here."""

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
    """The stream of an input."""
    return _STREAMS.get(name, name)


def input_of_stream(stream: str) -> str:
    """The input of a stream."""
    return next((name for name, of_name in _STREAMS.items() if of_name == stream), stream)


class EncoderPart(PartConfig):
    """Configuration of an encoder.

    Attributes:
        non_backbone_settings: settings that do not change the result of ``compute_features``, except through
            the weights.
    """

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset()

    def is_frozen(self) -> bool:
        """Whether the whole backbone is left untrained, so that its features of an input never change; False if it is
        a table of embeddings only.
        """
        return False


class ModalityPart(EncoderPart):
    """Configuration of the encoder of one further input of a sample (``model.inputs.NAME``).

    The processor decodes and collates with it, in training and in serving alike, so that its file, at import, needs no
    torch: the module is in a private file of its package, imported in ``build``.

    Attributes:
        medium: what the input's bytes are (``vlmodel.media``).
    """

    medium: ClassVar[str]

    def decode(self, data: bytes) -> Mapping[str, NDArray[Any]]:
        """The arrays of one input, in the form in which the encoder takes them.

        Raises:
            MediumError: the bytes are no input of this medium, or none that the encoder takes.
        """
        raise NotImplementedError

    def augments(self) -> bool:
        """Whether training changes inputs at random (``decode_augmented``)."""
        return False

    def decode_augmented(self, data: bytes, rng: np.random.Generator) -> Mapping[str, NDArray[Any]]:
        """As ``decode``, for training: changed at random as the part's settings say, by what ``rng`` draws alone."""
        return self.decode(data)

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """The arrays of B inputs, with a first dimension of B, which may be 0, and names with shape letters."""
        raise NotImplementedError

    def resolve_settings(self) -> ModalityPart:
        """The same with everything that ``build`` needs, so that a checkpoint depends on no other files."""
        return self

    def build(self) -> ModalityEncoder:
        """The module, whose ``forward`` takes the arrays of ``collate`` by their names."""
        raise NotImplementedError
