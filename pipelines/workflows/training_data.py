"""Opens the data of a training: the tars of ``data.tars``, or the several sources of ``data.mix`` in one order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from pipelines.data.index.files import TEXT_COUNTS
from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source, SourceMixture
from pipelines.data.stream.feature_cache import FeatureCache
from pipelines.data.stream.mixture import MixturePlan
from pipelines.data.stream.plan import SampleOrder
from pipelines.data.tars.inputs import input_requirements
from pipelines.errors import DataError
from pipelines.evaluate.requirements import check_data_is_evaluable
from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.opened import open_fact_linker
from pipelines.knowledge.store import FactStore
from pipelines.tracking.tracker import Tracker
from pipelines.workflows.workspace import Workspace, absolute_path
from vlmodel.config import ConfigError, list_part_kinds, parse_part_config
from vlmodel.encoder_parts import IMAGE


def open_indexes(work: Workspace, evaluation_index: Index, *, newest: bool = False) -> dict[str, Index]:
    """Open the indexes of the training data, by the names in ``data.mix`` and in their order; without a mix, "" is the
    index of ``data.tars``.

    Args:
        newest: also where the run that ``config.name`` names began with earlier versions.

    Raises:
        ConfigError: two sources hold the same samples.
        DataError: a source has no index, or one of other inputs than ``data.mix`` says.
    """
    if not work.config.data.mix:
        return {"": evaluation_index}
    names_of_mix = sorted(work.config.data.mix)
    if newest:
        by_name = {name: Index.open(absolute_path(work.config.data.mix[name].tars)) for name in names_of_mix}
    else:
        by_name = {name: work.index(name) for name in names_of_mix}
    for name, index in by_name.items():
        if index.input_requirements != input_requirements(inputs := work.config.data.mix[name].inputs):
            was = json.dumps(index.validity_settings["inputs"])
            raise DataError(
                f"{index.tars} was indexed as {was}, and data.mix.{name}.inputs={json.dumps(inputs)}; run the index "
                "job again, or set what it holds"
            )
    names: dict[str, str] = {}
    for name, index in by_name.items():
        if (other := names.setdefault(index.hash, name)) != name:
            raise ConfigError(
                f"data.mix.{other} and data.mix.{name} hold the same samples (index {index.hash[:12]}); keep one, with "
                "the weight of both"
            )
    return by_name


def check_inputs(work: Workspace, training_indexes: Mapping[str, Index]) -> None:
    """Raise DataError for data without an input that the model encodes.

    Args:
        training_indexes: as of ``open_indexes``.

    Raises:
        DataError: no source has it, or one has it of another medium.
    """
    indexes = training_indexes.values()
    for name, encoder in work.config.model.inputs.items():
        if not any(name in index.inputs for index in indexes):
            there = sorted(set().union(*(index.inputs for index in indexes)))
            raise DataError(
                f"model.inputs.{name}: no sample of {' and '.join(index.tars for index in indexes)} has the input "
                f"{name!r} (indexed are {', '.join(there) or 'texts alone'}); add it to data.index.inputs "
                f'("{name}?" where samples may lack it; data.mix.NAME.inputs) and run the index job again, or leave '
                "its encoder out"
            )
        for index in indexes:
            if (medium := index.inputs.get(name, encoder.medium)) != encoder.medium:
                raise DataError(
                    f"model.inputs.{name}.kind={encoder.kind!r} encodes {encoder.medium}, and {name!r} of "
                    f"{index.tars} is {medium}; choose a kind for that, or other data"
                )


def check_fact_store(work: Workspace) -> None:
    """Raise an error for a model that reads facts if there is no store of them, or one that cannot be searched as the
    model requires.

    Raises:
        KnowledgeError: naming the settings.
    """
    knowledge = work.config.model.knowledge
    if not knowledge.reads_facts:
        return
    if work.fact_source is None:
        raise KnowledgeError(
            f"model.knowledge.kind={knowledge.kind!r} reads facts, and knowledge.store is not set; name the store (the "
            "knowledge job builds one), or set model.knowledge.kind=none"
        )
    open_fact_linker(work.fact_source).check_linking(knowledge.link)


def check_tasks_have_training_samples(work: Workspace, training_indexes: Mapping[str, Index]) -> None:
    """Raise DataError for data from which some task cannot learn anything.

    Args:
        training_indexes: as of ``open_indexes``.

    Raises:
        DataError: no source has training samples with the texts of a task.
    """
    for name, task in work.config.model.task.tasks_by_name().items():
        if not sum(index.count(task.can_learn, "train") for index in training_indexes.values()):
            others = "" if name else " and ".join(_learnable_task_kinds(training_indexes.values()))
            fitting = f", or a task that learns of what they have: model.task.kind={others}" if others else ""
            raise DataError(
                f"no train sample of {' and '.join(index.tars for index in training_indexes.values())} has "
                f"{task.learning_requirement}, of which {f'task {name!r}' if name else 'the model'} learns; choose "
                f"data that has some{', or leave the task out of model.task.heads' if name else fitting}"
            )


def _learnable_task_kinds(indexes: Collection[Index]) -> list[str]:
    """List the kinds of tasks for which the data have training samples."""
    found = []
    for kind in list_part_kinds("vlmodel.tasks"):
        try:
            part = parse_part_config("vlmodel.tasks", {"kind": kind})
        except ConfigError:  # It needs further settings.
            continue
        if all(sum(i.count(task.can_learn, "train") for i in indexes) for task in part.tasks_by_name().values()):
            found.append(kind)
    return found


def _describe_what_data_have(texts: str, present: frozenset[str]) -> bool:
    return texts in present


def suggest_task_setting(work: Workspace, counts: Mapping[str, int]) -> str:
    """Suggest the missing setting if the data have texts of one kind and the task learns from another; "" if nothing is
    missing.

    Args:
        counts: number of the ``TEXT_COUNTS``.
    """
    tasks = work.config.model.task.tasks_by_name().values()
    kinds = (("captions", "questions", "caption"), ("questions", "captions", "vqa"))
    for has, lacks, kind in (*kinds, ("conversations", "questions", "converse")):
        if counts[has] and not counts[lacks] and not any(task.can_learn(frozenset({IMAGE, has})) for task in tasks):
            learned = " and ".join(dict.fromkeys(task.learning_requirement for task in tasks))
            return (
                f"the data have {has} and no {lacks}, and model.task.kind={work.config.model.task.kind} learns from "
                f"{learned}; set model.task.kind={kind}"
            )
    return ""


def check_data_for_evaluation_and_gate(work: Workspace, evaluation_index: Index) -> None:
    """Raise DataError for data on which the steps after a training, the evaluation and the gate, would fail.

    Raises:
        DataError: a split that they read has no sample with the texts of a task.
    """
    for setting, split in (
        ("evaluate.split", work.config.evaluate.split),
        ("registry.gate.split", work.config.registry.gate.split),
    ):
        try:
            check_data_is_evaluable(evaluation_index, work.config.model.task.tasks_by_name(), split)
        except DataError as error:
            texts = {name: evaluation_index.count(partial(_describe_what_data_have, name)) for name in TEXT_COUNTS}
            if hint := suggest_task_setting(work, texts):
                raise DataError(hint) from None
            counts = ", ".join(f"{name} {count}" for name, count in evaluation_index.counts().items())
            raise DataError(
                f"{error}. It is read after the training ({setting}={split!r}); there are {counts}. An import cuts a "
                "split test by source.test_fraction, an index a split val by data.index.validation_fraction: raise "
                f"that (and name another folder in data.tars), or set {setting} to a split that has some"
            ) from None


def describe_data(work: Workspace, evaluation_index: Index) -> dict[str, object]:
    """Describe the data for tracking: those of the evaluation and, if sources are mixed, each of these."""
    by_name = _add_fact_store(work, describe_index_for_tracking(evaluation_index, work.tars))
    if not work.config.data.mix:
        return by_name
    mix = {
        name: describe_index_for_tracking(index, index.tars)
        for name, index in open_indexes(work, evaluation_index).items()
    }
    hashes = [str(by_name["hash"]), *(f"{name} {of_source['hash']}" for name, of_source in mix.items())]
    return by_name | {"hash": hashlib.sha256("\n".join(hashes).encode()).hexdigest(), "mix": mix}


def record_data(work: Workspace, evaluation_index: Index, tracker: Tracker) -> None:
    """Record the data of a run, which from now on uses these versions of their indexes.

    Raises:
        TrackingError: the run used other data before.
    """
    tracker.log_data(describe_data(work, evaluation_index))
    hashes = {name: index.hash for name, index in open_indexes(work, evaluation_index).items()}
    work.record_index_versions({**hashes, "": evaluation_index.hash})


def training_samples_and_order(
    work: Workspace,
    training_indexes: Mapping[str, Index],
    processor: str | Path,
    features: tuple[FeatureCache, ...],
    teacher: str = "",
) -> tuple[Source | SourceMixture, SampleOrder]:
    """Return the sources of the training's samples, and the samples' order.

    Args:
        training_indexes: as of ``open_indexes``.
        features: what is kept of what frozen encoders give.
        teacher: folder of the processor of the model that is learned from; "" for none.

    Raises:
        ConfigError: a source is too rare to be mixed.
        DataError: a source has no samples that a task can use.
    """
    train = work.config.train
    sources = {
        name: Source(index.tars, index.hash, "train", str(processor), features, facts=work.fact_source, teacher=teacher)
        for name, index in training_indexes.items()
    }
    plans = {
        name: source.plan_order(seed=work.config.seed, window=train.window, block=train.shuffle_block, shuffle=True)
        for name, source in sources.items()
    }
    if not work.config.data.mix:
        return sources[""], plans[""]
    weights = {name: work.config.data.mix[name].weight or plan.size for name, plan in plans.items()}
    try:
        order = MixturePlan(
            tuple(plans), tuple(plans.values()), tuple(weights.values()), tuple(work.config.data.mix_temperature),
            train.epochs,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"data.mix: {error}") from None
    return SourceMixture(tuple(sources.values())), order


def _add_fact_store(work: Workspace, by_name: dict[str, object]) -> dict[str, object]:
    """Add the store of facts to the described data, as a model that reads facts learns from it too."""
    source = work.fact_source
    if source is None or not work.config.model.knowledge.reads_facts:
        return by_name
    content = FactStore(source.store).hash_of_facts(source.version)
    both = hashlib.sha256(f"{by_name['hash']}\n{content}".encode()).hexdigest()
    store = {"source": source.store, "version": source.version, "hash": content}
    return by_name | {"hash": both, "knowledge": store}


def describe_index_for_tracking(index: Index, source_folder: str) -> dict[str, object]:
    """Describe a data set for tracking, from its index."""
    return {
        "hash": index.hash,
        "source": source_folder,
        "counts": index.counts(),
        "quarantine": index.quarantine_counts(),
    }
