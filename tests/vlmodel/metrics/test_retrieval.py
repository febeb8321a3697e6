"""Retrieval by hand, and against torchmetrics on random vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate

from vlmodel.metrics import retrieval
from vlmodel.metrics.retrieval import RANKS, retrieval_scores


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor, Tensor]:
    """30 images, the last without a text, and 80 texts that resemble theirs."""
    generator = torch.Generator().manual_seed(0)
    image_BD = torch.randn(30, 8, generator=generator)
    text_image_N = torch.cat([torch.arange(29), torch.randint(29, (51,), generator=generator)])
    text_ND = image_BD[text_image_N] + 2 * torch.randn(80, 8, generator=generator)
    return image_BD, text_ND, text_image_N


def test_ranks_by_hand() -> None:
    image_BD = torch.eye(3)
    text_ND = torch.tensor([[3.0, 2.0, 1.0], [2.0, 1.0, 3.0], [5.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    scores = retrieval_scores(image_BD, text_ND, torch.tensor([0, 1, 1, 2]))
    # Texts find their images at 1, 3, 2, 1. Image 0 ranks its text behind the third; image 1 has its second text first;
    # image 2 ranks its text behind the second.
    assert scores["text_to_image_recall_at_1"] == pytest.approx(2 / 4)
    assert scores["text_to_image_recall_at_5"] == 1
    assert scores["text_to_image_median_rank"] == 1.5
    assert scores["image_to_text_recall_at_1"] == pytest.approx(1 / 3)
    assert scores["image_to_text_recall_at_5"] == 1
    assert scores["image_to_text_median_rank"] == 2


def test_recall_is_that_of_torchmetrics(vectors: tuple[Tensor, Tensor, Tensor]) -> None:
    image_BD, text_ND, text_image_N = vectors
    scores = retrieval_scores(*vectors)
    right_BN = text_image_N == torch.arange(len(image_BD))[:, None]
    similarity_BN = (image_BD @ text_ND.T / 20).sigmoid()  # torchmetrics asks for probabilities; none may tie at 1
    for way, right, similarity in (
        ("image_to_text", right_BN, similarity_BN),
        ("text_to_image", right_BN.T, similarity_BN.T),
    ):
        query = torch.arange(len(right))[:, None].expand_as(right)
        for k in RANKS:
            expected = RetrievalHitRate(top_k=k, empty_target_action="skip")(
                similarity.flatten(), right.flatten(), query.flatten()
            )
            assert scores[f"{way}_recall_at_{k}"] == pytest.approx(expected.item())
            assert scores[f"{way}_recall_at_{k}"] > scores[f"floor_{way}_recall_at_{k}"]


def test_blocks_change_nothing(vectors: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieval_scores(*vectors)
    sizes: list[int] = []
    plain = Tensor.__ge__

    def counting(similarity: Tensor, other: Tensor) -> Tensor:
        sizes.append(similarity.numel())
        return plain(similarity, other)

    monkeypatch.setattr(Tensor, "__ge__", counting)
    monkeypatch.setattr(retrieval, "_BLOCK", 200)  # 6 texts or 2 images at a time
    assert retrieval_scores(*vectors) == whole
    assert max(sizes) == 180  # of 2400
    monkeypatch.setattr(retrieval, "_BLOCK", 1)
    assert retrieval_scores(*vectors) == whole


def test_equal_vectors_for_all_score_nothing() -> None:
    scores = retrieval_scores(torch.ones(20, 4), torch.ones(40, 4), torch.arange(20).repeat(2))
    assert {scores[f"{way}_recall_at_{k}"] for way in ("text_to_image", "image_to_text") for k in RANKS} == {0}
    assert scores["text_to_image_median_rank"] == 20
    assert scores["image_to_text_median_rank"] == 39  # its own two do not stand in each other's way


def test_one_image_finds_its_texts() -> None:
    scores = retrieval_scores(torch.ones(1, 2), -torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    assert {value for name, value in scores.items()} == {1}


def test_an_image_without_a_text_is_there_to_choose_and_asks_nothing() -> None:
    image_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    scores = retrieval_scores(image_BD, torch.eye(2), torch.tensor([0, 1]))
    assert scores["image_to_text_recall_at_1"] == 1
    assert scores["text_to_image_recall_at_1"] == 0.5
    assert scores["floor_text_to_image_recall_at_1"] == pytest.approx(1 / 3)
    assert scores["floor_image_to_text_recall_at_1"] == 0.5


def test_baselines_are_those_of_a_random_order(vectors: tuple[Tensor, Tensor, Tensor]) -> None:
    scores = retrieval_scores(*vectors)
    own = torch.bincount(vectors[2]).tolist()
    for k in RANKS:
        drawn = [1 - math.comb(80 - texts, k) / math.comb(80, k) for texts in own]
        assert scores[f"floor_image_to_text_recall_at_{k}"] == pytest.approx(sum(drawn) / 29)
        assert scores[f"floor_text_to_image_recall_at_{k}"] == pytest.approx(k / 30)


def test_half_precision_and_gradients_are_taken() -> None:
    image_BD = torch.eye(4).to(torch.bfloat16).requires_grad_()
    assert retrieval_scores(image_BD, torch.eye(4), torch.arange(4))["text_to_image_recall_at_1"] == 1


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["image_BD", "text_ND"])
def test_numbers_that_are_not_finite_are_refused(broken: float, side: str) -> None:
    given = {"image_BD": torch.eye(3), "text_ND": torch.eye(3), "text_image_N": torch.arange(3)}
    given[side][1, 1] = broken
    with pytest.raises(ValueError, match=f"{side} holds numbers that are not finite"):
        retrieval_scores(**given)
