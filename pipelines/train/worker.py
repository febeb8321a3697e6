"""The program of each Ray Train worker: it builds the step, loads the newest checkpoint, and runs the loop."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor

from pipelines.data.stream.dataset import Arrays, enable_gpu_decoding, enable_pixel_cache
from pipelines.data.stream.feature_build import check_features_match_backbones
from pipelines.data.stream.loader import EvaluationBatches, MicroBatches
from pipelines.data.stream.plan import derive_seed
from pipelines.data.stream.stream import stream_batches
from pipelines.storage import bases
from pipelines.storage.folder import StorageFolder
from pipelines.tracking.tracker import NullTracker, Tracker
from pipelines.tracking.unsent_metrics import UnsentMetrics
from pipelines.train import checkpoint, warm_start
from pipelines.train.checkpoint import StoredCheckpoint
from pipelines.train.loop import SampleLog, TrainingProgress, patience_is_exhausted, restore_progress, train
from pipelines.train.prefetcher import DevicePrefetcher
from pipelines.train.run_spec import RunSpec
from pipelines.train.step import NonFiniteLossError, TrainStep
from pipelines.train.teacher import Teacher
from pipelines.train.validation import ValidationResult, evaluate
from vlmodel.bases import Bases, read_base_weights_list
from vlmodel.errors import ExpectedError
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import VLProcessor

log = logging.getLogger(__name__)


def train_worker(spec: RunSpec) -> None:
    """Train as one of the workers, from the newest valid checkpoint of the run on."""
    # Ray Train shows lines of level INFO.
    for package in ("pipelines", "vlmodel"):
        logging.getLogger(package).setLevel(logging.WARNING)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(spec.train.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))

    processor = VLProcessor.from_pretrained(spec.train_source.processor)
    with _open_same_checkpoint_on_all_ranks(spec, rank) as found:
        model = _build_on_all_ranks(partial(_build_model, spec, processor, found))
        if isinstance(model, ExpectedError):
            if rank == 0:
                _end_training(spec, model)
            return
        # These read whole weights, which a sharded model no longer has.
        check_features_match_backbones(model, spec.train_source.features)
        stored: Bases = {}
        if found is not None:
            stored = read_base_weights_list(found[1] / checkpoint.MODEL)
        elif rank == 0:
            stored = bases.store_base_weights_of_model(model, StorageFolder(spec.folder).parent)
        trainer = TrainStep(
            model, spec.train.optimizer, spec.train.step, steps=spec.schedule.step_count, seed=spec.seed,
            teacher=_load_teacher(spec, device), sharded=spec.train.sharding == "fsdp2", device=device,
        )  # fmt: skip
        if found is not None:
            trainer.load_state(checkpoint.read_trainer_tensors(found[1], None if trainer.sharded else device))
    progress = restore_progress(found[0].state if found is not None else None)
    if rank == 0 and found is not None:
        _show_line(spec, f"continues from {found[0].path} (step {progress.step} of {spec.schedule.step_count})")

    source = spec.train_source
    if spec.stream.decoding == "gpu" and device.type == "cuda":
        source = enable_gpu_decoding(source, str(device))
    else:
        source = enable_pixel_cache(source, spec.stream.cache, spec.train.epochs)
    config = spec.train
    micro_batches = MicroBatches(
        source, spec.schedule, rank, world, config.accumulation, config.augment, config.drop_streams
    )
    prefetcher = DevicePrefetcher(
        stream_batches(micro_batches, spec.stream, start=progress.step * spec.train.accumulation), device
    )
    ledger = SampleLog(Path(spec.folder) / "ledger", rank, world) if spec.train.ledger else None
    tracker = NullTracker()
    if rank == 0 and spec.run is not None:
        tracker = Tracker.attach(spec.run, UnsentMetrics(spec.folder))
    try:
        with tracker:
            hooks = _WorkerHooks(spec, trainer, processor, stored, tracker, rank, world)
            selection_metric, patience = spec.model.task.checkpoint_metric(), spec.train.patience
            train(trainer, spec.schedule, prefetcher, spec.train, progress, hooks, ledger, selection_metric)
            if (
                rank == 0
                and progress.step < spec.schedule.step_count
                and patience_is_exhausted(progress.history, patience, selection_metric)
            ):
                _show_line(spec, _patience_message(progress, patience, selection_metric))
            prefetcher.close()
    except NonFiniteLossError as error:  # All workers are here together.
        if rank == 0:
            _end_training(spec, error)


def _end_training(spec: RunSpec, error: ExpectedError) -> None:
    """Let the job raise an error that a new attempt would meet again. Workers then return normally, as Ray would
    restart them after an exception.
    """
    ray.get(spec.progress_actor.fail.remote(error))


def _build_model(spec: RunSpec, processor: VLProcessor, found: tuple[StoredCheckpoint, Path] | None) -> VLModel:
    if found is None:
        return create_initial_model(spec.model, processor, spec.seed, spec.init)
    # A checkpoint names the frozen weights with which its other weights were trained.
    model: VLModel = VLModel.from_pretrained(found[1] / checkpoint.MODEL, local_files_only=True)
    return model


def _load_teacher(spec: RunSpec, device: torch.device) -> Teacher | None:
    if not spec.teacher:
        return None
    with warm_start.as_local(spec.teacher) as folder:
        model: VLModel = VLModel.from_pretrained(str(folder), local_files_only=True)
    return Teacher(model.to(device), spec.train.teacher)  # type: ignore[arg-type]


def _build_on_all_ranks(build: Callable[[], VLModel]) -> VLModel | ExpectedError:
    """Build the model on all ranks; returns it, or the reason why some rank cannot build it, the same for all. A
    collective.
    """
    model, error = None, None
    try:
        model = build()
    except ExpectedError as refused:
        error = refused
    errors: list[ExpectedError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    first = next((error for error in errors if error is not None), None)
    return cast(VLModel, model) if first is None else first


def _show_line(spec: RunSpec, line: str) -> None:
    """Send a line to the job, which shows it. What a worker prints itself, Ray shows with the name of its process."""
    with suppress(ray.exceptions.RayError):  # A training does not fail because a line cannot be shown.
        ray.get(spec.progress_actor.post_line.remote(line), timeout=5)


def _patience_message(progress: TrainingProgress, patience: int, selection_metric: str) -> str:
    best = (min if selection_metric == "loss" else max)(
        progress.history, key=lambda entry: entry[f"val/{selection_metric}"]
    )
    return (
        f"ends after epoch {progress.history[-1]['epoch']:.0f}: in {patience} evaluations no better val "
        f"{selection_metric} than {best[f'val/{selection_metric}']:.4f}, of epoch {best['epoch']:.0f} (train.patience)"
    )


def create_initial_model(config: ModelConfig, processor: VLProcessor, seed: int, init: str = "") -> VLModel:
    """Create the initial model of a training, the same in every process. Seeds torch.

    Args:
        init: folder in storage of a model with the same settings; "" for new weights.

    Raises:
        ConfigError: parts that do not fit each other or the processor.
        WeightsError: pretrained weights that do not exist or do not fit.
    """
    torch.manual_seed(derive_seed(seed, "weights") % 2**63)
    if init:
        with warm_start.as_local(init) as folder:
            model: VLModel = VLModel.from_pretrained(str(folder), local_files_only=True)
        return model
    return VLModel.create_from_config(config, processor)


@contextmanager
def _open_same_checkpoint_on_all_ranks(spec: RunSpec, rank: int) -> Iterator[tuple[StoredCheckpoint, Path] | None]:
    """Yield the newest valid checkpoint and its local folder; None if the run has none. Rank 0 chooses it, so that all
    ranks load the same.
    """
    with ExitStack() as stack:
        found = stack.enter_context(checkpoint.open_newest_checkpoint(spec.folder)) if rank == 0 else None
        path = broadcast_from_rank_zero(found[0].path if found is not None else None)
        if path is not None and found is None:
            chosen = checkpoint.find_checkpoint(StorageFolder(path))
            found = chosen, stack.enter_context(chosen.as_local())
        yield found


class _WorkerHooks:
    """Connects the loop with Ray Train, storage and tracking."""

    def __init__(
        self,
        spec: RunSpec,
        trainer: TrainStep,
        processor: VLProcessor,
        stored: Bases,
        tracker: NullTracker,
        rank: int,
        world: int,
    ) -> None:
        self._spec, self._trainer, self._processor, self._tracker = spec, trainer, processor, tracker
        self._stored, self._rank = stored, rank
        self._validation: _CachedValidationBatches | None = None
        if spec.val_source is not None:
            batches = EvaluationBatches(spec.val_source, spec.train.evaluation_batch, rank, world, even=trainer.sharded)
            self._validation = _CachedValidationBatches(batches, spec)

    def evaluate(self) -> ValidationResult | None:
        if self._validation is None:
            return None
        self._trainer.broadcast_buffers()
        return evaluate(self._trainer.evaluated_model, self._validation, self._trainer.autocast())

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._rank:
            return
        self._tracker.log_metrics(dict(metrics), step)
        self._spec.progress_actor.post.remote({**metrics, "step": float(step)})

    def checkpoint(self, progress: TrainingProgress, selection: float) -> None:
        name = checkpoint.checkpoint_folder_name(progress.step)
        metrics = {"selection": selection, "step": progress.step, **(progress.history[-1] if selection >= 0 else {})}
        # Of a sharded model these are collectives, and rank 0 gets what they return.
        if self._rank == 0 or self._trainer.sharded:
            state = self._trainer.state()
            weights = state["model"] if self._trainer.average is None else self._trainer.evaluated_weights()
        if self._rank:
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        # Metrics must be stored before the checkpoint: the steps before it are never run again.
        self._tracker.persist()
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        try:
            self._write_checkpoint(folder, progress, selection, state, weights)
            ray.train.report(
                metrics,
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=name,
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=partial(_upload_checkpoint, StorageFolder(self._spec.folder)),
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def should_continue(self, progress: TrainingProgress, selection: float) -> bool:
        if self._spec.trial_controller is None:
            return True
        epoch = int(progress.history[-1]["epoch"])
        answer: Any = (
            ray.get(self._spec.trial_controller.report_epoch.remote(epoch, selection)) if self._rank == 0 else None
        )
        return bool(broadcast_from_rank_zero(answer))

    def _write_checkpoint(
        self,
        folder: Path,
        progress: TrainingProgress,
        selection: float,
        trainer: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> None:
        self._trainer.evaluated_model.save_pretrained(folder / checkpoint.MODEL, stored=self._stored, trained=weights)
        self._processor.save_pretrained(folder / checkpoint.MODEL)
        for file in self._spec.beside_model:
            shutil.copy(file, folder / checkpoint.MODEL)
        state = {
            "step": progress.step,
            "epochs_done": self._spec.schedule.epochs_done(progress.step),
            "steps": self._spec.schedule.step_count,
            "selection": selection,
            "epoch_sums": progress.epoch_sums,
            "history": progress.history,
            "config": self._spec.config,
            "data": self._spec.data,
        }
        checkpoint.write_checkpoint_state(folder, trainer, state)


def _upload_checkpoint(run: StorageFolder, local: Checkpoint, name: str) -> Checkpoint:
    """Copy a checkpoint to storage in the background, with the manifest last (Ray's copy has no order)."""
    checkpoint.upload_checkpoint(Path(local.path), run.subfolder(name))
    # Ray deletes old checkpoints by itself, through its own file system.
    storage = ray.train.get_context().get_storage()
    return Checkpoint(storage.build_checkpoint_path_from_name(name), filesystem=storage.storage_filesystem)


_MAX_CACHED_BYTES = 256 << 20


class _CachedValidationBatches(Iterable[Arrays]):
    """The validation batches, which are made once and cached if they fit into memory, else made again each time."""

    def __init__(self, batches: EvaluationBatches, spec: RunSpec) -> None:
        self._batches, self._config = batches, spec.stream
        self._cached: list[Arrays] | None = None

    def __iter__(self) -> Iterator[Arrays]:
        if self._cached is not None:
            yield from self._cached
            return
        copies: list[Arrays] = []
        left = _MAX_CACHED_BYTES
        for arrays in stream_batches(self._batches, self._config):
            left -= sum(array.nbytes for array in arrays.values())
            if left >= 0:
                copies.append({name: array.copy() for name, array in arrays.items()})
            yield arrays
        self._cached = copies if left >= 0 else None
