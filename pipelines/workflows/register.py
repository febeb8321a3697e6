"""Evaluate the best checkpoint of a training, and register it."""

from __future__ import annotations

from pipelines.data.index.index import Index
from pipelines.evaluate.assess import assess_model, log_assessment
from pipelines.evaluate.model_card import model_card
from pipelines.knowledge.trained_facts import TrainedFacts
from pipelines.registry.versions import ModelVersion
from pipelines.tracking.tracker import Tracker
from pipelines.train import checkpoint
from pipelines.workflows import feature_cache, models, own_examples
from pipelines.workflows.workspace import Workspace
from vlmodel.processor import VLProcessor


def evaluate_and_register(work: Workspace, index: Index, tracker: Tracker, split: str) -> ModelVersion:
    """Evaluate the best checkpoint by its answers, record pictures of them, and register it.

    Args:
        split: that it is evaluated on.
    """
    config = work.config
    splits = (split, "train") if config.evaluate.training else (split,)
    with checkpoint.open_best_checkpoint(work.run_folder, checkpoint.MODEL) as (best, local):
        model = local / checkpoint.MODEL
        features = feature_cache.cache_features_of_saved_model(work, index, splits, model, "train")
        assessments = assess_model(
            str(model), work.source(index, split, model, features), index, config.predict, config.stream,
            training=config.evaluate.training,
        )  # fmt: skip
        print(f"best checkpoint: step {best.step}", flush=True)
        for assessment in assessments:
            task = assessment.task
            print(f"{task}{': ' if task else ''}{assessment.report}", flush=True)
            tracker.log_metrics(assessment.report.tracked_metrics(task), best.step)
            log_assessment(assessment, tracker, tracker.history())
        # The first of several tasks is the one by which models are compared.
        first = assessments[0]
        score = models.version_score_of_report(first.report, index)
        examples = {assessment.task: assessment.example for assessment in assessments}
        print("registering: the model is packed, and loaded by a fresh process to try it", flush=True)
        reports = {assessment.task: assessment.report for assessment in assessments}
        processor, facts = VLProcessor.from_pretrained(model), TrainedFacts.load(model)
        card = model_card(work.registry.name, reports, processor, index, best.step, facts)
        shown = own_examples.choose_own_examples(model, assessments, index)
        version = work.registry.log_model(tracker.run_id, model, first.example, score, best.step, examples, card, shown)
    print(f"registered {version.name} version {version.version}", flush=True)
    return version
