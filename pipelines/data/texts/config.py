"""Settings of the tokenizer and the answers. Building them imports transformers; reading the settings must not."""

from __future__ import annotations

from pydantic import Field

from vlmodel.answers import Normalizer
from vlmodel.config import ConfigSection


class VocabularyConfig(ConfigSection):
    """Settings of the tokenizer and of the vocabulary of answers."""

    tokenizer: str = ""
    """Folder, hub name or .gguf file of a tokenizer; "" trains one on the corpus. A pretrained encoder or
    language model needs its own."""
    size: int = Field(8192, ge=8)
    """Most tokens of a tokenizer trained on the corpus."""
    lowercase: bool = True
    """Whether a tokenizer trained on the corpus ignores case."""
    answers: int = Field(3000, ge=2)
    """Most answers of the vocabulary, the most frequent ones; others are never predicted."""
    min_answer_count: int = Field(1, ge=1)
    """How often an answer must occur to be in the vocabulary."""
    normalizer: Normalizer = "vqa"
    """Which answers count as equal in the vocabulary, in training and in all metrics: those that are equal by the rules
    of VQA's evaluation ("vqa": ignoring case, punctuation and articles, numbers to ten as digits; vlmodel/answers.py),
    or letter by letter ("none")."""
