"""Writes and loads checkpoints: a folder counts only if it has a manifest, and is loaded only if every hash in it is
right.

    step-00000120/
        model/          for inference, loaded by from_pretrained: config.json, model.safetensors, tokenizer, ...
        trainer.pt      trained weights, optimizer (tensors and plain containers; loaded with weights_only)
        state.json      number of steps, metrics, configuration
        manifest.json   sha256 and size of every other file, uploaded last

What is frozen lies once, in ``_bases`` of the storage folder above the run's (``pipelines.storage.bases``);
``model/bases.json`` names it by its hash.
Random states are not stored: every step seeds its generators from (seed, step, rank), see step.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.storage import bases, stored
from pipelines.storage.folder import StorageFolder
from pipelines.storage.manifest import Manifest, ManifestError
from vlmodel.bases import FILE, read_base_weights_list
from vlmodel.errors import ExpectedError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MODEL = "model"
TRAINER = "trainer.pt"
_STATE = "state.json"
_FORMAT = 2
"""Version of what a checkpoint holds: since 2 without frozen weights."""
_PREFIX = "step-"


class CheckpointError(ExpectedError):
    """A checkpoint is missing, incomplete or altered. The message names it and the remedy."""


class OldCheckpointError(CheckpointError):
    """A complete checkpoint was written by another version of this program. It must not be skipped, as the run would
    then begin again in the same folder.
    """


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint in storage whose manifest and state were verified.

    Attributes:
        step: number of global steps done.
        state: the contents of state.json.
    """

    folder: StorageFolder
    manifest: Manifest
    step: int
    state: dict[str, Any]

    @property
    def path(self) -> str:
        return self.folder.uri

    @contextmanager
    def as_local(self, part: str = "") -> Iterator[Path]:
        """Yield a local folder with the checkpoint's files: the folder itself if storage is local, else a temporary
        download.

        Args:
            part: a subfolder or a file; only what belongs to it is read and compared.

        Raises:
            CheckpointError: a file is missing, altered or was added.
            BaseWeightsError: what its model is built on is missing or altered.
        """
        with ExitStack() as stack:
            with _convert_to_checkpoint_errors():
                local = stack.enter_context(stored.local_copy_of(self.folder, self.manifest, part))
            if not self.folder.is_local and part in ("", MODEL):
                bases.link_downloaded_base_weights(local / MODEL, self.folder.parent.parent)
            yield local


def checkpoint_folder_name(step: int) -> str:
    """Return the folder name of the checkpoint after ``step`` global steps."""
    return f"{_PREFIX}{step:08d}"


