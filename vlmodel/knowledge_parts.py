"""The base class of the settings of how a model uses facts. torch is not imported here: data workers need none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from vlmodel.config import PartConfig
from vlmodel.facts import FactLinkingConfig, LinkedFact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vlmodel.knowledge._memory import FactMemory
    from vlmodel.processor import VLProcessor


class KnowledgePart(PartConfig):
    """Configuration of the way in which a model uses facts (``model.knowledge``).

    The processor links, tokenizes and collates with it, in training and in serving alike.

    Attributes:
        reads_facts: False of the kind that stands for no knowledge.
        changes_texts: the facts become part of the texts that the language encoder gets.
        gives_stream: the facts become a stream called "knowledge".
    """

    reads_facts: ClassVar[bool] = True
    changes_texts: ClassVar[bool] = False
    gives_stream: ClassVar[bool] = False

    link: FactLinkingConfig = FactLinkingConfig()

    def max_added_tokens(self) -> int:
        """Greatest number of tokens that facts add to a text."""
        return 0

    def makes_token_layout(self) -> bool:
        """Whether ``tokenize`` gives positions of tokens and which of them attend to which (``TokenLayout``)."""
        return False

    def tokenize(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """The arrays of N texts with their facts: those of ``VLProcessor.tokenize``, and further ones.

        Args:
            facts: of each text, the best first.
        """
        return processor.tokenize(texts)

    def build(self, widths: Mapping[str, int]) -> FactMemory:
        """The module of a kind that ``gives_stream``.

        Args:
            widths: of the encoders' streams.
        """
        raise NotImplementedError
