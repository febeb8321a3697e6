"""Trains a model to the end of its last epoch: processor, cached features, the order of samples, workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipelines.data.index.index import Index
from pipelines.data.stream.augment import mentions_left_or_right, texts_changed_by_mirroring
from pipelines.data.stream.dataset import Source, SourceMixture, connect_fact_lookup
from pipelines.data.stream.feature_cache import FeatureCache
from pipelines.data.stream.plan import SampleOrder, StepSchedule
from pipelines.data.texts.corpus import read_texts
from pipelines.data.texts.vocabulary import build_processor, count_text_lengths, save_processor
from pipelines.evaluate.baselines import FILE, Baselines
from pipelines.knowledge import trained_facts
from pipelines.knowledge.opened import open_fact_linker
from pipelines.knowledge.trained_facts import TrainedFacts
from pipelines.tracking.address import TrackingError
from pipelines.tracking.store import wait_until_reachable
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.unsent_metrics import UnsentMetrics
from pipelines.train import checkpoint, run_folder, warm_start
from pipelines.train.launch import launch_training
from pipelines.train.progress import create_progress_actor
from pipelines.train.run_spec import RunSpec
from pipelines.workflows import training_data
from pipelines.workflows.models import choose_model
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError, dump_config
from vlmodel.processor import VLProcessor
from vlmodel.sample import TEXTS

_BESIDE_MODEL = (FILE, trained_facts.FILE)
"""Files beside the processor that each checkpoint has beside the model."""
_SIDES_SAMPLES = 2000
"""Samples whose texts are searched for "left" and "right", which mirrored images make false."""


def fit(
    work: Workspace,
    index: Index,
    tracker: Tracker,
    *,
    label: str = "train",
    trial_controller: Any = None,
) -> None:
    """Train the epochs that are not done yet. Checkpoints are written to the run's folder; nothing is registered.

    Args:
        index: of the data that the model is evaluated on.
        label: what the lines of progress begin with.
        trial_controller: asked after each epoch whether to continue.
    """
    folder = work.local_folder / "processor"
    indexes = training_data.open_indexes(work, index)
    training = list(indexes.values())
    _warn_of_left_and_right_in_mirrored_images(work, training)
    init = _initial_model(work)
    processor = _get_processor(work, training, folder, init, label)
    _check_processor(work, processor, folder)
    if line := count_text_lengths(training, processor, str(folder)).describe(processor.config, work.config.processor):
        print(f"{label}  {line}", flush=True)
    if not (folder / FILE).is_file():
        Baselines.learn_from_training_split(index, training, processor.tasks, processor.normalizer).save(folder)
    if work.fact_source is not None and work.config.model.knowledge.reads_facts:
        TrainedFacts.of(work.fact_source).save(folder)
    checkpoint.check_base_weights_exist(work.run_folder)
    _restore_tracked_run(work, tracker)
    tracker.log_params(dump_config(work.config), volatile=work.config.keys_changeable_on_resume())
    training_data.record_data(work, index, tracker)
    features = _compute_missing_features(work, [index, *training], processor, init, label)
    teacher = _teacher(work, processor, has_cached_features=bool(features))
    beside = str(work.local_folder / "teacher-processor") if teacher else ""
    source, order = training_data.training_samples_and_order(work, indexes, folder, features, beside)
    spec = _make_run_spec(work, index, source, order, features, tracker, init, trial_controller)
    launch_training(replace(spec, teacher=teacher), label=label)
    with add_remedy_to_tracking_errors():
        # Training itself never waits: its metrics are saved in the run's folder meanwhile.
        wait_until_reachable(tracker.handle.uri)
        tracker.log_unsent_metrics(UnsentMetrics(work.run_folder))


@contextmanager
def add_remedy_to_tracking_errors() -> Iterator[None]:
    """Add to a TrackingError raised after the training that its result is saved, and how to record it."""
    try:
        yield
    except TrackingError as error:
        raise TrackingError(
            f"{error} The training is done and kept in its checkpoints: the same command records and registers it."
        ) from error


def _check_processor(work: Workspace, processor: VLProcessor, folder: Path) -> None:
    work.config.model.check_processor(processor.config)
    configured = warm_start.fill_in_inferred_limits(work.config.processor, processor.config)
    if processor.config != configured:
        changes = run_folder.describe_setting_differences(
            dump_config(processor.config), dump_config(configured), lambda _: False
        )
        raise ConfigError(
            f"the processor in {folder} was made with other settings; choose another name, or restore: "
            + "; ".join(f"processor.{change}" for change in changes)
        )


def _restore_tracked_run(work: Workspace, tracker: Tracker) -> None:
    """If a run with checkpoints has no record in MLflow (deleted, lost or kept elsewhere), begin one with the metrics
    of the epochs that the checkpoints hold.
    """
    state = checkpoint.state_of_newest_checkpoint(work.run_folder)
    if state is None or not tracker.is_new:
        return
    for entry in state["history"]:
        metrics = {name: value for name, value in entry.items() if name not in ("step", "epoch")}
        tracker.log_metrics(metrics, int(entry["step"]))
    print(
        f"train {work.config.name}: has checkpoints up to step {state['step']}, and no record in experiment "
        f"{work.config.tracking.experiment!r}; a new record begins, with the figures of the {len(state['history'])} "
        "epochs that are done",
        flush=True,
    )


def _warn_of_left_and_right_in_mirrored_images(work: Workspace, indexes: list[Index]) -> None:
    """Print a warning if images are mirrored and texts that say left or right are not changed with them."""
    augment = work.config.train.augment
    if not augment.flip or augment.swap:
        return
    for index in (index for index in indexes if index.count(lambda has: "image" in has and bool(has & TEXTS))):
        texts = list(
            chain.from_iterable(map(texts_changed_by_mirroring, islice(read_texts(index, "train"), _SIDES_SAMPLES)))
        )
        if count := sum(map(mentions_left_or_right, texts)):
            print(
                f"train {work.config.name}: train.augment.flip={augment.flip:g} mirrors images, and {count} of the "
                f"first {len(texts)} texts of {index.tars} say left or right, which is then false; set "
                'train.augment.swap={left = "right"}, or flip=0.0',
                flush=True,
            )


def _initial_model(work: Workspace) -> str:
    """Copy the model with which the training begins into the run's folder; returns the copy's folder, "" for new
    weights.

    Raises:
        ConfigError: its settings are not the configured ones.
    """
    config = work.config
    if not config.train.init:
        return ""
    if copy := warm_start.find_initial_model(work.run_folder):
        return copy
    chosen = choose_model(
        work.with_changed_settings(evaluate=config.evaluate.model_copy(update={"model": config.train.init}))
    )
    warm_start.load_matching_processor(chosen.folder, config.model, config.processor)
    print(f"train {config.name}: begins with {chosen.name} version {chosen.version}", flush=True)
    return warm_start.store_initial_model(chosen.folder, work.run_folder)


def _teacher(work: Workspace, processor: VLProcessor, *, has_cached_features: bool) -> str:
    """Copy the teacher model into the run's folder, so that a continued run has the same teacher, and save its
    processor beside the student's; returns the copy's folder, "" without a teacher.

    Raises:
        ConfigError: its answers say nothing to this model.
        KnowledgeError: it reads facts, and there is no store of them that it can be used with.
    """
    from pipelines.train.teacher import check_teacher

    name = work.config.train.teacher.model
    if not name:
        return ""
    copy = warm_start.find_initial_model(work.run_folder, warm_start.TEACHER)
    if not copy:
        evaluate = work.config.evaluate.model_copy(update={"model": name})
        chosen = choose_model(work.with_changed_settings(evaluate=evaluate))
        print(f"train {work.config.name}: learns from {chosen.name} version {chosen.version}", flush=True)
        copy = warm_start.store_initial_model(chosen.folder, work.run_folder, warm_start.TEACHER)
    with warm_start.as_local(copy) as folder:
        teacher = VLProcessor.from_pretrained(folder)
        check_teacher(teacher, processor, has_cached_features=has_cached_features)
        connect_fact_lookup(teacher, work.fact_source, folder)
        save_processor(teacher, str(work.local_folder / "teacher-processor"))
    return copy


def _get_processor(work: Workspace, indexes: list[Index], folder: Path, init: str, label: str) -> VLProcessor:
    """Get the run's processor: the one in ``folder``, else that of the run's checkpoints or of the initial model, else
    a new one. It is saved in ``folder``.
    """
    if not folder.is_dir():
        with checkpoint.open_newest_checkpoint(work.run_folder, checkpoint.MODEL) as newest:
            if newest is not None:
                return save_processor(VLProcessor.from_pretrained(newest[1] / checkpoint.MODEL), str(folder))
    if init:
        with warm_start.as_local(init) as model:
            return save_processor(VLProcessor.from_pretrained(model), str(folder))
    config, source = work.config, work.fact_source
    images = config.model.fill_in_preprocessing(config.processor)
    if (
        line := images.preprocessing_differences(config.model.vision.preprocessing())
        if config.model.reads_images()
        else ""
    ):
        print(f"{label}  {line}", flush=True)
    return build_processor(
        indexes, config.vocabulary, images, config.model.task.tasks_by_name(), str(folder),
        config.model.text_limits, lambda line: print(f"{label}  {line}", flush=True),
        inputs={name: part.resolve_settings() for name, part in config.model.inputs.items()},
        reads_images=config.model.reads_images(), knowledge=config.model.knowledge,
        fact_texts=lambda: open_fact_linker(source).snapshot.all_facts.texts["text"].to_pylist() if source else [],
    )  # fmt: skip


def _compute_missing_features(
    work: Workspace, indexes: list[Index], processor: VLProcessor, init: str, label: str
) -> tuple[FeatureCache, ...]:
    """Compute the missing features of the frozen encoders and return their caches; none if ``train.feature_cache`` is
    off.
    """
    from pipelines.train.worker import create_initial_model
    from pipelines.workflows import feature_cache

    config = work.config
    if config.train.feature_cache == "off":
        return ()
    streams = config.streams_with_cacheable_features()
    if uncached := [stream for stream in config.model.frozen_streams() if stream not in streams]:
        print(
            f"train {config.name}: train.augment changes the inputs of the frozen {' and '.join(uncached)} encoder, "
            f"which therefore runs in every epoch; cached are the features of {' and '.join(streams)}",
            flush=True,
        )
    model = create_initial_model(config.model, processor, config.seed, init)
    return feature_cache.cache_features(work, indexes, streams, model, processor, label)


def _make_run_spec(
    work: Workspace,
    index: Index,
    training: Source | SourceMixture,
    order: SampleOrder,
    features: tuple[FeatureCache, ...],
    tracker: Tracker,
    init: str,
    trial_controller: Any,
) -> RunSpec:
    config, train = work.config, work.config.train
    schedule = StepSchedule(order, train.batch, train.epochs)
    has_validation = index.counts().get("val", 0) > 0
    validation = replace(work.source(index, "val", training.processor), features=features)
    print(
        f"train {config.name}: {order.size} samples, {schedule.step_count} steps of {train.batch} samples, "
        f"{train.epochs} epochs, {train.workers} workers",
        flush=True,
    )
    return RunSpec(
        folder=work.run_folder,
        seed=config.seed,
        model=config.model,
        train=train,
        stream=config.stream,
        schedule=schedule,
        train_source=training,
        val_source=validation if has_validation else None,
        run=tracker.handle,
        progress_actor=create_progress_actor(),
        config=dump_config(config),
        data=str(training_data.describe_data(work, index)["hash"]),
        init=init,
        trial_controller=trial_controller,
        beside_model=tuple(str(file) for name in _BESIDE_MODEL if (file := Path(training.processor) / name).is_file()),
    )
