"""Base classes of the settings of heads that generate texts (``vlmodel.heads``), and of bridges, which feed streams
into a language model (``vlmodel.bridge``). torch is not imported here, so processes that only read and collate stay
small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from vlmodel.config import PartConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vlmodel.conversation import Conversation
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Bridge, TextWriter
    from vlmodel.processor import VLProcessor


class TextHeadPart(PartConfig):
    """The base class of the settings of a head that generates texts. The tasks that generate texts hold one
    (``tasks/_generation.py``).
    """

    def resolve_settings(self, vocabulary: Vocabulary) -> Self:
        """Return a copy that contains everything that ``build`` needs, so that a checkpoint depends on no other files.

        Raises:
            ConfigError: it does not fit the tokenizer.
            WeightsError: what is pretrained cannot be opened.
        """
        return self

    def reads_joint_stream(self) -> bool:
        """Whether the head reads the joint stream, instead of the encoders' own streams."""
        return True

    def encodes_text(self) -> bool:
        """Whether the text of a row is encoded by ``model.language`` before the head."""
        return True

    def needs_begin_and_end_tokens(self) -> bool:
        """Whether generated texts are enclosed by the tokenizer's begin and end tokens."""
        return True

    def accepts_conversations(self) -> bool:
        """Whether the head answers conversations of several turns."""
        return False

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise an error for a tokenizer that the head cannot use.

        Raises:
            ConfigError: naming what is missing, and the remedy.
        """

    def max_generated_tokens(self) -> int | None:
        """The greatest number of tokens in a generated text, if there is a limit that is known."""
        return None

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> TextWriter:
        """Build the module of the head; ``widths`` as for ``TaskPart.build``."""
        raise NotImplementedError

    def collate_prompts(
        self, conversations: Sequence[Conversation], limits: Sequence[int | None], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Tokenize N prompts for heads that read texts themselves: ``prompt_ids_NT``, ``prompt_mask_NT``.

        Args:
            limits: longer texts of a conversation are cut to so many tokens.
        """
        return {}

    def collate_targets(self, targets: Sequence[str | None], processor: VLProcessor) -> dict[str, NDArray[np.generic]]:
        """Tokenize N right texts to arrays that the module's ``forward`` takes by their names."""
        return processor.tokenize_targets(targets)


class BridgePart(PartConfig):
    """The base class of the settings of a bridge, which turns an encoder's stream into tokens of a language model's
    width.
    """

    def build(self, width: int, out_width: int) -> Bridge:
        """Build the module of the bridge. || Args: width: of the stream. out_width: of the language model's
        embeddings.
        """
        raise NotImplementedError
