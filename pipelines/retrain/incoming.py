"""Finds new tars in the folder into which they are moved, and copies them for a cycle.

A cycle copies its tars to ``_taken/``; on file systems that support it, a copy shares the blocks of its tar. So files
that arrive, change or go later do not change the data of a cycle, later cycles can train on them again, and incoming
files are never moved or deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import pyarrow.compute as pc

from pipelines.data.index.index import Index
from pipelines.errors import DataError
from pipelines.retrain.ledger import IncomingTar
from pipelines.storage.folder import CHUNK, FileStamp, StorageFolder


def find_new_tars(
    incoming: StorageFolder,
    consumed: Mapping[IncomingTar, str],
    known: Mapping[str, str],
    report: Callable[[str], None],
) -> list[IncomingTar]:
    """Find the tars in a folder whose content no cycle has consumed, by name; of several with the same content the
    first.

    Args:
        consumed: the committed cycle of each consumed tar.
        known: the place of other training data, by sha256.
        report: called with a line for each tar that is left out.
    """
    already_read = {(tar.name, tar.size, tar.stamp) for tar in consumed if tar.stamp}
    places = {**known, **{tar.sha256: f"cycle {cycle}" for tar, cycle in consumed.items()}}
    tars = []
    for file in incoming.files():
        if not file.name.endswith(".tar") or file.name.startswith("."):
            continue
        if (file.name, file.size, file.stamp) in already_read:
            continue
        try:
            digest = _file_sha256(incoming, file)
        except OSError as error:
            report(f"{file.name} cannot be read and waits for a later window: {error}")
            continue
        if digest in places:
            report(f"{file.name} is left out: its content is that of {places[digest]}")
            continue
        places[digest] = file.name
        tars.append(IncomingTar(file.name, file.size, file.stamp, digest))
    return tars


def copy_tars(incoming: StorageFolder, tars: Sequence[IncomingTar], taken: str) -> None:
    """Copy each tar into the subfolder ``taken``, which then holds nothing else. The copy may be repeated.

    Raises:
        DataError: a tar is gone.
    """
    copied = {file.name: file.size for file in incoming.files(taken)}
    for name in copied.keys() - {tar.name for tar in tars}:
        incoming.remove(f"{taken}/{name}")
    for tar in tars:
        if copied.get(tar.name) == tar.size:
            continue
        try:
            incoming.copy_file(tar.name, f"{taken}/{tar.name}")
        except FileNotFoundError:
            raise DataError(f"{tar.name} is gone from {incoming.uri!r}; start again to go on without it") from None


def check_tars_copied_unchanged(index: Index, tars: Sequence[IncomingTar]) -> None:
    """Raise an error if tars changed between the time they were listed and the time they were copied.

    Args:
        index: of the folder with the copies.

    Raises:
        DataError: naming the first of them.
    """
    planned = {tar.name: tar.sha256 for tar in tars}
    for shard in index.shards:
        if planned.get(shard.name) != shard.sha256:
            raise DataError(
                f"{shard.name} of {index.tars!r} has changed while it was taken; move tars into retrain.incoming when "
                "they are whole (write elsewhere, then rename), and start again"
            )


def count_inputs_shared_with_evaluation(new: Index, evaluated: Index, split: str) -> dict[str, int]:
    """Count, for each input that both data sets have, the training samples of ``new`` whose input has the same bytes as
    a sample in a split of ``evaluated``. Holds the hashes of that split's inputs in memory, one input at a time.
    """
    counts = {}
    for name in new.inputs.keys() & evaluated.inputs.keys():
        held_out = {
            sha256 for shard in evaluated.shards for sha256 in _input_hashes(evaluated, shard.name, split, name)
        }
        counts[name] = sum(
            sha256 in held_out for shard in new.shards for sha256 in _input_hashes(new, shard.name, "train", name)
        )
    return counts


def _input_hashes(index: Index, shard: str, split: str, name: str) -> list[str]:
    table = index.rows(shard)
    of_split = table.filter(pc.equal(table["split"], split))
    hashes: list[str] = of_split[f"{name}.sha256"].drop_null().to_pylist()
    return hashes


def _file_sha256(folder: StorageFolder, file: FileStamp) -> str:
    digest = hashlib.sha256()
    with folder.stream(file.name, file.size) as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
