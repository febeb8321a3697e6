"""Sine position embeddings for the cells of a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_positions(height: int, width: int, dimensions: int, device: torch.device | None = None) -> Tensor:
    """Compute fixed two-dimensional sine positions (H * W, D), row by row, for a grid of any size.

    The first half of the dimensions encodes the row, the second the column, as sines and cosines of geometrically
    spaced frequencies (Vaswani et al. 2017; in two dimensions Carion et al. 2020). Rows and columns are fractions of
    the grid, so the center of an image has the same position at every resolution.
    """
    half = (dimensions + 1) // 2
    rows = _sine_table((torch.arange(height, device=device) + 0.5) / height, half)
    columns = _sine_table((torch.arange(width, device=device) + 0.5) / width, dimensions - half)
    grid = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)


def _sine_table(fraction: Tensor, dimensions: int) -> Tensor:
    """Compute sines, then cosines, of fractions from 0 to 1, at frequencies from half a turn to 16 turns: (fractions,
    dimensions).
    """
    count = (dimensions + 1) // 2
    turns = torch.logspace(-1, 4, count, base=2.0, device=fraction.device)
    angles = 2 * math.pi * fraction[:, None] * turns
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dimensions]
