"""Settings of the heads that write texts (``vlmodel.heads``), and of what brings streams into a language model
(``vlmodel.bridge``). torch is not imported here: processes that only read and collate stay small.
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
    from vlmodel.parts import Bridge, TextWriter, Vocabulary
    from vlmodel.processor import VLProcessor


class TextHeadPart(PartConfig):
    """Configuration of a head that writes texts. The tasks that write texts hold one (``tasks/_generation.py``)."""

    def resolve_settings(self, vocabulary: Vocabulary) -> Self:
        """The same with everything that ``build`` needs, so that a checkpoint depends on no other files.

        Raises:
            ConfigError: it does not fit the tokenizer.
            WeightsError: what is pretrained cannot be opened.
        """
        return self

    def reads_joint_stream(self) -> bool:
        """Whether it reads the joint stream, and not those of the encoders."""
        return True

    def encodes_text(self) -> bool:
        """Whether the text of a row comes through ``model.language``."""
        return True

    def needs_begin_and_end_tokens(self) -> bool:
        """Whether a written text lies between the tokenizer's tokens that begin and end one."""
        return True

    def accepts_conversations(self) -> bool:
        """Whether it answers conversations of several turns."""
        return False

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer with which the head cannot read and write.

        Raises:
            ConfigError: naming what is missing, and the remedy.
        """

    def max_generated_tokens(self) -> int | None:
        """Greatest number of tokens in a text, if there is a limit that is known."""
        return None

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> TextWriter:
        """The module; ``widths`` as of ``TaskPart.build``."""
        raise NotImplementedError

    def collate_prompts(
        self, conversations: Sequence[Conversation], limits: Sequence[int | None], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Arrays of what N texts answer, for heads that read it themselves: ``prompt_ids_NT``, ``prompt_mask_NT``.

        Args:
            limits: longer texts of a conversation are cut to so many tokens.
        """
        return {}

    def collate_targets(self, targets: Sequence[str | None], processor: VLProcessor) -> dict[str, NDArray[np.generic]]:
        """Arrays of the N right texts, which the module's ``forward`` takes by their names."""
        return processor.tokenize_targets(targets)


class BridgePart(PartConfig):
    """Configuration of a bridge: it makes tokens of a language model's width of an encoder's stream."""

    def build(self, width: int, out_width: int) -> Bridge:
        """Args:
        width: of the stream.
        out_width: of the language model's embeddings.
        """
        raise NotImplementedError
