"""A batch crosses the object store unchanged, without a copy and without code."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data.stream.wire import pack_arrays, unpack_arrays


def test_round_trip_of_every_kind_of_array() -> None:
    arrays = {
        "pixels": np.random.default_rng(0).integers(0, 255, (2, 5, 4, 3), np.uint8),
        "mask": np.array([[True, False], [True, True]]),
        "nothing": np.zeros((0, 7), np.int64),
        "float": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3).T,
    }
    found = unpack_arrays(pack_arrays(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_unpacking_shares_memory_and_survives_arrow_ipc() -> None:
    table = pack_arrays({"pixels": np.arange(1 << 16, dtype=np.uint8)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    received = pa.ipc.open_stream(sink.getvalue()).read_all()
    allocated = pa.total_allocated_bytes()
    pixels = unpack_arrays(received)["pixels"]
    assert pa.total_allocated_bytes() == allocated
    assert not pixels.flags.writeable
    np.testing.assert_array_equal(pixels, np.arange(1 << 16, dtype=np.uint8))


def test_joined_rows_are_refused() -> None:
    table = pack_arrays({"a": np.ones(3)})
    with pytest.raises(ValueError, match="batch_size=None"):
        unpack_arrays(pa.concat_tables([table, table]))


def test_rows_of_one_block_keep_their_own_shapes() -> None:
    block = pa.concat_tables([pack_arrays({"a": np.ones((n, 2))}) for n in (1, 3)])
    assert [unpack_arrays(block.slice(row, 1))["a"].shape for row in (0, 1)] == [(1, 2), (3, 2)]
