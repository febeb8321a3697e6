"""Metrics of retrieval in both directions: which image belongs to a text, which texts belong to an image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RANKS = (1, 5, 10)

_BLOCK = 2**24
"""Similarities in memory at a time: 64 MiB."""


def retrieval_scores(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> dict[str, float]:
    """Compute the recall at 1, 5 and 10 and the median rank in each direction, and the recall of a random order for
    comparison.

    Similarity is the dot product; give vectors of length one for the cosine. A text must find its image; an image must
    find any one of its texts: its rank is that of the best of them among the texts of other images. Ties count against
    the model: what is as similar as the right one is ranked before it, so equal vectors for all score nothing. An image
    without a text is a candidate, and no query.

    Args:
        image_BD: images, float.
        text_ND: texts, float, on the same device.
        text_image_N: for each text the row of its image.

    Returns:
        ``text_to_image_recall_at_1`` and so on, ``text_to_image_median_rank`` (1 is best), and
        ``floor_text_to_image_recall_at_1`` and so on; the same for ``image_to_text``.

    Raises:
        ValueError: numbers that are not finite.
    """
    scores: dict[str, float] = {}
    for way, rank_N in retrieval_ranks(image_BD, text_ND, text_image_N).items():
        scores |= {f"{way}_recall_at_{k}": (rank_N <= k).double().mean().item() for k in RANKS}
        scores[f"{way}_median_rank"] = float(np.median(rank_N.numpy(force=True)))
    texts_B = torch.bincount(text_image_N.to(text_ND.device), minlength=len(image_BD))
    scores |= {f"floor_text_to_image_recall_at_{k}": min(1.0, k / len(image_BD)) for k in RANKS}
    return scores | {
        f"floor_image_to_text_recall_at_{k}": random_recall_of_images(texts_B[texts_B > 0], k).mean().item()
        for k in RANKS
    }


def retrieval_ranks(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> dict[str, Tensor]:
    """Compute the ranks behind ``retrieval_scores``, from 1: ``text_to_image`` of each text's image, and
    ``image_to_text`` of the best text of each image that has texts.

    Raises:
        ValueError: numbers that are not finite.
    """
    for name, vectors in (("image_BD", image_BD), ("text_ND", text_ND)):
        # Every comparison with NaN is false, which would give a broken model the best ranks.
        if not vectors.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite; the model that made them is broken")
    text_image_N = text_image_N.to(text_ND.device)
    image_BD, text_ND = image_BD.detach().float(), text_ND.detach().float()
    texts_B = torch.bincount(text_image_N, minlength=len(image_BD))
    return {
        "text_to_image": _ranks_of_images(image_BD, text_ND, text_image_N),
        "image_to_text": _ranks_of_texts(image_BD, text_ND, text_image_N)[texts_B > 0],
    }


def _ranks_of_images(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> Tensor:
    """Rank the image of each text among all images, from 1."""
    rows, ranks = max(1, _BLOCK // len(image_BD)), []
    for text_nD, image_n in zip(text_ND.split(rows), text_image_N.split(rows), strict=True):
        similarity_nB = text_nD @ image_BD.T
        ranks.append((similarity_nB >= similarity_nB.gather(1, image_n[:, None])).sum(1))
    return torch.cat(ranks)


def _ranks_of_texts(image_BD: Tensor, text_ND: Tensor, text_image_N: Tensor) -> Tensor:
    """Rank each image's most similar own text among the texts of all other images; 1 is the best rank."""
    rows, ranks = max(1, _BLOCK // len(text_ND)), []
    for image_b in torch.arange(len(image_BD), device=text_ND.device).split(rows):
        similarity_bN = image_BD[image_b] @ text_ND.T
        own_bN = text_image_N == image_b[:, None]
        best_b = similarity_bN.masked_fill(~own_bN, -torch.inf).amax(1)
        ranks.append(1 + ((similarity_bN >= best_b[:, None]) & ~own_bN).sum(1))
    return torch.cat(ranks)


def random_recall_of_images(texts_B: Tensor, k: int) -> Tensor:
    """Compute, for each image, the probability that one of its texts is among ``k`` texts drawn at random without
    replacement.

    Args:
        texts_B: number of texts of each image.
    """
    texts_B = texts_B.double()
    total = texts_B.sum()
    missed_B = torch.ones_like(texts_B)
    for drawn in range(min(k, int(total))):
        missed_B *= ((total - drawn - texts_B) / (total - drawn)).clamp(min=0)
    return 1 - missed_B
