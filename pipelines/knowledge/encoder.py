"""The frozen sentence encoder, which computes vectors of facts and of texts to be compared by their cosine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.knowledge.errors import KnowledgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 128
_MAX_TOKENS = 256
_WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"


class SentenceEncoder:
    """A sentence encoder in transformers' format: averages the last hidden states of the tokens and normalizes the
    result to length 1, as all-MiniLM-L6-v2 is used (Sentence-BERT, Reimers and Gurevych 2019). Its weights are never
    trained.

    Raises:
        KnowledgeError: the folder holds none in safetensors.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        for name in (_WEIGHTS, _TOKENIZER, "config.json"):
            if not (self.folder / name).is_file():
                raise KnowledgeError(
                    f"knowledge.encoder={folder!r} has no {name}; name a folder with a sentence encoder in "
                    "transformers' format, such as a download of sentence-transformers/all-MiniLM-L6-v2"
                )

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of weights and tokenizer: vectors of different encoders are not comparable."""
        digest = hashlib.sha256()
        for name in (_WEIGHTS, _TOKENIZER):
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def width(self) -> int:
        """The number of components of a vector, F."""
        return int(self._load_model_once[1].config.hidden_size)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Compute the vectors (M, F) of texts, of length 1. A text's vector depends on the other texts only by
        rounding.
        """
        import torch

        from vlmodel.layers import masked_mean

        tokenizer, model = self._load_model_once
        vectors_MF = np.zeros((len(texts), self.width), np.float32)
        by_length = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for start in range(0, len(texts), _BATCH):
            chosen = by_length[start : start + _BATCH]
            encoded = tokenizer(
                [texts[n] for n in chosen], padding=True, truncation=True, max_length=_MAX_TOKENS,
                split_special_tokens=True, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                x_MTD = model(**encoded).last_hidden_state
                pooled_MF = masked_mean(x_MTD, encoded["attention_mask"].bool())
                vectors_MF[chosen] = torch.nn.functional.normalize(pooled_MF, dim=-1).numpy()
        return vectors_MF

    @cached_property
    def _load_model_once(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), **options)
            model = AutoModel.from_pretrained(str(self.folder), use_safetensors=True, **options).eval()
        except (OSError, ValueError) as error:
            raise KnowledgeError(f"knowledge.encoder={str(self.folder)!r} cannot be loaded ({error})") from None
        return tokenizer, model.requires_grad_(False)


@lru_cache(maxsize=2)
def open_encoder(folder: str) -> SentenceEncoder:
    """Load the encoder in a folder, once in a process."""
    return SentenceEncoder(folder)
