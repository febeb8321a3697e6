"""Scores of single rows whose mean is the metric by which models are compared, so that two models can be compared row
by row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ExampleScores:
    """The scores of N evaluated rows. The metric is the mean over groups of the mean score in each group.

    Attributes:
        score_N: such as 0 or 1 for a wrong or right answer, or the CIDEr-D of a caption.
        group_N: balanced accuracy has a group for each class, recall one for each direction.
        image_N: number of the row's sample; rows of one sample are not independent of each other.
        row_N: the row among all that were answered.
        binary: whether the scores are 0 or 1.
    """

    score_N: NDArray[np.float64]
    group_N: NDArray[np.int64]
    image_N: NDArray[np.int64]
    row_N: NDArray[np.int64]
    binary: bool

    @classmethod
    def with_one_group(
        cls, score_N: NDArray[np.float64], sample_R: NDArray[np.int64], row_N: NDArray[np.int64], binary: bool
    ) -> ExampleScores:
        """Put all scores in a single group, so that the metric is their plain mean.

        Args:
            sample_R: number of the sample of each of all answered rows.
        """
        return cls(score_N, np.zeros(len(row_N), np.int64), sample_R[row_N], row_N, binary)

    def __len__(self) -> int:
        return len(self.score_N)

    @property
    def metric_value(self) -> float:
        """The value of the metric by which models are compared."""
        groups = np.unique(self.group_N)
        return float(np.mean([self.score_N[self.group_N == group].mean() for group in groups]))

    def select_rows(self, mask_R: NDArray[np.bool_]) -> ExampleScores:
        """Select the scores of some rows, by a mask over all answered rows."""
        mask_N = mask_R[self.row_N]
        selected = {name: getattr(self, name)[mask_N] for name in ("score_N", "group_N", "image_N", "row_N")}
        return replace(self, **selected)
