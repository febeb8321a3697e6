"""Retrieval in both directions: which image belongs to a text, which texts belong to an image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluate.metrics.check import same_length

RANKS = (1, 5, 10)

_BLOCK = 2**24
"""Similarities that exist at a time: 64 MiB of them."""


def retrieval_scores(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 and the median rank, each way, beside the recall of a random order.

    Similarity is the dot product; give vectors of length one for the cosine. A text finds its image, an image finds any
    one of its texts: its rank is that of the best of them among the texts of other images. Ties count against the
    model: whatever is as similar as the right one is ranked before it, so that equal vectors for all score nothing. An
    image without a text is among those to choose from, and asks nothing itself.

    Args:
        image_BD: images, float.
        text_ND: texts, float, on the same device.
        text_image_N: for each text the row of its image.

    Returns:
        ``text_to_image_recall_at_1`` and so on, ``text_to_image_median_rank`` (1 is best), and
        ``floor_text_to_image_recall_at_1`` and so on; the same for ``image_to_text``.

    Raises:
        ValueError: no image or text, different lengths or widths, an index that is no row of ``image_BD``, or numbers
            that are not finite.
    """
    scores: dict[str, float] = {}
    for way, rank_N in retrieval_ranks(image_BD, text_ND, text_image_N).items():
        scores |= {f"{way}_recall_at_{k}": (rank_N <= k).double().mean().item() for k in RANKS}
        scores[f"{way}_median_rank"] = float(np.median(rank_N.numpy(force=True)))
    texts_B = torch.bincount(text_image_N.to(text_ND.device), minlength=len(image_BD))
    scores |= {f"floor_text_to_image_recall_at_{k}": min(1.0, k / len(image_BD)) for k in RANKS}
    return scores | {
        f"floor_image_to_text_recall_at_{k}": chance_of_images(texts_B[texts_B > 0], k).mean().item() for k in RANKS
    }


def retrieval_ranks(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> dict[str, Tensor]:
    """The ranks behind ``retrieval_scores``, from 1: ``text_to_image`` for each text that of its image, and
    ``image_to_text`` for each image that has texts that of the best of them.

    Raises:
        ValueError: as there.
    """
    same_length(text_ND=text_ND, text_image_N=text_image_N)
    same_length(image_BD=image_BD)
    _check(image_BD, text_ND, text_image_N)
    text_image_N = text_image_N.to(text_ND.device)
    image_BD, text_ND = image_BD.detach().float(), text_ND.detach().float()
    texts_B = torch.bincount(text_image_N, minlength=len(image_BD))
    return {
        "text_to_image": _ranks_of_images(image_BD, text_ND, text_image_N),
        "image_to_text": _ranks_of_texts(image_BD, text_ND, text_image_N)[texts_B > 0],
    }


def _check(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> None:
    if image_BD.shape[1:] != text_ND.shape[1:]:
        raise ValueError(
            f"image_BD has the shape {tuple(image_BD.shape)} and text_ND {tuple(text_ND.shape)}; their vectors must be "
            "of one width"
        )
    for name, vectors in (("image_BD", image_BD), ("text_ND", text_ND)):
        # Every comparison with NaN is false, which would rank a broken model first everywhere.
        if not vectors.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite; the model that made them is broken")
    lowest, highest = text_image_N.min().item(), text_image_N.max().item()
    if lowest < 0 or highest >= len(image_BD):
        raise ValueError(f"text_image_N goes from {lowest} to {highest}; it must name rows of {len(image_BD)} images")


def _ranks_of_images(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> Tensor:
    """For each text the rank of its image, from 1."""
    rows, ranks = max(1, _BLOCK // len(image_BD)), []
    for text_nD, image_n in zip(text_ND.split(rows), text_image_N.split(rows), strict=True):
        similarity_nB = text_nD @ image_BD.T
        ranks.append((similarity_nB >= similarity_nB.gather(1, image_n[:, None])).sum(1))
    return torch.cat(ranks)


def _ranks_of_texts(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> Tensor:
    """For each image the rank of the best of its texts among those of other images, from 1."""
    rows, ranks = max(1, _BLOCK // len(text_ND)), []
    for image_b in torch.arange(len(image_BD), device=text_ND.device).split(rows):
        similarity_bN = image_BD[image_b] @ text_ND.T
        own_bN = text_image_N == image_b[:, None]
        best_b = similarity_bN.masked_fill(~own_bN, -torch.inf).amax(1)
        ranks.append(1 + ((similarity_bN >= best_b[:, None]) & ~own_bN).sum(1))
    return torch.cat(ranks)


def chance_of_images(texts_B: Tensor, k: int) -> Tensor:
    """For each image, by its number of texts, the probability that one of them is among ``k`` drawn from all without
    putting back.
    """
    texts_B = texts_B.double()
    total = texts_B.sum()
    missed_B = torch.ones_like(texts_B)
    for drawn in range(min(k, int(total))):
        missed_B *= ((total - drawn - texts_B) / (total - drawn)).clamp(min=0)
    return 1 - missed_B
