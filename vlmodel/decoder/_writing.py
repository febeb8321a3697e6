"""Functions shared by the heads that generate texts: generation settings, token losses, and where texts end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.weights import config_from_dict

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor


def build_causal_model(resolved: Mapping[str, Any]) -> Any:
    """Build a causal language model of transformers with new weights, by its configuration as plain values."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    inner = AutoModelForCausalLM.from_config(config_from_dict(resolved), trust_remote_code=False)
    # Some architectures have defaults of their own, such as a token to end with.
    inner.generation_config = GenerationConfig()
    return inner


def add_row_without_weight(
    read: tuple[Tensor, Tensor], ids_NT: Tensor, weights_NT: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Add a row of weight zero to a batch: transformers cannot reshape an empty one, and every parameter must have a
    gradient.

    Args:
        read: the sequence that the model reads (N, S, D), and which of it is real (N, S).
        ids_NT, weights_NT: the texts that are learned, and the weights of their tokens.
    """
    x_NSD, mask_NS = read
    read = F.pad(x_NSD, (0, 0, 0, 0, 0, 1)), F.pad(mask_NS, (0, 0, 0, 1), value=True)
    return read, F.pad(ids_NT, (0, 0, 0, 1)), F.pad(weights_NT, (0, 0, 0, 1))


def check_streams_single_text(streamer: Any, rows: int, top_k: int, settings: Mapping[str, Any]) -> None:
    """Refuse to stream a generation that has more than one row or more than one text.

    Raises:
        ValueError: there are several rows, or texts of a row.
    """
    if streamer is not None and (rows != 1 or top_k != 1 or settings.get("num_beams", 1) != 1):
        raise ValueError(
            f"streamer takes the text of one row as it is written, and there are {rows} rows with "
            f"top_k={top_k} and num_beams={settings.get('num_beams', 1)}; make all of them 1"
        )


def complete_generation_settings(settings: Mapping[str, Any], top_k: int, max_new_tokens: int) -> dict[str, Any]:
    """Fill in defaults for the generation of ``top_k`` texts: those that ``TextWriter.generate_answers`` documents."""
    sampled = settings.get("do_sample", False)
    chosen: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": 1 if sampled else top_k}
    chosen |= settings
    if chosen["num_beams"] > 1:
        chosen.setdefault("length_penalty", 0.0)
    if sampled:
        chosen["top_k"] = 0  # sample from all tokens, unless top_p and the like restrict them
    return {**chosen, "num_return_sequences": top_k}


def token_cross_entropy(logits_NTK: Tensor, labels_NT: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of each of N x T tokens, with label smoothing; (N, T)."""
    return F.cross_entropy(
        logits_NTK.float().flatten(0, 1), labels_NT.flatten(), reduction="none", label_smoothing=smoothing
    ).view_as(labels_NT)


def sum_token_losses(
    logits_NTK: Tensor, labels_NT: Tensor, weights_NT: Tensor, smoothing: float = 0.0
) -> parts.DecoderOutput:
    """Sum the weighted losses and the weighted right predictions of all tokens, in the form that a decoder returns."""
    loss_NT = token_cross_entropy(logits_NTK, labels_NT, smoothing)
    correct_NT = (logits_NTK.argmax(-1) == labels_NT) * weights_NT
    count = weights_NT.sum()
    return parts.DecoderOutput(None, (loss_NT * weights_NT).sum(), count, correct_NT.sum(), count)


def mask_up_to_end_token(ids_NT: Tensor, ends: Collection[int]) -> Tensor:
    """Mask the tokens of each text up to and including the first end token; (N, T)."""
    ends_NT = torch.isin(ids_NT, torch.tensor(sorted(ends), device=ids_NT.device))
    return (ends_NT.cumsum(1) - ends_NT.long()) == 0


def drop_repeated_texts(texts: Sequence[tuple[str, float]], by_probability: bool) -> parts.Answers:
    """Drop repeated texts; the remaining ones keep their order, or are sorted by probability."""
    ordered = sorted(texts, key=lambda answer: -answer[1]) if by_probability else texts
    answers: dict[str, float] = {}
    for text, probability in ordered:
        answers.setdefault(text, probability)
    return list(answers.items())


class StopTextCriterion:
    """Stops the generation of a text once it contains one of the stop texts, behind the fact that it may name first.

    transformers' own criterion fails if no token of the vocabulary is a part of a stop text.
    """

    def __init__(self, processor: VLProcessor, stop: Sequence[str]) -> None:
        self._processor, self._stop = processor, stop

    def __call__(self, ids_NT: Tensor, scores: Any, **_: Any) -> Tensor:
        texts = self._processor.tokenizer.batch_decode(ids_NT.tolist(), skip_special_tokens=True)
        knowledge = self._processor.knowledge
        if knowledge.writes_evidence():
            # Until a fact is named it may be what is being written.
            texts = [answer if fact else "" for fact, answer in map(knowledge.split_evidence, texts)]
        return torch.tensor([any(one in text for one in self._stop) for text in texts], device=ids_NT.device)
