"""Copies arrays of the stream to tensors on the device, one batch ahead of the training step."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.loader import without_provenance
from vlmodel.array_names import stays_on_host


class DevicePrefetcher:
    """Iterates over (arrays, tensors of the model's inputs), copying one batch ahead.

    On a GPU the next batch is copied, from pinned memory and without blocking, while the step runs on the current one.

    Attributes:
        waited_s: seconds spent waiting for the stream.
    """

    def __init__(self, batches: Iterator[Arrays], device: torch.device) -> None:
        self.waited_s = 0.0
        self._batches, self._device = batches, device
        self._ahead = self._fetch_batch() if device.type == "cuda" else None

    def __iter__(self) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        return self

    def __next__(self) -> tuple[Arrays, dict[str, Any]]:
        if self._device.type != "cuda":
            fetched = self._fetch_batch()
        else:
            fetched, self._ahead = self._ahead, self._fetch_batch()
        if fetched is None:
            raise StopIteration
        return fetched

    def close(self) -> None:
        """End the stream. If it is only dropped, it holds its resources until Ray Data collects it."""
        if isinstance(self._batches, Generator):
            self._batches.close()

    def _fetch_batch(self) -> tuple[Arrays, dict[str, Any]] | None:
        start = time.perf_counter()
        arrays = next(self._batches, None)
        self.waited_s += time.perf_counter() - start
        return None if arrays is None else (arrays, arrays_to_tensors(arrays, self._device))


def arrays_to_tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Any]:
    """Copy the model's inputs to ``device``, except arrays that stay on the host as numbers (``stays_on_host``).

    Read-only arrays are copied: they are views of the object store, which torch must not write to.
    """
    named = without_provenance(arrays)
    numbers = {name: array.tolist() for name, array in named.items() if stays_on_host(name)}
    inputs = {
        name: torch.from_numpy(array if array.flags.writeable else array.copy())
        for name, array in named.items()
        if name not in numbers
    }
    if device.type == "cuda":
        inputs = {name: t.pin_memory().to(device, non_blocking=True) for name, t in inputs.items()}
    return {**inputs, **numbers}
