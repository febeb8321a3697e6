"""Derives from the Parquet files of stored vectors the files that a search maps into memory, and makes them again if
they are missing.

    INPUT.vectors     the vectors of one input, (M, D) float32
    INPUT.rows        whose they are, as an Arrow file: a batch for each Parquet file that has some
    INPUT.graph.N     usearch's graphs, for more vectors than are searched exactly

It is written beside the vectors where these are local, else into the cache of this machine; one Parquet file at a time,
so that it takes no more memory than one of them (and, above ``exact``, than one graph).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.stored import EmbeddingsManifest, read_embeddings_file
from pipelines.storage.folder import StorageFolder
from pipelines.storage.lock import hold_lock
from pipelines.vectors.search import save_graphs

SUBFOLDER = "search"
ROW_COLUMNS = ("key", "split", "shard", "row", "text")

_LOCK = ".search.lock"
_WAIT_S = 3600.0


def open_search_files(
    folder: StorageFolder,
    embeddings: EmbeddingsManifest,
    exact: int,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Path:
    """Return the local folder of the search files; they are made if they are missing, while others that want them wait.

    Args:
        exact: up to so many vectors of an input need no graphs.
        progress: called with the numbers of Parquet files that are read, and of all.

    Raises:
        EmbeddingsError: a Parquet file cannot be read.
        OSError: the files cannot be written.
    """
    root = _cache_root(folder)
    target = root / f"{embeddings.hash[:32]}-{exact}"
    if target.is_dir():
        return target
    refusal = lambda holder: EmbeddingsError(f"{holder} has been making {str(target)!r} for an hour; end it")  # noqa: E731
    with hold_lock(root.parent / _LOCK, refusal, _WAIT_S):
        if not target.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
            try:
                _write(folder, embeddings, made, exact, progress)
                made.rename(target)
            finally:
                shutil.rmtree(made, ignore_errors=True)
            # Who has an earlier one open keeps it: what is mapped stays until it is closed.
            for other in root.iterdir():
                if other != target:
                    shutil.rmtree(other, ignore_errors=True)
    return target


def map_vectors(files: Path, name: str, count: int, width: int) -> np.memmap:
    """Map the vectors of an input, (count, width), from their file."""
    return np.memmap(files / f"{name}.vectors", np.float32, "r", shape=(count, width))


def _cache_root(folder: StorageFolder) -> Path:
    if folder.is_local:
        return Path(folder.path(SUBFOLDER))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylm" / SUBFOLDER
    return cache / folder.uri.partition("://")[2].replace("/", "_")


def _write(
    folder: StorageFolder,
    embeddings: EmbeddingsManifest,
    target: Path,
    exact: int,
    progress: Callable[[int, int], object],
) -> None:
    counts = {name: embeddings.count(name) for name in embeddings.inputs}
    schema = pa.schema([(name, pa.int32() if name == "row" else pa.string()) for name in ROW_COLUMNS])
    with ExitStack() as stack:
        vectors = {name: stack.enter_context((target / f"{name}.vectors").open("wb")) for name in counts}
        rows = {name: stack.enter_context(pa.ipc.new_file(str(target / f"{name}.rows"), schema)) for name in counts}
        for number, part in enumerate(embeddings.parts, 1):
            table = read_embeddings_file(folder, part.name) if any(part.vectors.values()) else None
            for name, count in part.vectors.items():
                assert table is not None
                of_input = table.filter(pc.equal(table["input"], name)).combine_chunks()
                flat = of_input["vector"].combine_chunks().flatten().to_numpy()
                if (of_input.num_rows, flat.size) != (count, count * embeddings.width):
                    raise EmbeddingsError(
                        f"{part.name} of {folder.uri!r} has {of_input.num_rows} vectors of {name!r}, and its manifest "
                        f"says {count}; delete it, and run the embed job again"
                    )
                vectors[name].write(np.ascontiguousarray(flat).data)
                (batch,) = of_input.select(list(ROW_COLUMNS)).cast(schema).to_batches()
                rows[name].write_batch(batch)
            progress(number, len(embeddings.parts))
    for name, count in counts.items():
        if count > exact:
            save_graphs(map_vectors(target, name, count, embeddings.width), target / f"{name}.graph")
