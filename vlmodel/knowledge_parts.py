"""The base class of the settings of how a model uses facts. torch is not imported here: data workers need none."""

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

    def writes_evidence(self) -> bool:
        """Whether texts that a model writes name a fact before they answer (``add_evidence_to_targets``)."""
        return False

    def max_added_target_tokens(self) -> int:
        """Most tokens that a text to be written grows by."""
        return 0

    def added_target_words(self) -> tuple[str, ...]:
        """Words that ``add_evidence_to_targets`` adds to what tasks write, which the tokenizer must know."""
        return ()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer that changes ``added_target_words``.

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
        """What a task that writes learns to write for N right answers, None where one is unknown.

        Args:
            facts: of each row, the best first.
        """
        return list(targets)

    def split_evidence(self, text: str) -> tuple[str, str]:
        """The fact that a written text names, "" for none, and its answer."""
        return "", text

    def tokenize(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """The arrays of N texts with their facts: those of ``VLProcessor.tokenize``, and further ones.

        Args:
            facts: of each text, the best first.
        """
        return processor.tokenize(texts)

    def collate_right_facts(
        self, targets: Sequence[str | None], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Arrays that say which facts decide, for parts that learn to select them; {} for the others.

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
