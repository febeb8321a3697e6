"""The steps of a retraining cycle, built from the other jobs. Each can be repeated after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.data.index.build import build_index
from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.mixture import MixedSource
from pipelines.data.tars.inputs import PAIRS
from pipelines.data.texts.corpus import count_labels
from pipelines.data.texts.vocabulary import share_of_answers_in_vocabulary
from pipelines.errors import DataError
from pipelines.evaluate.assess import assess_model
from pipelines.knowledge.opened import FactSource
from pipelines.registry.registry import Registry
from pipelines.registry.versions import CHALLENGER, ModelVersion
from pipelines.report.progress import Progress
from pipelines.retrain import drift
from pipelines.retrain.errors import RetrainError
from pipelines.retrain.incoming import (
    check_tars_copied_unchanged,
    copy_tars,
    count_inputs_shared_with_evaluation,
    find_new_tars,
)
from pipelines.retrain.ledger import Facts, IncomingTar, RetrainCycle, RetrainLedger
from pipelines.serve.deployment import deploy
from pipelines.storage.folder import StorageFolder
from pipelines.train import warm_start
from pipelines.workflows import feature_cache, promote, serve, train, training_data
from pipelines.workflows.workspace import Workspace, absolute_path

HOLD_OUT = "val"
"""The split by which models are chosen, of the old data and of the new; nothing is ever trained on it."""

_LEAST_KNOWN_ANSWERS = 0.98
"""Share of the new tars' answers that the champion's vocabulary must have for a cycle to begin with it."""


def open_ledger(work: Workspace) -> RetrainLedger:
    """Open the ledger of the model that ``config.name`` names.

    Raises:
        RetrainError: it would lie on an object store, which has no locks.
    """
    folder = work.config.retrain.ledger or f"{work.storage}/_retrain/{work.config.name}"  # no run's name begins so
    if "://" in folder:
        raise RetrainError(f"{folder!r} is no folder of a file system; set retrain.ledger to one that all nodes share")
    return RetrainLedger(absolute_path(folder))


def find_unconsumed_tars(work: Workspace) -> list[IncomingTar]:
    """Find the tars that no cycle has consumed, and that are not among the old data."""
    evaluation_index = work.newest_index()
    old = {
        index.tars: index
        for index in (evaluation_index, *training_data.open_indexes(work, evaluation_index, newest=True).values())
    }
    known = {shard.sha256: f"{shard.name} of {index.tars}" for index in old.values() for shard in index.shards}
    return find_new_tars(_incoming_folder(work), open_ledger(work).consumed_tars(), known, print_line)


def delete_copied_tars(work: Workspace, cycle: RetrainCycle) -> None:
    """Delete the tars that an abandoned cycle copied; the originals are still in the incoming folder."""
    _incoming_folder(work).remove_folder(_copied_tars_subfolder(work, cycle))


def take_and_check_new_data(work: Workspace, cycle: RetrainCycle) -> Facts:
    """Copy and index the new tars, compare them with those of the cycle before, and choose the data and the initial
    model of the training.

    Raises:
        ConfigError: the champion is of other settings than are configured.
        DataError: the tars changed, too many samples are at fault, none has what the tasks read, or they have drifted.
    """
    incoming = _incoming_folder(work)
    copy_tars(incoming, cycle.tars, _copied_tars_subfolder(work, cycle))
    with Progress("index") as progress:
        new = build_index(_copied_tars_folder(work, cycle), work.config.data.index, report_progress=progress)
    print(new.report(), flush=True)
    check_tars_copied_unchanged(new, cycle.tars)
    evaluation_index = work.newest_index()
    if not evaluation_index.counts()[HOLD_OUT]:
        raise DataError(
            f"{evaluation_index.tars} has no validation split, by which candidate and champion are compared; add one"
        )
    for name, task in work.config.model.task.tasks_by_name().items():
        if not new.count(task.can_learn, "train"):
            of_task = f" of task {name!r}" if name else ""
            raise DataError(
                f"no training sample of {new.tars} has {task.learning_requirement}, which the model{of_task} reads"
            )

    statistics = drift.collect_split_statistics(new)
    before, compared_with = _statistics_before(work, evaluation_index)
    divergence = drift.statistic_divergences(before, statistics)
    drift.check_drift_limit(divergence, work.config.retrain.max_drift, compared_with, f"cycle {cycle.id}")
    shared = count_inputs_shared_with_evaluation(new, evaluation_index, HOLD_OUT)
    for name, count in sorted(shared.items()):
        if count:
            whose = f"have the {name} of a hold-out sample"
            print_line(f"{count} new training samples {whose}, which flatters the candidate there")
    init, reason = _choose_initial_model(work, new)
    print_line(f"begins with {f'version {init}' if init else 'new weights'}: {reason}")
    return {
        "index": new.hash,
        "counts": new.counts(),
        "quarantine": new.quarantine_counts(),
        "hold_out": evaluation_index.hash,
        "statistics": statistics,
        "drift": divergence,
        "compared_with": compared_with,
        "hold_out_inputs": shared,
        "init": init,
        "init_because": reason,
        "tars": new.tars,
        "inputs": new.validity_settings["inputs"],
        "mix": _choose_training_mix(work, evaluation_index, cycle, new),
    }


def train_candidate(work: Workspace, cycle: RetrainCycle) -> Facts:
    """Train a candidate, evaluate it on the hold-out, and register it."""
    training = _training_workspace(work, cycle)
    facts = cycle.records["checked"]
    training.record_index_versions({"": facts["hold_out"], _source_name(cycle): facts["index"]})
    version = train.run(training)
    store = training.fact_source
    return {
        "version": version.version, "run_id": version.run_id, "knowledge_version": store.version if store else None,
    }  # fmt: skip


def evaluate_both_models(work: Workspace, cycle: RetrainCycle) -> Facts:
    """Let candidate and champion answer the same hold-out, and the same slice of the new data.

    Raises:
        DataError: the hold-out is not the one that the cycle began with, or has nothing to be judged by.
    """
    registry = work.registry
    facts = cycle.records["checked"]
    # Both with the facts that the candidate was trained with, however the store was edited since.
    store = _training_workspace(work, cycle).fact_source
    evaluation_index, new = Index.open(work.tars, facts["hold_out"]), Index.open(facts["tars"], facts["index"])
    models = {"candidate": registry.version(cycle.records["trained"]["version"]), "champion": registry.find()}
    results: dict[str, Any] = {}
    for role, version in models.items():
        if version is None:
            results[role] = None
            continue
        scores = {
            "hold_out": _holdout_scores(work, registry, version, evaluation_index, store),
            "new": _scores_on_new_data(work, registry, version, new, store),
        }
        results[role] = {"version": version.version, **scores}
        for where, tasks in scores.items():
            for task, score in tasks.items():
                place = " ".join(filter(None, (where.replace("_", "-"), task)))
                beside = f"{score['rows']} rows, without looking {score['floor']:.4f}"
                figure = f"{score['metric']} {score['value']:.4f} ({beside})"
                print_line(f"{role} version {version.version} on {place}: {figure}")
    return results


def run_gate(work: Workspace, cycle: RetrainCycle) -> Facts:
    """Run the gate on the hold-out and on the held-out part of the new tars. The champion is then read from the
    registry, as this may be repeated after a promotion whose record was lost.
    """
    version = cycle.records["trained"]["version"]
    candidate = work.config.evaluate.model_copy(update={"model": version})
    new = Index.open(cycle.records["checked"]["tars"])
    decision = promote.run(_training_workspace(work, cycle).with_changed_settings(evaluate=candidate), new)
    champion = work.registry.find()
    promoted = champion is not None and champion.version == version
    assert decision is not None  # which only a rollback is
    return {"promoted": promoted, "reason": decision.reason}


def update_service(work: Workspace, cycle: RetrainCycle) -> Facts:
    """Update the service if one runs and there is a new champion."""
    if not cycle.records["gated"]["promoted"]:
        return {"swapped": False, "reason": "the champion is the same"}
    if not work.config.retrain.swap or not deploy.is_service_running():
        reason = "no service runs on this cluster" if work.config.retrain.swap else "not wanted"
        return {"swapped": False, "reason": reason}
    changes: dict[str, Any] = {"version": "", "model": ""}
    # The challenger may be what has just become the champion, and the next one is not there yet.
    if work.registry.find(CHALLENGER) is None:
        changes["challenger"] = work.config.serve.challenger.model_copy(update={"mode": "off"})
    work = work.with_changed_settings(serve=work.config.serve.model_copy(update=changes))
    return {"swapped": True, "reason": f"serving at {serve.deploy_model(work)}"}


def record_cycle(work: Workspace, cycle: RetrainCycle) -> Facts:
    """Record the whole cycle in the candidate's tracked run."""
    records, run_id = cycle.records, cycle.records["trained"]["run_id"]
    scores = {
        f"retrain/{where}/{role}{f'/{task}' if task else ''}": score["value"]
        for role in ("candidate", "champion")
        for where in ("hold_out", "new")
        for task, score in ((records["evaluated"][role] or {}).get(where) or {}).items()
    }
    verdict = f"{'promoted' if records['gated']['promoted'] else 'not promoted'}: {records['gated']['reason']}"
    with work.open_tracked_run(run_id) as tracker:
        tracker.log_metrics(scores, 0)
        tracker.set_tags({"retrain.cycle": cycle.id, "retrain.verdict": verdict})
        tracker.log_text(json.dumps(dict(records), indent=1, sort_keys=True), "retrain/audit.json")
    return {"tars": len(cycle.tars), "candidate": records["trained"]["version"], "verdict": verdict}


