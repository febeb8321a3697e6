"""Encodes rows of a table with one token for each column (Gorishniy et al. 2021, arXiv:2106.11959)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vlmodel.config import ConfigSection
from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.row import decode_json_row
from vlmodel.modality._settings import SequenceSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.modality._row import RowEncoder


class NumberColumn(ConfigSection):
    """Settings of a column of numbers: how it is scaled."""

    mean: float = 0.0
    """Its mean over the data, which is subtracted."""
    std: float = Field(1.0, gt=0)
    """Its standard deviation, by which it is divided."""


class Augment(ConfigSection):
    """Settings of random augmentation in training, drawn anew in each epoch; none by default."""

    missing: float = Field(0.0, ge=0, lt=1)
    """Share of the values that count as missing."""


class Config(SequenceSettings):
    """Settings of a row encoder with one token for each named column: a scaled number times a vector of its column, or
    the embedding of a category.

    A missing value has an embedding of its own, or no token. Columns that are not named here are not read.
    """

    medium: ClassVar[str] = "row"
    non_backbone_settings: ClassVar[frozenset[str]] = SequenceSettings.non_backbone_settings | {"augment"}

    kind: Literal["row"] = "row"
    numbers: dict[str, NumberColumn] = {}
    """Columns of numbers, as {age = {mean = 41.5, std = 17.0}}; true and false are 1 and 0."""
    categories: dict[str, list[str]] = {}
    """Columns of categories with their values, as {colour = ["red", "blue"]}; another value counts as unknown, which
    has an embedding of its own."""
    missing: Literal["token", "none"] = "token"
    """What a missing value becomes: a learned token, or no token."""
    augment: Augment = Augment()
    """Random changes of the rows that it is trained with."""

    @model_validator(mode="after")
    def _check_columns_named_once(self) -> Config:
        if not self.numbers and not self.categories:
            raise ValueError("numbers and categories are empty; name at least one column")
        if both := sorted(self.numbers.keys() & self.categories.keys()):
            raise ValueError(f"column {both[0]!r} is in numbers and in categories; name it in one of them")
        for column, values in self.categories.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"categories.{column} = {values}: name its values, each once")
        if not all(math.isfinite(column.mean) and math.isfinite(column.std) for column in self.numbers.values()):
            raise ValueError("numbers: mean and std must be finite")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns in the order of their tokens: numbers, then categories, each sorted by name."""
        return (*sorted(self.numbers), *sorted(self.categories))

    def decode(self, data: bytes) -> dict[str, NDArray[Any]]:
        """Decode a row to ``numbers_C`` float32, scaled, ``codes_C`` int64, 1 + the index of the category or 0 if
        unknown (both are 0 for columns of the other type), and ``given_C`` bool, which values are present.
        """
        row = decode_json_row(data, CheckLimits().max_values)
        numbers_C = np.zeros(len(self.columns), np.float32)
        codes_C = np.zeros(len(self.columns), np.int64)
        given_C = np.zeros(len(self.columns), np.bool_)
        for place, column in enumerate(self.columns):
            if (value := row.get(column)) is None:
                continue
            given_C[place] = True
            if column in self.numbers:
                numbers_C[place] = self._scale_number(column, value)
            else:
                codes_C[place] = self._category_code(column, value)
        return {"numbers_C": numbers_C, "codes_C": codes_C, "given_C": given_C}

    def has_augmentation(self) -> bool:
        return self.augment.missing > 0

    def decode_augmented(self, data: bytes, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        decoded = self.decode(data)
        kept_C = rng.random(len(self.columns)) >= self.augment.missing
        return {name: values_C * kept_C for name, values_C in decoded.items()}

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """Stack rows to ``numbers_BC``, ``codes_BC`` and ``given_BC``."""
        types = {"numbers": np.float32, "codes": np.int64, "given": np.bool_}
        empty = (0, len(self.columns))
        return {
            f"{name}_BC": np.stack([row[f"{name}_C"] for row in decoded]) if decoded else np.zeros(empty, kind)
            for name, kind in types.items()
        }

    def build(self) -> RowEncoder:
        from vlmodel.modality._row import RowEncoder

        return RowEncoder(self)

    def _scale_number(self, column: str, value: float | str | bool) -> float:
        if isinstance(value, str):
            raise MediumError("wrong_column", f"column {column!r} is the text {value!r:.40}; the model takes a number")
        scale = self.numbers[column]
        return (float(value) - scale.mean) / scale.std

    def _category_code(self, column: str, value: float | str | bool) -> int:
        text = value if isinstance(value, str) else _category_text(value)
        values = self.categories[column]
        return 1 + values.index(text) if text in values else 0


def _category_text(value: float | bool) -> str:
    """Convert a value to the text that ``categories`` uses: true, 3, 2.5."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if value == int(value) else str(value)
