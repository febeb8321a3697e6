"""What the heads that write texts share: settings of generation, and texts with their probabilities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmodel import parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_streamer(streamer: Any, rows: int, top_k: int, settings: Mapping[str, Any]) -> None:
    """Refuse to stream more than one text.

    Raises:
        ValueError: there are several rows, or texts of a row.
    """
    if streamer is not None and (rows != 1 or top_k != 1 or settings.get("num_beams", 1) != 1):
        raise ValueError(
            f"streamer takes the text of one row as it is written, and there are {rows} rows with "
            f"top_k={top_k} and num_beams={settings.get('num_beams', 1)}; make all of them 1"
        )


def generation_settings(settings: Mapping[str, Any], top_k: int, max_new_tokens: int) -> dict[str, Any]:
    """transformers' settings for ``top_k`` texts, with defaults as of ``TextWriter.answer``."""
    sampled = settings.get("do_sample", False)
    chosen: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": 1 if sampled else top_k}
    chosen |= settings
    if chosen["num_beams"] > 1:
        chosen.setdefault("length_penalty", 0.0)
    if sampled:
        chosen["top_k"] = 0  # sample from all tokens, unless top_p and the like restrict them
    return {**chosen, "num_return_sequences": top_k}


def cross_entropy(logits_NTK: Tensor, labels_NT: Tensor, smoothing: float = 0.0) -> Tensor:
    """The loss of each token (N, T)."""
    return F.cross_entropy(
        logits_NTK.float().flatten(0, 1), labels_NT.flatten(), reduction="none", label_smoothing=smoothing
    ).view_as(labels_NT)


def loss_sums(logits_NTK: Tensor, labels_NT: Tensor, weights_NT: Tensor, smoothing: float = 0.0) -> parts.DecoderOutput:
    """The sums of the loss and of the right tokens, each token weighted, as a decoder returns them in training."""
    loss_NT = cross_entropy(logits_NTK, labels_NT, smoothing)
    correct_NT = (logits_NTK.argmax(-1) == labels_NT) * weights_NT
    count = weights_NT.sum()
    return parts.DecoderOutput(None, (loss_NT * weights_NT).sum(), count, correct_NT.sum(), count)


def up_to_end(ids_NT: Tensor, ends: Collection[int]) -> Tensor:
    """True for the tokens of each text up to the first that ends it, and for that."""
    ends_NT = torch.isin(ids_NT, torch.tensor(sorted(ends), device=ids_NT.device))
    return (ends_NT.cumsum(1) - ends_NT.long()) == 0


def unique_texts(texts: Sequence[tuple[str, float]], by_probability: bool) -> parts.Answers:
    """Each text once, in their order or by probability."""
    ordered = sorted(texts, key=lambda answer: -answer[1]) if by_probability else texts
    answers: dict[str, float] = {}
    for text, probability in ordered:
        answers.setdefault(text, probability)
    return list(answers.items())


class EndsWithin:
    """Ends a text once one of the given ones is in it. (transformers' own criterion fails where no token of the
    vocabulary is a part of such a text.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop

    def __call__(self, ids_NT: Tensor, scores: Any, **_: Any) -> Tensor:
        texts = self._tokenizer.batch_decode(ids_NT.tolist(), skip_special_tokens=True)
        return torch.tensor([any(one in text for one in self._stop) for text in texts], device=ids_NT.device)