STEP_FUNCTIONS: dict[str, Callable[[Workspace, RetrainCycle], Facts]] = {
    "checked": take_and_check_new_data,
    "trained": train_candidate,
    "evaluated": evaluate_both_models,
    "gated": run_gate,
    "swapped": update_service,
    "committed": record_cycle,
}
"""What does each of the ledger's ``STEPS`` after "planned"."""


def print_line(line: str) -> None:
    """Print a line about the retraining at once."""
    print(f"retrain  {line}", flush=True)


def _incoming_folder(work: Workspace) -> StorageFolder:
    return StorageFolder(absolute_path(work.config.retrain.incoming or f"{work.config.data.tars.rstrip('/')}/incoming"))


def _copied_tars_subfolder(work: Workspace, cycle: RetrainCycle) -> str:
    """Return the subfolder of the incoming tars that belongs to this ledger alone, as several models may learn from the
    same incoming tars.
    """
    ledger_hash = hashlib.sha256(str(open_ledger(work).path).encode()).hexdigest()
    return f"_taken/{work.config.name}-{ledger_hash[:8]}/{cycle.id}"


def _copied_tars_folder(work: Workspace, cycle: RetrainCycle) -> str:
    return f"{_incoming_folder(work).uri.rstrip('/')}/{_copied_tars_subfolder(work, cycle)}"


