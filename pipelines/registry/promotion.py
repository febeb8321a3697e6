"""Decides whether a candidate becomes the champion: compares both on the same hold-out, records the decision, changes
the aliases.

A failure before the change leaves every alias as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipelines.data.index.index import Index
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source, connect_fact_lookup
from pipelines.errors import DataError
from pipelines.evaluate.assess import TaskAssessment, assess_model
from pipelines.evaluate.build_report import score_examples
from pipelines.evaluate.config import PredictConfig
from pipelines.evaluate.intervals import CONFIDENCE
from pipelines.knowledge.opened import FactSource
from pipelines.registry.config import GateConfig, RegistryConfig
from pipelines.registry.errors import ChampionChangedError, RegistryError
from pipelines.registry.gate import comparison, report, stored
from pipelines.registry.gate.behaviour import (
    check_behaviour,
    draw_probe_samples,
    iterate_probe_samples,
    run_behaviour_probe,
)
from pipelines.registry.gate.check import GateCheck, GateDecision, MetricDifference
from pipelines.registry.gate.knowledge import FactProbeResult, check_facts_are_used, draw_fact_rows, run_fact_probe
from pipelines.registry.gate.live import check_live_traffic
from pipelines.registry.gate.opponent import check_champion_is_comparable
from pipelines.registry.registry import Registry
from pipelines.registry.versions import LocalModel, ModelVersion
from pipelines.tracking.tracker import NullTracker
from vlmodel.metrics.scores import ExampleScores
from vlmodel.processor import VLProcessor
from vlmodel.sample import Sample
from vlmodel.task import Task

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


_FACT_SAMPLES = 512
"""Most samples of the hold-out that are searched for rows with facts."""


@dataclass(frozen=True)
class Holdout:
    """The data on which champion and candidate are compared, and how both answer it.

    Attributes:
        index: of the data.
        predict, stream: settings for both models.
        facts: the store of which models that read facts get them.
    """

    index: Index
    predict: PredictConfig
    stream: StreamConfig
    facts: FactSource | None = None

    def evaluate(self, model: LocalModel, split: str) -> list[TaskAssessment]:
        """Evaluate each task of a model on the hold-out split. Ray must be connected.

        Raises:
            DataError: the split has no right answers.
        """
        source = Source(self.index.tars, self.index.hash, split, str(model.folder), facts=self.facts)
        return assess_model(
            str(model.folder), source, self.index, self.predict, self.stream, examples=0,
            label=f"gate version {model.version},",
        )  # fmt: skip


def run_gate(
    registry: Registry,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    holdout: Holdout,
    config: RegistryConfig,
    new: Holdout | None = None,
) -> GateDecision:
    """Run the checks of the gate without changing anything. A candidate whose files were altered is not loaded.

    Args:
        champion: the version that it would replace; None for none.
        new: data that have come in since, on which the candidate must not be worse either.

    Raises:
        ArtifactError: the champion's files are not those that were registered.
        DataError: the hold-out has no right answers.
    """
    names = (candidate.name, candidate.version, champion.version if champion else None)
    checks = [stored.check_not_rolled_back(candidate), stored.check_stored_files(registry, candidate)]
    if not all(check.passed for check in checks):
        return GateDecision(*names, tuple(checks))
    candidate_model = registry.download(candidate)
    champion_model = registry.download(champion) if champion else None
    checks.append(stored.check_same_schema(candidate_model, champion_model))
    if not checks[-1].passed:
        return GateDecision(*names, tuple(checks))
    assessments = holdout.evaluate(candidate_model, config.gate.split)
    checks.append(stored.check_smoke_test(candidate_model, assessments[0].example, enabled=config.smoke_test))
    records = draw_probe_samples(holdout.index, config.gate.split)
    if champion_model is not None:
        checks.append(check_champion_is_comparable(champion_model, holdout.index, config.gate))
        if not checks[-1].passed:
            champion_model = None
    checks += _run_behaviour_checks(candidate_model, champion_model, records, holdout, config.gate)
    checks.append(check_baselines(assessments[0], certain=champion_model is None))
    if champion_model is None:
        return GateDecision(*names, tuple(checks))
    tasks = VLProcessor.from_pretrained(candidate_model.folder).tasks
    champion_assessments = holdout.evaluate(champion_model, config.gate.split)
    comparisons, differences = compare_on_holdout(assessments, champion_assessments, tasks, config.gate)
    if new is not None:
        new_check, new_differences = _compare_on_new_data(candidate_model, champion_model, new, tasks, config.gate)
        comparisons, differences = [*comparisons, new_check], [*differences, *new_differences]
    live, live_differences = check_live_traffic(candidate.name, candidate.version, champion_model.version, config.gate)
    return GateDecision(*names, (*checks, *comparisons, *live), (*differences, *live_differences))


def compare_on_holdout(
    candidate: Sequence[TaskAssessment],
    champion: Sequence[TaskAssessment],
    tasks: Mapping[str, Task],
    config: GateConfig,
) -> tuple[list[GateCheck], list[MetricDifference]]:
    """Compare the answers of candidate and champion to the hold-out, row by row. The first task must be better; the
    others are treated as slices.

    Args:
        candidate, champion: an assessment of each task, in the same order.
    """
    same = all(comparison.have_same_rows(a.answers, b.answers) for a, b in zip(candidate, champion, strict=True))
    have_same_rows = GateCheck(
        name="same hold-out",
        passed=same,
        measured=f"{candidate[0].answers.num_rows} rows{'' if same else ', which differ'}",
        required="the same rows in the same order",
        explanation="metrics of different rows are not compared",
        compares=True,
    )
    if not same:
        return [have_same_rows], []
    first = candidate[0]
    candidate_scores, champion_scores = _score_both_models(first, champion[0], tasks)
    whole = comparison.metric_difference("hold-out", candidate_scores, champion_scores, config)
    masks = comparison.row_masks_by_slice(first.answers, config.slices)
    sliced = comparison.metric_differences_by_slice(candidate_scores, champion_scores, masks, config)
    for one, other in zip(candidate[1:], champion[1:], strict=True):
        on_task = comparison.metric_difference(f"task={one.task}", *_score_both_models(one, other, tasks), config)
        sliced.append(comparison.with_slice_tolerance(on_task, config))
    checks = [
        have_same_rows,
        comparison.check_candidate_is_better(whole, first.report.metric, config),
        comparison.check_mcnemar(candidate_scores, champion_scores, config),
        comparison.check_no_slice_is_worse(sliced, config),
    ]
    return checks, [whole, *sliced]


def compare_on_new_data(
    candidate: Sequence[TaskAssessment],
    champion: Sequence[TaskAssessment],
    tasks: Mapping[str, Task],
    config: GateConfig,
) -> tuple[GateCheck, list[MetricDifference]]:
    """Compare the answers of candidate and champion to new data, row by row, for each task.

    Args:
        candidate, champion: an assessment of each task, in the same order.
    """
    differences = []
    for one, other in zip(candidate, champion, strict=True):
        assert comparison.have_same_rows(one.answers, other.answers)
        candidate_scores, champion_scores = _score_both_models(one, other, tasks)
        if len(candidate_scores) >= comparison.LEAST_ROWS:
            name = f"new data, task={one.task}" if one.task else "new data"
            measured = comparison.metric_difference(name, candidate_scores, champion_scores, config)
            differences.append(comparison.with_tolerance(measured, config.tolerance))
    too_few = f"the new tars have fewer than {comparison.LEAST_ROWS} rows of split {config.split!r}"
    return comparison.check_not_worse_on_new_data(differences, config, too_few), differences


def check_baselines(assessment: TaskAssessment, *, certain: bool) -> GateCheck:
    """Check whether the candidate is above the baselines that ignore the image.

    Args:
        certain: whether a difference that may be chance fails, as where nothing else says that the candidate is any
            good. Else it passes, and the check says so.
    """
    report = assessment.report
    above = bool(report.value > report.best_baseline_value)  # NaN is not above
    certain = certain and bool(report.comparisons)
    verdict = f", {report.baseline_verdict}" if report.comparisons else ""
    return GateCheck(
        name="better than without looking",
        passed=above
        and (report.relation_to_baselines == "better" if certain else report.relation_to_baselines != "worse"),
        measured=f"{report.metric} {report.value:.4f} on {report.rows} {report.unit} of {report.split}{verdict}",
        required=f"above {report.best_baseline_value:.4f}{f' with {CONFIDENCE:.0%} certainty' if certain else ''}",
        explanation="the best baseline: the question alone, one answer for all, or chance",
    )


def apply_decision(registry: Registry, decision: GateDecision, tracker: NullTracker) -> GateDecision:
    """Record the decision in the candidate's run, and make the candidate the champion if it passed or is forced.

    Returns:
        The decision; if another promotion came first, with a failed check added.
    """
    log_decision(decision, tracker)
    registry.set_challenger(decision.candidate, is_usable=decision.is_usable)
    if not decision.promote:
        return decision
    try:
        registry.promote(decision.candidate, decision.reason, over=decision.champion)
    except ChampionChangedError as error:
        late = GateCheck("champion unchanged", False, str(error), "the champion that it was judged against", "", True)
        decision = replace(decision, checks=(*decision.checks, late), forced="")
        log_decision(decision, tracker)
    return decision


def log_decision(decision: GateDecision, tracker: NullTracker) -> None:
    """Store the decision in a run: as Markdown, HTML, a picture, and JSON for programs."""
    folder = f"gate/{decision.candidate}-against-{decision.champion or 'none'}"
    tracker.log_text(report.decision_markdown(decision), f"{folder}/decision.md")
    tracker.log_text(report.decision_page(decision), f"{folder}/decision.html")
    tracker.log_text(json.dumps(decision.to_json_tree(), indent=1), f"{folder}/decision.json")
    tracker.log_figure(report.draw_gate_decision(decision), f"{folder}/decision.png")
    tracker.set_tags({"gate.promote": str(decision.promote).lower(), "gate.reason": decision.reason[:4000]})


def roll_back(registry: Registry, reason: str, tracker_of: Callable[[ModelVersion], NullTracker]) -> LocalModel:
    """Replace the champion by the champion before it.

    Args:
        tracker_of: opens the run of a version, in which this is recorded.

    Raises:
        RegistryError: there is no champion, or none before it.
        ArtifactError: the previous champion's files are not those that were registered; the champion stays.
    """
    champion = registry.find()
    if champion is None:
        raise RegistryError(
            f"model {registry.name!r} has no champion to roll back; promote one (python -m jobs.promote)"
        )
    previous = registry.rollback(reason, of=champion.version)
    with tracker_of(champion) as tracker:
        tracker.set_tags({"gate.rolled_back": f"to version {previous.version}: {reason}"})
    return previous


def _score_both_models(
    candidate: TaskAssessment, champion: TaskAssessment, tasks: Mapping[str, Task]
) -> tuple[ExampleScores, ExampleScores]:
    """Compute the scores of single rows for both models, by the candidate's rules for normalizing answers."""
    task, normalizer = tasks[candidate.task], candidate.normalizer
    return score_examples(candidate.answers, task, normalizer), score_examples(champion.answers, task, normalizer)