def write_checkpoint_state(folder: Path, trainer: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the states of the trainer and the run beside ``model/`` in a folder; ``upload_checkpoint`` completes the
    checkpoint.
    """
    import torch

    torch.save(dict(trainer), folder / TRAINER)
    (folder / _STATE).write_text(json.dumps({"format": _FORMAT, **state}, indent=1, sort_keys=True), encoding="utf-8")


def upload_checkpoint(folder: Path, target: StorageFolder) -> None:
    """Copy a local checkpoint to storage, and its manifest last, as an incomplete copy does not count.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        stored.store_folder(folder, target)
    except OSError as error:
        raise CheckpointError(
            f"{target.uri} cannot be written ({error}); see that its storage has room and can be reached, and start "
            "the job again: it continues from the last whole checkpoint"
        ) from error


def find_valid_checkpoints(run: str) -> Iterator[StoredCheckpoint]:
    """Find the checkpoints of a run, newest first. Only manifest and state of each are verified; checkpoints in which
    they are wrong are skipped with a warning.

    Raises:
        OldCheckpointError: one is of another version of this program.
    """
    for folder in _checkpoint_folders(run):
        try:
            yield find_checkpoint(folder)
        except OldCheckpointError:
            raise
        except CheckpointError as error:
            _warn_skipped(error)


def find_checkpoint(folder: StorageFolder) -> StoredCheckpoint:
    """Verify the checkpoint in a folder and return it.

    Raises:
        CheckpointError: there is no complete one.
        OldCheckpointError: it is of another version of this program.
    """
    with _convert_to_checkpoint_errors():
        manifest = stored.read_manifest(folder)
        state: dict[str, Any] = json.loads(stored.read_verified_file(folder, manifest, _STATE))
    if state.get("format") != _FORMAT:
        raise OldCheckpointError(
            f"{folder.uri} was written by another version of this program (format {state.get('format', 1)}, and this "
            f"version reads {_FORMAT}); train anew with this version, under another name"
        )
    return StoredCheckpoint(folder, manifest, int(state["step"]), state)


def state_of_newest_checkpoint(run: str) -> dict[str, Any] | None:
    """Read the state of the newest valid checkpoint of a run, None if there is none. Its other files are not read.

    Raises:
        OldCheckpointError: it is of another version of this program.
    """
    for folder in _checkpoint_folders(run):
        try:
            return find_checkpoint(folder).state
        except OldCheckpointError:
            raise
        except CheckpointError:
            continue  # whoever loads checkpoints reports it
    return None


@contextmanager
def open_first_usable_checkpoint(
    candidates: Iterable[StoredCheckpoint], part: str = ""
) -> Iterator[tuple[StoredCheckpoint, Path] | None]:
    """Open the first of some checkpoints whose files are right; yields it and its local folder
    (``StoredCheckpoint.as_local``), or None if there is none. Others are skipped with a warning.
    """
    with ExitStack() as stack:
        for candidate in candidates:
            try:
                local = stack.enter_context(candidate.as_local(part))
            except CheckpointError as error:
                _warn_skipped(error)
                continue
            yield candidate, local
            return
        yield None


@contextmanager
def open_newest_checkpoint(run: str, part: str = "") -> Iterator[tuple[StoredCheckpoint, Path] | None]:
    """Open the newest usable checkpoint of a run (``open_first_usable_checkpoint``)."""
    with open_first_usable_checkpoint(find_valid_checkpoints(run), part) as found:
        yield found


@contextmanager
def open_best_checkpoint(run: str, part: str = "") -> Iterator[tuple[StoredCheckpoint, Path]]:
    """Open the usable checkpoint of a run with the best ``selection``, and of equals the later one
    (``open_first_usable_checkpoint``).

    Raises:
        CheckpointError: the run has none.
    """
    ranked = sorted(find_valid_checkpoints(run), key=lambda each: (each.state["selection"], each.step), reverse=True)
    with open_first_usable_checkpoint(ranked, part) as found:
        if found is None:
            raise CheckpointError(f"no usable checkpoint under {run}; run the train job first")
        yield found


def check_base_weights_exist(run: str) -> None:
    """Check, before workers start, that the frozen weights with which a run continues exist.

    Raises:
        BaseWeightsError: one is missing or another.
    """
    with open_newest_checkpoint(run, f"{MODEL}/{FILE}") as found:
        if found is not None:
            bases.verify_base_weights(read_base_weights_list(found[1] / MODEL), StorageFolder(run).parent)


def read_trainer_tensors(folder: Path, device: torch.device | None) -> dict[str, Any]:
    """Read the tensors of ``trainer.pt`` without unpickling code.

    Args:
        device: where they are put; None leaves them in the file, and reads each when it is used.
    """
    import torch

    trainer: dict[str, Any] = torch.load(
        folder / TRAINER, map_location=device or "cpu", weights_only=True, mmap=device is None
    )
    return trainer


def _checkpoint_folders(run: str) -> list[StorageFolder]:
    """List the folders of a run's checkpoints, valid or not, newest first."""
    folder = StorageFolder(run)
    return [folder.subfolder(name) for name in reversed(folder.subfolders()) if name.startswith(_PREFIX)]


def _warn_skipped(error: CheckpointError) -> None:
    log.warning("checkpoint passed over: %s", error)


@contextmanager
def _convert_to_checkpoint_errors() -> Iterator[None]:
    try:
        yield
    except ManifestError as error:
        raise CheckpointError(f"{error}; use an earlier checkpoint") from error
