"""From a candidate to the champion: judge it beside the champion on the same hold-out, record, exchange.

A failure anywhere before the exchange leaves every alias as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.stream import StreamConfig
from pipelines.data.tars.reader import Record
from pipelines.errors import DataError
from pipelines.evaluate.assess import Assessment, assess
from pipelines.evaluate.example_scores import score_examples
from pipelines.evaluate.predict import PredictConfig
from pipelines.registry.config import GateConfig, RegistryConfig
from pipelines.registry.errors import ChampionChangedError, RegistryError
from pipelines.registry.gate import comparison, report, stored
from pipelines.registry.gate.behaviour import behaviour_checks, probe_records, run_probe
from pipelines.registry.gate.check import Check, Difference, GateDecision
from pipelines.registry.gate.live import live_checks
from pipelines.registry.registry import Registry
from pipelines.registry.versions import LocalModel, ModelVersion
from pipelines.tracking.tracker import NullTracker
from vlmodel.inference import Predictor
from vlmodel.processor import VLProcessor
from vlmodel.task_spec import TaskSpec


@dataclass(frozen=True)
class Holdout:
    """The data that both models answer, and how.

    Attributes:
        index: the frozen data.
        predict, stream: how it is answered; the same for both models.
    """

    index: Index
    predict: PredictConfig
    stream: StreamConfig

    def evaluate(self, model: LocalModel, split: str) -> list[Assessment]:
        """Let a model answer the split: its tasks with a row for each answer. Ray must be connected.

        Raises:
            DataError: the split has nothing to judge by.
        """
        source = Source(self.index.tars, self.index.hash, split, str(model.folder))
        return assess(str(model.folder), source, self.index, self.predict, self.stream, examples=0)


def decide(
    registry: Registry,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    holdout: Holdout,
    config: RegistryConfig,
    new: Holdout | None = None,
) -> GateDecision:
    """Judge a candidate; nothing is changed. A candidate whose files are not whole is not loaded.

    Args:
        champion: what it would take the place of; None where there is none, and nothing to compare it with.
        new: data that have come in since, on which the candidate must not be worse either.

    Raises:
        ArtifactError: the champion's files are not those that were registered.
        DataError: the hold-out has nothing to judge by.
    """
    names = (candidate.name, candidate.version, champion.version if champion else None)
    entry = [stored.check_not_rolled_back(candidate), stored.check_stored_files(registry, candidate)]
    if not all(check.passed for check in entry):
        return GateDecision(*names, tuple(entry))
    candidate_model = registry.download(candidate)
    champion_model = registry.download(champion) if champion else None
    entry.append(stored.check_schema(candidate_model, champion_model))
    if not entry[-1].passed:
        return GateDecision(*names, tuple(entry))
    found = holdout.evaluate(candidate_model, config.gate.split)
    entry.append(stored.check_smoke_test(candidate_model, found[0].example, enabled=config.smoke_test))
    records = probe_records(holdout.index, config.gate.split, config.gate)
    behaviours = _behaviour_checks(candidate_model, champion_model, records, config.gate)
    decision = GateDecision(*names, (*entry, *behaviours, check_baselines(found[0])))
    if champion_model is None:
        return decision
    tasks = VLProcessor.from_pretrained(candidate_model.folder).tasks
    checks, differences = compare(found, holdout.evaluate(champion_model, config.gate.split), tasks, config.gate)
    if new is not None:
        check, on_new = _compare_on_new_data(candidate_model, champion_model, new, tasks, config.gate)
        checks, differences = [*checks, check], [*differences, *on_new]
    live, of_live = live_checks(candidate_model.name, candidate_model.version, champion_model.version, config.gate)
    return replace(decision.with_checks([*checks, *live]), differences=(*differences, *of_live))


def compare(
    candidate: Sequence[Assessment],
    champion: Sequence[Assessment],
    tasks: Mapping[str, TaskSpec],
    config: GateConfig,
) -> tuple[list[Check], list[Difference]]:
    """Compare answers row by row. Of several tasks the first must be better; the others are treated as slices.

    Args:
        candidate, champion: an assessment of each task, in the same order.
        tasks: what each reads.
    """
    same = all(comparison.same_rows(a.answers, b.answers) for a, b in zip(candidate, champion, strict=True))
    frozen = Check(
        name="same hold-out",
        passed=same,
        measured=f"{candidate[0].answers.num_rows} rows{'' if same else ', which differ'}",
        required="the same rows in the same order",
        explanation="figures of different rows are not compared",
        compares=True,
    )
    if not same:
        return [frozen], []
    first, *others = candidate
    # Both by the candidate's rules, so that it is not the rules that differ.
    candidate_scores, champion_scores = (
        score_examples(one.answers, tasks[first.task], first.normalizer) for one in (first, champion[0])
    )
    whole = comparison.difference("hold-out", candidate_scores, champion_scores, config)
    sliced = comparison.slice_differences(
        candidate_scores, champion_scores, comparison.slices(first.answers, config.slices), config
    )
    for one, other in zip(others, champion[1:], strict=True):
        pair = [score_examples(table, tasks[one.task], one.normalizer) for table in (one.answers, other.answers)]
        of_task = comparison.difference(f"task={one.task}", pair[0], pair[1], config)
        sliced.append(comparison.with_slice_tolerance(of_task, config))
    checks = [
        frozen,
        comparison.check_better(whole, first.report.metric, config),
        comparison.check_mcnemar(candidate_scores, champion_scores, config),
        comparison.check_slices(sliced, config),
    ]
    return checks, [whole, *sliced]


def compare_new(
    candidate: Sequence[Assessment],
    champion: Sequence[Assessment],
    tasks: Mapping[str, TaskSpec],
    config: GateConfig,
) -> tuple[Check, list[Difference]]:
    """Compare answers about new data, row by row; each task for itself.

    Args:
        candidate, champion: an assessment of each task, in the same order.
        tasks: what each reads.
    """
    found = []
    for one, other in zip(candidate, champion, strict=True):
        assert comparison.same_rows(one.answers, other.answers)
        candidate_scores, champion_scores = (
            score_examples(table, tasks[one.task], one.normalizer) for table in (one.answers, other.answers)
        )
        if len(candidate_scores) >= config.slice_rows:
            name = f"new data, task={one.task}" if one.task else "new data"
            found.append(
                comparison.with_tolerance(
                    comparison.difference(name, candidate_scores, champion_scores, config), config.new_tolerance
                )
            )
    too_few = f"the new tars have fewer than {config.slice_rows} rows of split {config.split!r}"
    return comparison.check_new_data(found, config, too_few), found


def check_baselines(found: Assessment) -> Check:
    """Whether the candidate is above what is reached without looking; it counts without a champion too. Where it is
    above by no more than chance it passes, and the check says so.
    """
    one = found.report
    above = bool(one.value > one.baseline)  # not a number is not above
    verdict = f", {one.verdict}" if one.comparisons else ""
    return Check(
        name="better than without looking",
        passed=above and one.relation != "worse",
        measured=f"{one.metric} {one.value:.4f} on {one.rows} {one.unit} of {one.split}{verdict}",
        required=f"above {one.baseline:.4f}",
        explanation="the highest of what is reached by the question alone, by one answer for all, or by chance",
    )


def apply_decision(registry: Registry, decision: GateDecision, tracker: NullTracker) -> GateDecision:
    """Record the decision with the candidate's run, and exchange the champion if it says so.

    Returns:
        The decision; where another promotion was faster, with a check that failed.
    """
    record(decision, tracker)
    registry.set_challenger(decision.candidate, is_usable=decision.is_usable)
    if not decision.promote:
        return decision
    try:
        registry.promote(decision.candidate, decision.reason, over=decision.champion)
    except ChampionChangedError as error:
        lost = Check("champion unchanged", False, str(error), "the champion that it was judged against", "", True)
        decision = decision.with_checks([lost])
        record(decision, tracker)
    return decision


def record(decision: GateDecision, tracker: NullTracker) -> None:
    """Store the decision with a run: a table as Markdown and as a page, a picture, and JSON for programs."""
    folder = f"gate/{decision.candidate}-against-{decision.champion or 'none'}"
    tracker.log_text(report.markdown(decision), f"{folder}/decision.md")
    tracker.log_text(report.page(decision), f"{folder}/decision.html")
    tracker.log_text(json.dumps(decision.to_tree(), indent=1), f"{folder}/decision.json")
    tracker.log_figure(report.picture(decision), f"{folder}/decision.png")
    tracker.set_tags({"gate.promote": str(decision.promote).lower(), "gate.reason": decision.reason[:4000]})


def roll_back(registry: Registry, reason: str, tracker_of: Callable[[ModelVersion], NullTracker]) -> LocalModel:
    """Give up the champion for the one before it.

    Args:
        tracker_of: opens the run of a version, in which it is recorded.

    Raises:
        RegistryError: there is no champion, or none before it.
        ArtifactError: the former champion's files are not those that were registered; the champion stays.
    """
    rollback_reason = registry.find()
    if rollback_reason is None:
        raise RegistryError(
            f"model {registry.name!r} has no champion to roll back; promote one (python -m jobs.promote)"
        )
    previous_champion = registry.rollback(reason, of=rollback_reason.version)
    with tracker_of(rollback_reason) as tracker:
        tracker.set_tags({"gate.rolled_back": f"to version {previous_champion.version}: {reason}"})
    return previous_champion


def _compare_on_new_data(
    candidate: LocalModel, champion: LocalModel, new: Holdout, tasks: Mapping[str, TaskSpec], config: GateConfig
) -> tuple[Check, list[Difference]]:
    """As ``compare_new``; new tars with nothing to judge by are no reason to stop."""
    try:
        candidate_assessments, champion_assessments = (
            new.evaluate(model, config.split) for model in (candidate, champion)
        )
    except DataError as error:
        return comparison.check_new_data([], config, str(error)), []
    return compare_new(candidate_assessments, champion_assessments, tasks, config)


def _behaviour_checks(
    candidate: LocalModel, champion: LocalModel | None, records: Sequence[Record], config: GateConfig
) -> list[Check]:
    """The behavioural checks of every task."""
    candidate_predictor = Predictor.from_pretrained(candidate.folder)
    champion_predictor = Predictor.from_pretrained(champion.folder) if champion else None
    checks = []
    for task in candidate_predictor.processor.tasks:
        before = run_probe(champion_predictor, records, task) if champion_predictor else None
        checks += behaviour_checks(run_probe(candidate_predictor, records, task), before, config, task)
    return checks