def _compare_on_new_data(
    candidate: LocalModel, champion: LocalModel, new: Holdout, tasks: Mapping[str, Task], config: GateConfig
) -> tuple[GateCheck, list[MetricDifference]]:
    """Compare the models on new data; the check does not apply if the new tars have no right answers."""
    try:
        candidate_assessments, champion_assessments = (
            new.evaluate(model, config.split) for model in (candidate, champion)
        )
    except DataError as error:
        return comparison.check_not_worse_on_new_data([], config, str(error)), []
    return compare_on_new_data(candidate_assessments, champion_assessments, tasks, config)


def _run_behaviour_checks(
    candidate: LocalModel, champion: LocalModel | None, records: Sequence[Sample], holdout: Holdout, config: GateConfig
) -> list[GateCheck]:
    """Run the behaviour checks of each task and, for models that read facts, check whether they use them."""
    candidate_predictor = _load_with_facts(candidate, holdout)
    champion_predictor = _load_with_facts(champion, holdout) if champion else None
    checks = []
    for task in candidate_predictor.processor.tasks:
        champion_result = run_behaviour_probe(champion_predictor, records, task) if champion_predictor else None
        checks += check_behaviour(
            run_behaviour_probe(candidate_predictor, records, task), champion_result, config, task
        )
        if (found := _probe_facts(candidate_predictor, holdout, config.split, task)) is not None:
            of_champion = _probe_facts(champion_predictor, holdout, config.split, task) if champion_predictor else None
            checks += check_facts_are_used(found, of_champion, config, task)
    return checks


def _load_with_facts(model: LocalModel, holdout: Holdout) -> Predictor:
    from vlmodel.inference import Predictor

    predictor = Predictor.from_pretrained(model.folder)
    connect_fact_lookup(predictor.processor, holdout.facts, model.folder)
    return predictor


def _probe_facts(predictor: Predictor, holdout: Holdout, split: str, task: str) -> FactProbeResult | None:
    """Probe how a model uses the facts of the hold-out; None for a model that reads none."""
    if not predictor.processor.knowledge.reads_facts:
        return None
    samples = iterate_probe_samples(holdout.index, split, _FACT_SAMPLES)
    return run_fact_probe(predictor, *draw_fact_rows(predictor.processor, samples, task), task)
