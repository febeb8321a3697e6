"""The folder into which new tars are moved: which of them are new, and how a cycle takes them.

A cycle takes a tar by a copy of its own, in ``_taken/``; on a disk that can, the copy shares the tar's blocks and takes
no room. So what arrives, changes or goes later, also into the same file, does not change what a cycle has seen, later
cycles can train on it again, and nothing that was dropped is ever moved or deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import pyarrow.compute as pc

from pipelines.data.index.index import Index
from pipelines.errors import DataError
from pipelines.retrain.ledger import Tar
from pipelines.storage.folder import CHUNK, FileStamp, Folder


def find_new_tars(
    incoming: Folder, consumed: Mapping[Tar, str], known: Mapping[str, str], report: Callable[[str], None]
) -> list[Tar]:
    """The tars of content that nobody has seen, by name; of several of one content the first.

    Args:
        consumed: tars of committed cycles, and which cycle that was.
        known: sha256 of other content that is trained on anyway, and where it is.
        report: told of each that is left out.
    """
    read = {(tar.name, tar.size, tar.stamp): tar.sha256 for tar in consumed if tar.stamp}
    places = {**known, **{tar.sha256: f"cycle {cycle}" for tar, cycle in consumed.items()}}
    found = []
    for file in incoming.files():
        if not file.name.endswith(".tar") or file.name.startswith("."):
            continue
        if (file.name, file.size, file.stamp) in read:
            continue
        try:
            digest = _sha256(incoming, file)
        except OSError as error:
            report(f"{file.name} cannot be read and waits for a later window: {error}")
            continue
        if digest in places:
            report(f"{file.name} is left out: its content is that of {places[digest]}")
            continue
        places[digest] = file.name
        found.append(Tar(file.name, file.size, file.stamp, digest))
    return found


def copy_tars(incoming: Folder, tars: Sequence[Tar], taken: str) -> None:
    """Copy each tar into the subfolder ``taken``, which then holds nothing else. May be repeated.

    Raises:
        DataError: a tar is gone.
    """
    there = {file.name: file.size for file in incoming.files(taken)}
    for name in there.keys() - {tar.name for tar in tars}:
        incoming.remove(f"{taken}/{name}")
    for tar in tars:
        if there.get(tar.name) == tar.size:
            continue
        try:
            incoming.duplicate(tar.name, f"{taken}/{tar.name}")
        except FileNotFoundError:
            raise DataError(f"{tar.name} is gone from {incoming.uri!r}; start again to go on without it") from None


def check_copies(index: Index, tars: Sequence[Tar]) -> None:
    """Refuse tars that have changed since they were found new.

    Args:
        index: of the folder into which they were taken.

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


def count_shared_images(new: Index, judged: Index, split: str) -> int:
    """Training samples of ``new`` whose image is also one of a split of ``judged``, by which models are compared.

    Holds the hashes of that split's images in memory.
    """
    held_out = {sha256 for shard in judged.shards for sha256 in _images(judged, shard.name, split)}
    return sum(sha256 in held_out for shard in new.shards for sha256 in _images(new, shard.name, "train"))


def _images(index: Index, shard: str, split: str) -> list[str]:
    table = index.rows(shard)
    hashes: list[str] = table.filter(pc.equal(table["split"], split))["sha256"].to_pylist()
    return hashes


def _sha256(folder: Folder, file: FileStamp) -> str:
    digest = hashlib.sha256()
    with folder.stream(file.name, file.size) as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
