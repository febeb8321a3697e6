"""The module of the encoder ``row``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vlmodel.modality._sequence import SequenceEncoder

if TYPE_CHECKING:
    from vlmodel.modality.row import Config


class RowEncoder(SequenceEncoder):
    """Encodes rows of a table with one token for each column: the column's bias plus the number times the column's
    vector, or plus the embedding of the category.
    """

    stem_modules: ClassVar[tuple[str, ...]] = ("vectors", "biases", "absent", "categories")

    first_C: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        columns, width = config.columns, config.width
        self.missing_is_token = config.missing == "token"
        self.vectors, self.biases = nn.Embedding(len(columns), width), nn.Embedding(len(columns), width)
        self.absent = nn.Embedding(len(columns) if self.missing_is_token else 0, width)
        # One table for all columns: a row of zeros for numbers, then of each column "unknown" and its categories.
        sizes = [1 + len(config.categories[column]) if column in config.categories else 0 for column in columns]
        starts = torch.tensor([1 + sum(sizes[:place]) if size else 0 for place, size in enumerate(sizes)])
        self.register_buffer("first_C", starts)
        self.categories = nn.Embedding(1 + sum(sizes), width, padding_idx=0)
        for table in (self.vectors, self.biases):
            nn.init.normal_(table.weight, std=width**-0.5)
        self.build_layers()

    def weights_over_time(self, weights_NT: Tensor) -> None:
        """Return None: the tokens are columns, and not times."""

    def stem(self, numbers_BC: Tensor, codes_BC: Tensor, given_BC: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        values_BCD = numbers_BC.unsqueeze(-1) * self.vectors.weight + self.categories(self.first_C + codes_BC)
        if not self.missing_is_token:
            return values_BCD + self.biases.weight, given_BC
        x_BCD = torch.where(given_BC.unsqueeze(-1), values_BCD, self.absent.weight) + self.biases.weight
        return x_BCD, torch.ones_like(given_BC)
