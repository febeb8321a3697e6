"""Packs a collated batch into one Arrow row, so that Ray moves it whole and the consumer reads it without a copy.

A batch has arrays of different first dimensions (images, texts), which make no table of rows. Each array becomes one
large_binary cell that shares the array's memory; a last cell holds their dtypes and shapes. The schema cannot hold
these: Ray joins rows of different batches into one block, which has one schema. Reading executes no code, unlike with a
pickled column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

_LAYOUT = "layout"


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> pa.Table:
    """Pack arrays into one row with a column for each. Contiguous arrays share their memory with the row."""
    columns, layout = {}, {}
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array)
        layout[name] = (flat.dtype.str, flat.shape)
        offsets = pa.py_buffer(np.array([0, flat.nbytes], np.int64))
        data = pa.py_buffer(flat.reshape(-1).view(np.uint8)) if flat.nbytes else pa.py_buffer(b"")
        columns[name] = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])
    columns[_LAYOUT] = pa.array([json.dumps(layout).encode()], pa.large_binary())
    return pa.table(columns)


def unpack_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    """Return the arrays of a packed row, as read-only views of the table's memory."""
    if table.num_rows != 1:
        raise ValueError(f"a packed batch is one row, got {table.num_rows}; read it with batch_size=None")
    layout = json.loads(table[_LAYOUT][0].as_py())
    return {
        name: np.frombuffer(table[name][0].as_buffer(), np.dtype(dtype)).reshape(shape)
        for name, (dtype, shape) in layout.items()
    }