def _statistics_before(work: Workspace, evaluation_index: Index) -> tuple[drift.Statistics, str]:
    """Return the statistics with which new data are compared: those of the last cycle, else of the old data."""
    if before := open_ledger(work).committed_cycles():
        return before[-1].records["checked"]["statistics"], f"cycle {before[-1].id}"
    return drift.collect_split_statistics(evaluation_index), evaluation_index.tars


def _choose_initial_model(work: Workspace, new: Index) -> tuple[str, str]:
    """Choose the version with which the training begins ("" for new weights), and say why."""
    if work.config.retrain.start == "scratch":
        return "", "retrain.start is scratch"
    registry = work.registry
    champion = registry.find()
    if champion is None:
        return "", "there is no champion"
    tasks = work.config.model.task.tasks_by_name()
    processor = warm_start.load_matching_processor(
        registry.download(champion).folder, work.config.model, work.config.processor
    )
    choosing = [task for task in tasks.values() if task.chooses_label]
    if not choosing:
        return champion.version, "it is the champion"
    share = share_of_answers_in_vocabulary(count_labels(new, choosing), processor)
    knows = f"the champion (version {champion.version}) knows {share:.4f} of the new answers"
    if share < _LEAST_KNOWN_ANSWERS:
        return "", f"{knows}, less than {_LEAST_KNOWN_ANSWERS}"
    return champion.version, knows


