"""Checkpoints: a folder counts only with its manifest, and is loaded only if every hash in it is right.

    step-00000120/
        model/          for inference, loaded by from_pretrained: config.json, model.safetensors, tokenizer, ...
        trainer.pt      trained weights, optimizer (tensors and plain containers; loaded with weights_only)
        state.json      number of steps, metrics, configuration
        manifest.json   sha256 and size of every other file, uploaded last

Random states are not stored: every step seeds its generators from (seed, step, rank), see step.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs
import torch

from vlmodel.errors import ExpectedError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MODEL = "model"
_STATE, _TRAINER = "state.json", "trainer.pt"
_PREFIX = "step-"
_CHUNK = 4 << 20


class CheckpointError(ExpectedError):
    """A checkpoint is missing, incomplete or altered. The message names it and the remedy."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint in storage.

    Attributes:
        step: number of global steps done.
        state: the contents of state.json.
    """

    filesystem: pafs.FileSystem
    path: str
    step: int
    state: dict[str, Any]


def folder_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` global steps."""
    return f"{_PREFIX}{step:08d}"


def write(folder: Path, trainer: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Complete a local checkpoint folder that already holds ``model/``: trainer state, state and the manifest."""
    torch.save(dict(trainer), folder / _TRAINER)
    (folder / _STATE).write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {}
    for path in files:
        with path.open("rb") as file:
            manifest[path.relative_to(folder).as_posix()] = _file_fingerprint(file)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def upload(folder: Path, filesystem: pafs.FileSystem, path: str) -> None:
    """Copy a local checkpoint to storage, its manifest last, so that an incomplete copy does not count."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != folder / MANIFEST]
    for file in [*files, folder / MANIFEST]:
        target = f"{path}/{file.relative_to(folder).as_posix()}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        with file.open("rb") as source, filesystem.open_output_stream(target) as stream:
            shutil.copyfileobj(source, stream, _CHUNK)


def verify(filesystem: pafs.FileSystem, path: str) -> dict[str, Any]:
    """Check every file against the manifest and return the state.

    Raises:
        CheckpointError: no manifest, a file missing or added, or a hash that differs.
    """
    manifest = _read_manifest(filesystem, path)
    if added := sorted(_file_names(filesystem, path) - manifest.keys() - {MANIFEST}):
        raise CheckpointError(f"{path}/{added[0]} is not in {MANIFEST}; delete it, or use an earlier checkpoint")
    for name in (name for name in manifest if name != _STATE):
        _verify_file(filesystem, path, name, manifest[name])
    return _verified_state(filesystem, path, manifest)


def newest_state(filesystem: pafs.FileSystem, run: str) -> dict[str, Any] | None:
    """The state of the newest checkpoint of a run that has a valid one, else None. Its other files are not read."""
    for folder in _checkpoint_folders(filesystem, run):
        try:
            return _verified_state(filesystem, folder, _read_manifest(filesystem, folder))
        except CheckpointError:
            continue  # whoever loads checkpoints reports it
    return None


def valid_checkpoints(filesystem: pafs.FileSystem, run: str) -> Iterator[StoredCheckpoint]:
    """The valid checkpoints of a run, newest first. Others are skipped with a warning."""
    for folder in _checkpoint_folders(filesystem, run):
        try:
            state = verify(filesystem, folder)
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
            continue
        yield StoredCheckpoint(filesystem, folder, int(state["step"]), state)


def latest(filesystem: pafs.FileSystem, run: str) -> StoredCheckpoint | None:
    """The newest valid checkpoint of a run, or None."""
    return next(valid_checkpoints(filesystem, run), None)


def best(filesystem: pafs.FileSystem, run: str) -> StoredCheckpoint:
    """The valid checkpoint with the best ``selection`` (the later one of equals).

    Raises:
        CheckpointError: the run has none.
    """
    candidates = list(valid_checkpoints(filesystem, run))
    if not candidates:
        raise CheckpointError(f"no usable checkpoint under {run}; run the train job first")
    return max(candidates, key=lambda c: (c.state["selection"], c.step))


@contextmanager
def local_copy(stored: StoredCheckpoint) -> Iterator[Path]:
    """The checkpoint as a local folder: in place if storage is local, else a temporary download."""
    if isinstance(stored.filesystem, pafs.LocalFileSystem):
        yield Path(stored.path)
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        pafs.copy_files(stored.path, folder, source_filesystem=stored.filesystem)
        yield Path(folder)


def read_trainer(folder: Path, device: torch.device) -> dict[str, Any]:
    """The tensors of ``trainer.pt``, without unpickling code."""
    trainer: dict[str, Any] = torch.load(folder / _TRAINER, map_location=device, weights_only=True)
    return trainer


def open_storage(storage: str) -> tuple[pafs.FileSystem, str]:
    """File system and path of a storage folder, local or a URI."""
    if "://" in storage:
        filesystem, path = pafs.FileSystem.from_uri(storage)
        return filesystem, path
    return pafs.LocalFileSystem(), str(Path(storage).resolve())


def _checkpoint_folders(filesystem: pafs.FileSystem, run: str) -> list[str]:
    """Folders of a run's checkpoints, valid or not, newest first."""
    selector = pafs.FileSelector(run, allow_not_found=True)
    entries = filesystem.get_file_info(selector)
    folders = [f for f in entries if f.base_name.startswith(_PREFIX) and f.type == pafs.FileType.Directory]
    return [str(folder.path) for folder in sorted(folders, key=lambda f: f.base_name, reverse=True)]


def _read_manifest(filesystem: pafs.FileSystem, path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(_read_bytes(filesystem, f"{path}/{MANIFEST}"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no {MANIFEST}: it was never completed; use an earlier checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged ({error}); use an earlier checkpoint") from None
    if not isinstance(manifest, dict) or _STATE not in manifest:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged (no {_STATE} in it); use an earlier checkpoint")
    if outside := [name for name in manifest if name.startswith("/") or ".." in name.split("/")]:
        raise CheckpointError(f"{path}/{MANIFEST} names {outside[0]!r}, outside of it; use an earlier checkpoint")
    return manifest


def _file_names(filesystem: pafs.FileSystem, path: str) -> set[str]:
    """Names of all files in a checkpoint. Refuses links, which could point anywhere and change at any time."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        files = [file for file in Path(path).rglob("*") if file.is_symlink() or not file.is_dir()]
        if special := next((file for file in files if file.is_symlink() or not file.is_file()), None):
            raise CheckpointError(f"{special} is a link or no file; put a file there, or use an earlier checkpoint")
        return {file.relative_to(path).as_posix() for file in files}
    entries = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return {f.path.removeprefix(f"{path}/") for f in entries if f.type != pafs.FileType.Directory}


def _verified_state(filesystem: pafs.FileSystem, path: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    _verify_file(filesystem, path, _STATE, manifest[_STATE])
    state: dict[str, Any] = json.loads(_read_bytes(filesystem, f"{path}/{_STATE}"))
    return state


def _verify_file(filesystem: pafs.FileSystem, path: str, name: str, expected: object) -> None:
    try:
        with filesystem.open_input_file(f"{path}/{name}") as file:
            fingerprint = _file_fingerprint(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}/{name} is missing; use an earlier checkpoint") from None
    if fingerprint != expected:
        raise CheckpointError(f"{path}/{name} was altered after it was written; use an earlier checkpoint")


def _read_bytes(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as stream:
        data: bytes = stream.read()
    return data


def _file_fingerprint(file: IO[bytes] | pa.NativeFile) -> dict[str, Any]:
    """Hash and size of a file, which may not fit into memory."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}
