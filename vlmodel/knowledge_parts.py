"""The base class of the settings of how a model uses facts. torch is not imported here, as data workers do not
need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from vlmodel.config import ConfigError, PartConfig
from vlmodel.facts import FactLinkingConfig, LinkedFact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vlmodel.knowledge._memory import FactMemory
    from vlmodel.processor import VLProcessor


class KnowledgePart(PartConfig):
    """The settings of how a model uses facts (``model.knowledge``).

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
        """The greatest number of tokens that facts add to a text."""
        return 0

    def returns_token_layout(self) -> bool:
        """Whether ``tokenize`` also returns the positions of tokens and which tokens attend to which
        (``TokenLayout``).
        """
        return False

    def writes_evidence(self) -> bool:
        """Whether generated texts name a fact before they answer (``add_evidence_to_targets``)."""
        return False

    def max_added_target_tokens(self) -> int:
        """The greatest number of tokens that evidence adds to a target text."""
        return 0

    def added_target_words(self) -> tuple[str, ...]:
        """Words that ``add_evidence_to_targets`` adds to target texts; the tokenizer must know them."""
        return ()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise an error if a tokenizer would change ``added_target_words``.

        Raises:
            ConfigError: naming the word.
        """
        for word in self.added_target_words():
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            if str(tokenizer.decode(ids, skip_special_tokens=True)).strip().casefold() != word:
                raise ConfigError(
                    f"knowledge.kind={self.kind!r} writes {word!r} between a fact and its answer, and the tokenizer "
                    "does not give it back; train another (vocabulary.tokenizer), or set knowledge.where='input'"
                )

    def add_evidence_to_targets(
        self, targets: Sequence[str | None], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> list[str | None]:
        """Put the supporting fact before each of N target texts of a generating task; None stays None.

        Args:
            facts: of each row, the best first.
        """
        return list(targets)

    def split_evidence(self, text: str) -> tuple[str, str]:
        """Split a generated text into the fact that it names ("" for none) and its answer."""
        return "", text

    def tokenize(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Tokenize N texts with their facts: the arrays of ``VLProcessor.tokenize``, and those that the kind adds.

        Args:
            facts: of each text, the best first.
        """
        return processor.tokenize(texts)

    def collate_right_facts(
        self, targets: Sequence[str | None], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Return arrays that mark the facts that decide the answer, for kinds that learn to select facts; {} for
        others.

        Args:
            targets: the right answer of each of N rows, None where it is unknown.
            facts: of each row, in the order in which ``tokenize`` takes them.
        """
        return {}

    def build(self, widths: Mapping[str, int]) -> FactMemory:
        """The module of a kind that ``gives_stream``.

        Args:
            widths: of the encoders' streams.
        """
        raise NotImplementedError