def _choose_training_mix(
    work: Workspace, evaluation_index: Index, cycle: RetrainCycle, new: Index
) -> dict[str, dict[str, Any]]:
    """Choose the training data: the new tars with their configured share; old data and earlier cycles share the rest by
    their sizes.
    """
    share = work.config.retrain.new_share
    old = {
        name or "old": index for name, index in training_data.open_indexes(work, evaluation_index, newest=True).items()
    }
    sizes = {name: float(index.counts()["train"]) for name, index in old.items()}
    if weights := {name: source.weight for name, source in work.config.data.mix.items() if source.weight is not None}:
        sizes = {name: sum(sizes.values()) * weight / sum(weights.values()) for name, weight in weights.items()}
    places = {name: {"tars": index.tars, "inputs": index.validity_settings["inputs"]} for name, index in old.items()}
    for past in open_ledger(work).committed_cycles():
        sizes[_source_name(past)] = float(past.records["checked"]["counts"]["train"])
        checked = past.records["checked"]
        places[_source_name(past)] = {"tars": checked["tars"], "inputs": checked.get("inputs", list(PAIRS))}
    total = sum(sizes.values())
    rest = {n: {**places[n], "weight": (1 - share) * size / total} for n, size in sizes.items() if size}
    of_cycle = {"tars": new.tars, "inputs": new.validity_settings["inputs"], "weight": share}
    return {_source_name(cycle): of_cycle, **(rest if share < 1 else {})}


def _source_name(cycle: RetrainCycle) -> str:
    return f"cycle-{cycle.id}"


def _training_workspace(work: Workspace, cycle: RetrainCycle) -> Workspace:
    """Return the workspace of a cycle's training, which is a run of its own."""
    facts = cycle.records["checked"]
    mix = {name: MixedSource(**source) for name, source in facts["mix"].items()}
    epochs = work.config.retrain.epochs or work.config.train.epochs
    return work.with_changed_settings(
        name=f"{work.config.name}-{cycle.id}",
        data=work.config.data.model_copy(update={"mix": mix, "mix_temperature": [1.0]}),
        train=work.config.train.model_copy(update={"init": facts["init"], "epochs": epochs}),
    )


def _scores_on_new_data(
    work: Workspace, registry: Registry, version: ModelVersion, new: Index, store: FactSource | None
) -> Mapping[str, Mapping[str, Any]]:
    """Evaluate a version on the held-out part of the new tars, as ``_holdout_scores``; {} if it has too few samples,
    which does not end the cycle.
    """
    try:
        return _holdout_scores(work, registry, version, new, store)
    except DataError as error:
        print_line(f"nothing of the new tars to compare by: {error}")
        return {}


def _holdout_scores(
    work: Workspace, registry: Registry, version: ModelVersion, index: Index, store: FactSource | None
) -> Mapping[str, Mapping[str, Any]]:
    """Evaluate a version on the hold-out of an index, for each of its tasks."""
    folder = registry.download(version).folder
    features = feature_cache.cache_features_of_saved_model(work, index, (HOLD_OUT,), folder, "retrain")
    source = Source(index.tars, index.hash, HOLD_OUT, str(folder), features, facts=store)
    results = assess_model(str(folder), source, index, work.config.predict, work.config.stream, examples=0)
    return {
        one.task: {
            "metric": one.report.metric, "value": one.report.value, "floor": one.report.best_baseline_value,
            "rows": one.report.rows, "index": index.hash,
        }
        for one in results
    }  # fmt: skip
