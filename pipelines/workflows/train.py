"""What the job ``train`` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipelines.data.index.index import Index
from pipelines.data.stream.augment import all_texts, names_a_side
from pipelines.data.stream.dataset import Mixture, Source
from pipelines.data.stream.features import Features
from pipelines.data.stream.plan import Order, Schedule, check_division
from pipelines.data.texts.corpus import read_texts
from pipelines.data.texts.vocabulary import build_processor, save_processor, text_lengths
from pipelines.evaluate.assess import assess, check_judgeable, show
from pipelines.evaluate.baselines import FILE, Baselines
from pipelines.registry.registry import ModelVersion, Registry
from pipelines.tracking import run_folder
from pipelines.tracking.provenance import among, flatten
from pipelines.tracking.tracker import Tracker, TrackingError, wait_reachable
from pipelines.tracking.unsent_metrics import WaitingLines
from pipelines.train import checkpoint, initial
from pipelines.train.launch import launch
from pipelines.train.progress import create_board
from pipelines.train.worker import RunSpec, new_model
from pipelines.workflows import feature_cache, runs, training_data
from pipelines.workflows.cluster import connected
from pipelines.workflows.config import JobConfig
from vlmodel.config import ConfigError, dump, parse
from vlmodel.processor import VLProcessor

MAY_CHANGE = (
    "cluster", "storage", "stream", "train.workers", "train.accumulation", "train.threads", "train.cpus_per_worker",
    "train.max_failures", "train.answer_timeout_s", "train.log_steps", "train.ledger", "train.evaluation_cache_mb",
    "train.feature_cache", "train.patience",
    "predict", "evaluate", "tracking", "registry", "serve", "source", "data.tars", "data.index.force",
    "data.index.report",
    "ablate", "tune", "retrain",
)  # fmt: skip
"""Settings with which a run may be continued though they differ: they change how it runs, not what it learns."""


_LOOKED_AT = 2000
"""Samples whose texts are looked through for what a mirror image makes false."""


def run(config: JobConfig) -> ModelVersion:
    """Train, evaluate on the validation split, register. Returns the registered version."""
    with (
        claimed(config) as index,
        connected(config.cluster),
        Tracker.open(config.tracking, runs.storage(config), config.name) as tracker,
    ):
        fit(config, index, tracker)
        with _repeatable():
            return _finish(config, index, tracker)


@contextmanager
def claimed(config: JobConfig) -> Iterator[Index]:
    """Be the only one that trains the run of this name, which is new or was begun with these settings and data.

    Yields:
        the index of the data to train on.

    Raises:
        ConfigError: the run was begun with other settings or data, or what ``ready`` raises.
        RunInUseError: another job trains it.
    """
    index = ready(config)
    with run_folder.exclusive(runs.run_folder(config)):
        _check_beginning(config, index)
        yield index


def _check_beginning(config: JobConfig, index: Index) -> None:
    folder, data = runs.run_folder(config), str(training_data.facts(config, index)["hash"])
    begun = run_folder.beginning(folder)
    if begun is None:
        run_folder.begin(folder, run_folder.Beginning(dump(config), data))
        return
    volatile = ("name", *MAY_CHANGE, *training_data.places(config))
    old, new = begun.config, dump(config)
    known = set(flatten(old)) & set(flatten(new))
    try:
        # Settings that are newer than the run have their defaults.
        old = dump(parse(JobConfig, old))
        known |= set(flatten(old)) | set(flatten(new))
    except ConfigError:
        pass  # it was begun by another version of this program: what both know must be equal
    changes = run_folder.differences(old, new, lambda key: key not in known or among(key, volatile))
    if begun.data and begun.data != data:
        changes.append(f"data (hash of the index): {begun.data} -> {data}")
    if changes:
        raise ConfigError(
            f"run {config.name!r} in {folder} was begun with other settings; choose another name, or restore: "
            + "; ".join(changes)
        )


def ready(config: JobConfig) -> Index:
    """The index of the data to train on.

    Raises:
        ConfigError: the batch does not divide over the workers.
        DataError: there is no index, or a task cannot be learned or judged by it.
    """
    index = opened(config)
    training_data.check_learnable(config, training_data.indexes(config, index))
    check_judgeable(index, config.model.decoder.tasks(), _judged(index))
    return index


def opened(config: JobConfig) -> Index:
    """The index of the data to train on, whatever the tasks are.

    Raises:
        ConfigError: the batch does not divide over the workers, or there is no validation split to be patient by.
        DataError: there is no index, or models cannot be judged by it.
    """
    try:
        check_division(config.train.batch, config.train.workers, config.train.accumulation)
    except ValueError as error:
        raise ConfigError(f"train.batch: {error}") from None
    index = runs.open_index(config)
    if config.train.patience and not index.counts().get("val", 0):
        raise ConfigError(
            f"train.patience={config.train.patience} ends a training by its validation figures, and {index.tars} has "
            "no validation split; set data.index.validation_fraction and index again, or patience=0"
        )
    check_judgeable(index, {}, "")
    return index


def fit(
    config: JobConfig,
    index: Index,
    tracker: Tracker,
    *,
    label: str = "train",
    referee: Any = None,
) -> None:
    """Train to the end what is not trained yet. Checkpoints lie in the run's folder; nothing is registered.

    Args:
        label: what the lines of progress begin with.
        referee: asked after each epoch whether to go on.
    """
    processor = runs.local_folder(config) / "processor"
    trained = training_data.indexes(config, index)
    _tell_mirrored_sides(config, list(trained.values()))
    init = _init(config)
    made = _processor(config, list(trained.values()), processor, init, label)
    config.model.check_processor(made.config)
    wanted = initial.with_limits_of(config.processor, made.config)
    if made.config != wanted:
        changes = run_folder.differences(dump(made.config), dump(wanted), lambda _: False)
        raise ConfigError(
            f"the processor in {processor} was made with other settings; choose another name, or restore: "
            + "; ".join(f"processor.{change}" for change in changes)
        )
    lengths = text_lengths(list(trained.values()), made, str(processor))
    if line := lengths.describe(made.config, config.processor):
        print(f"{label}  {line}", flush=True)
    if not (processor / FILE).is_file():
        Baselines.of_training(index, trained.values(), made.tasks, made.normalizer).save(processor)
    _record_anew(config, tracker)
    tracker.log_params(dump(config), volatile=(*MAY_CHANGE, *training_data.places(config)))
    training_data.record(config, index, tracker)
    features = _features(config, [index, *trained.values()], made, init, label)
    source, order = training_data.training(config, trained, processor, features)
    spec = _spec(config, index, source, order, features, tracker, init, referee)
    launch(spec, label=label)
    with _repeatable():
        wait_reachable(tracker.handle.uri, config.tracking.wait_s)
        tracker.record_waiting(WaitingLines(runs.run_folder(config)))


@contextmanager
def _repeatable() -> Iterator[None]:
    """What comes after training, in which nothing of that is lost."""
    try:
        yield
    except TrackingError as error:
        raise TrackingError(
            f"{error} The training is done and kept in its checkpoints: the same command records and registers it."
        ) from error


def _record_anew(config: JobConfig, tracker: Tracker) -> None:
    """Where a run that has checkpoints has no record, as its record was deleted, lost or is kept elsewhere: begin one
    with what the checkpoints know of the epochs, and say so.
    """
    state = checkpoint.newest_state(*checkpoint.open_storage(runs.run_folder(config)))
    if state is None or not tracker.is_new:
        return
    for entry in state["history"]:
        figures = {name: value for name, value in entry.items() if name not in ("step", "epoch")}
        tracker.log_metrics(figures, int(entry["step"]))
    print(
        f"train {config.name}: has checkpoints up to step {state['step']}, and no record in experiment "
        f"{config.tracking.experiment!r}; a new record begins, with the figures of the {len(state['history'])} epochs "
        "that are done",
        flush=True,
    )


def _tell_mirrored_sides(config: JobConfig, indexes: list[Index]) -> None:
    """Say so where images are mirrored and texts that say left or right are not changed with them."""
    augment = config.train.augment
    if not augment.flip or augment.swap:
        return
    for index in (index for index in indexes if index.members == "pairs"):
        some = list(chain.from_iterable(map(all_texts, islice(read_texts(index, "train"), _LOOKED_AT))))
        if telling := sum(map(names_a_side, some)):
            print(
                f"train {config.name}: train.augment.flip={augment.flip:g} mirrors images, and {telling} of the first "
                f"{len(some)} texts of {index.tars} say left or right, which is then false; set "
                'train.augment.swap={left = "right"}, or flip=0.0',
                flush=True,
            )


def _init(config: JobConfig) -> str:
    """Where the model that the training begins with lies in the run's folder; "" where it begins with new weights.

    Raises:
        ConfigError: it is of other settings than are configured.
    """
    if not config.train.init:
        return ""
    if kept := initial.kept(runs.run_folder(config)):
        return kept
    named = config.evaluate.model_copy(update={"model": config.train.init})
    chosen = runs.choose_model(config.model_copy(update={"evaluate": named}))
    initial.check(chosen.folder, config.model, config.processor, config.model.decoder.tasks())
    print(f"train {config.name}: begins with {chosen.name} version {chosen.version}", flush=True)
    return initial.keep(chosen.folder, runs.run_folder(config))


def _processor(config: JobConfig, indexes: list[Index], folder: Path, init: str, label: str) -> VLProcessor:
    """The run's processor in a local folder: the one that is there, else that of its checkpoints or of the model that
    it begins with, else a new one.
    """
    if not folder.is_dir() and (newest := checkpoint.latest(*checkpoint.open_storage(runs.run_folder(config)))):
        with checkpoint.local_copy(newest) as local:
            return save_processor(VLProcessor.from_pretrained(local / checkpoint.MODEL), str(folder))
    if not init:
        tasks, limits = config.model.decoder.tasks(), config.model.text_limits
        return build_processor(
            indexes,
            config.vocabulary,
            config.processor,
            tasks,
            str(folder),
            limits,
            lambda line: print(f"{label}  {line}", flush=True),
        )
    with initial.local(init) as model:
        return save_processor(VLProcessor.from_pretrained(model), str(folder))


def _features(
    config: JobConfig, indexes: list[Index], processor: VLProcessor, init: str, label: str
) -> tuple[Features, ...]:
    """The kept features of the frozen encoders with which the training begins; none where they are to run."""
    if config.train.feature_cache == "off":
        return ()
    streams = config.kept_streams()
    if passed_over := [stream for stream in config.model.frozen_streams() if stream not in streams]:
        print(
            f"train {config.name}: train.augment changes what the frozen {' and '.join(passed_over)} encoder is given, "
            f"which so runs in every epoch; kept are the features of {' and '.join(streams)}",
            flush=True,
        )
    return feature_cache.features(
        config, indexes, streams, new_model(config.model, processor, config.seed, init), processor, label
    )


def _spec(
    config: JobConfig,
    index: Index,
    training: Source | Mixture,
    order: Order,
    features: tuple[Features, ...],
    tracker: Tracker,
    init: str,
    referee: Any,
) -> RunSpec:
    train = config.train
    schedule = Schedule(order, train.batch, train.epochs)
    has_validation = index.counts().get("val", 0) > 0
    validation = replace(runs.source(config, index, "val", training.processor), features=features)
    print(
        f"train {config.name}: {order.size} images, {schedule.steps} steps of {train.batch} images, "
        f"{train.epochs} epochs, {train.workers} workers",
        flush=True,
    )
    return RunSpec(
        folder=runs.run_folder(config),
        seed=config.seed,
        model=config.model,
        train=config.train,
        stream=config.stream,
        schedule=schedule,
        train_source=training,
        val_source=validation if has_validation else None,
        run=tracker.handle,
        board=create_board(),
        config=dump(config),
        data=str(training_data.facts(config, index)["hash"]),
        init=init,
        referee=referee,
        beside_model=(str(Path(training.processor) / FILE),),
    )


def _finish(config: JobConfig, index: Index, tracker: Tracker) -> ModelVersion:
    """Judge the best checkpoint by its answers, picture it, register it."""
    filesystem, folder = checkpoint.open_storage(runs.run_folder(config))
    best = checkpoint.best(filesystem, folder)
    split = _judged(index)
    with checkpoint.local_copy(best) as local:
        model = local / checkpoint.MODEL
        answered = (split, "train") if config.evaluate.training else (split,)
        features = feature_cache.features_of_saved(config, index, answered, model, "train")
        found = assess(
            str(model), runs.source(config, index, split, model, features), index, config.predict, config.stream,
            config.evaluate.examples, training=config.evaluate.training,
        )  # fmt: skip
        print(f"best checkpoint: step {best.step}", flush=True)
        for one in found:
            print(f"{one.task}{': ' if one.task else ''}{one.report}", flush=True)
            tracker.log_metrics(one.report.metrics(one.task), best.step)
            show(one, tracker, tracker.history())
        registry = Registry.open(config.tracking, runs.storage(config), config.registry)
        # Of several tasks the first is the one that models are compared by.
        score = runs.score_of(found[0].report, index)
        examples = {one.task: one.example for one in found}
        version = registry.log_model(tracker.run_id, model, found[0].example, score, best.step, examples)
    print(f"registered {version.name} version {version.version}", flush=True)
    return version


def _judged(index: Index) -> str:
    """The split by which checkpoints are chosen and judged."""
    return "val" if index.counts().get("val", 0) else "train"
