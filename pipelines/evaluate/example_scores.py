"""Per-example scores whose mean is the metric by which models are compared, so that two models can be compared row by
row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipelines.evaluate.metrics.captions import cider_of_each, with_words
from pipelines.evaluate.metrics.retrieval import RANKS, chance_of_images, retrieval_ranks
from vlmodel.answers import Normalizer, normal_form
from vlmodel.task_spec import MATCH, TaskSpec, is_match


@dataclass(frozen=True)
class ExampleScores:
    """Scores of N rows. The metric is the mean over the groups of the mean over their rows.

    Attributes:
        score_N: 0 or 1 for a wrong or right answer, the CIDEr-D of a caption, the mean of the recalls at 1, 5 and 10 of
            a text or an image.
        group_N: balanced accuracy has a group for each class, recall one for each direction.
        image_N: number of the row's image; rows of one image are not independent of each other.
        row_N: the row of the table of answers.
        binary: whether the scores are 0 or 1.
    """

    score_N: NDArray[np.float64]
    group_N: NDArray[np.int64]
    image_N: NDArray[np.int64]
    row_N: NDArray[np.int64]
    binary: bool

    def __len__(self) -> int:
        return len(self.score_N)

    @property
    def value(self) -> float:
        """The metric by which models are compared: ``Report.value`` of the same answers."""
        groups = np.unique(self.group_N)
        return float(np.mean([self.score_N[self.group_N == group].mean() for group in groups]))

    def select_rows(self, mask_R: NDArray[np.bool_]) -> ExampleScores:
        """The scores of some rows of the table."""
        mask_N = mask_R[self.row_N]
        selected = {name: getattr(self, name)[mask_N] for name in ("score_N", "group_N", "image_N", "row_N")}
        return replace(self, **selected)


def score_examples(answers: pa.Table, spec: TaskSpec, normalizer: Normalizer = "none") -> ExampleScores:
    """Scores of those rows of a table of ``predict.SCHEMA`` that have a right answer.

    Args:
        normalizer: rules by which answers in words are compared.
    """
    image_R = image_ids(answers)
    if spec.target == "none":
        return _score_retrieval(answers, image_R)
    if spec.target == "tokens" and not spec.text:
        references = with_words(answers["references"].to_pylist())
        row_N = np.flatnonzero([bool(captions) for captions in references])
        predicted = answers["predicted"].take(pa.array(row_N)).to_pylist()
        score_N = cider_of_each(predicted, [references[row] for row in row_N])
        return ExampleScores(score_N, np.zeros(len(row_N), np.int64), image_R[row_N], row_N, binary=False)
    row_N = np.flatnonzero(pc.is_valid(answers["target"]).to_numpy())
    targets, predicted = (answers[name].take(pa.array(row_N)).to_pylist() for name in ("target", "predicted"))
    if spec.target == "match":
        group_N = np.array([is_match(target) for target in targets], np.int64)
        right = group_N == np.array([answer == MATCH for answer in predicted])
    else:
        group_N = np.zeros(len(row_N), np.int64)
        right = np.array(answers_match(targets, predicted, normalizer), np.bool_)
    return ExampleScores(right.astype(np.float64), group_N, image_R[row_N], row_N, binary=True)


def answers_match(targets: Iterable[str], predicted: Iterable[str], normalizer: Normalizer) -> list[bool]:
    """Whether each answer has the normal form of its target."""
    return [
        normal_form(target, normalizer) == normal_form(answer, normalizer)
        for target, answer in zip(targets, predicted, strict=True)
    ]


def random_order_scores(answers: pa.Table, scores: ExampleScores) -> ExampleScores:
    """Expected scores of a random order of all images and of all texts, on the rows of a retrieval's scores."""
    image_R = image_ids(answers)
    _, image_R = np.unique(image_R, return_inverse=True)
    texts_B = np.bincount(image_R)
    of_text = np.mean([min(1.0, k / len(texts_B)) for k in RANKS])
    of_image_B = np.mean([chance_of_images(torch.from_numpy(texts_B), k).numpy() for k in RANKS], axis=0)
    score_N = np.where(scores.group_N == 0, of_text, of_image_B[image_R[scores.row_N]])
    return replace(scores, score_N=score_N)


def image_ids(answers: pa.Table) -> NDArray[np.int64]:
    """A number for the image of each row. Samples of different splits may have the same key."""
    codes = [
        pc.dictionary_encode(answers[name], null_encoding="encode").combine_chunks().indices.to_numpy().astype(np.int64)
        for name in ("split", "key")
    ]
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].astype(np.int64).ravel()


def _score_retrieval(answers: pa.Table, image_R: NDArray[np.int64]) -> ExampleScores:
    """Each row counts for its text; the first row of an image also counts for the image."""
    first_B = np.flatnonzero(pc.is_valid(answers["image_embedding"]).to_numpy())
    place = {image: b for b, image in enumerate(image_R[first_B].tolist())}
    image_BD = np.stack(answers["image_embedding"].take(pa.array(first_B)).to_numpy())
    text_ND = np.stack(answers["text_embedding"].to_numpy())
    text_image_N = torch.tensor([place[image] for image in image_R.tolist()])
    ranks = retrieval_ranks(torch.from_numpy(image_BD), torch.from_numpy(text_ND), text_image_N)
    row_N = np.concatenate([np.arange(len(text_ND)), first_B])
    rank_N = np.concatenate([ranks["text_to_image"].numpy(force=True), ranks["image_to_text"].numpy(force=True)])
    return ExampleScores(
        score_N=(rank_N[:, None] <= np.array(RANKS)).mean(1),
        group_N=np.repeat(np.arange(2), [len(text_ND), len(first_B)]),
        image_N=image_R[row_N],
        row_N=row_N,
        binary=False,
    )
