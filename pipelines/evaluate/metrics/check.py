"""What every figure asks of its input."""

from __future__ import annotations

from collections.abc import Sized


def same_length(**columns: Sized) -> None:
    """Refuse columns without entries and columns of different lengths.

    Raises:
        ValueError: names the columns and their lengths.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{_listed(lengths)} entries; each needs one for every sample")
    if not all(lengths.values()):
        raise ValueError(f"{_listed(lengths)} entries; there is nothing to score, give at least one sample")


def _listed(lengths: dict[str, int]) -> str:
    return ", ".join(f"{name} has {length}" for name, length in lengths.items())
