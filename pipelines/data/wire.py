"""A collated batch as one Arrow row, so that Ray moves it whole and the consumer reads it without a copy.

A batch has arrays of different first dimensions (images, texts), which is not a table of rows. Each array becomes one
large_binary cell that shares the array's memory; its dtype and shape travel in the schema's metadata. Nothing here can
execute code on reading, unlike a pickled column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

_LAYOUT = b"layout"


def pack(arrays: Mapping[str, np.ndarray]) -> pa.Table:
    """One row with a column for each array. The arrays' memory is shared where they are contiguous."""
    fields, columns, layout = [], [], {}
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array)
        layout[name] = (flat.dtype.str, flat.shape)
        offsets = pa.py_buffer(np.array([0, flat.nbytes], np.int64))
        data = pa.py_buffer(flat.reshape(-1).view(np.uint8)) if flat.nbytes else pa.py_buffer(b"")
        columns.append(pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data]))
        # The layout rides on each field: Ray rebuilds a block's schema from its fields and drops the schema's own.
        fields.append(pa.field(name, pa.large_binary(), metadata={_LAYOUT: json.dumps(layout[name]).encode()}))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def unpack(table: pa.Table) -> dict[str, np.ndarray]:
    """The arrays of a packed row, as read-only views of the table's memory."""
    if table.num_rows != 1:
        raise ValueError(f"a packed batch is one row, got {table.num_rows}; read it with batch_size=None")
    arrays = {}
    for column, spec in zip(table.columns, table.schema, strict=True):
        dtype, shape = json.loads(spec.metadata[_LAYOUT])
        buffer = column.chunk(0)[0].as_buffer()
        arrays[spec.name] = np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)
    return arrays
