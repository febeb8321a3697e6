"""From the table of a task's answers to its report: one function for each kind of task, chosen by what it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.errors import DataError
from pipelines.evaluate.baselines import AnswerPrior, Baselines
from pipelines.evaluate.example_scores import answers_match, chance, image_ids, score_examples
from pipelines.evaluate.intervals import interval
from pipelines.evaluate.metrics.answers import vqa_accuracy
from pipelines.evaluate.metrics.calibration import calibration_error
from pipelines.evaluate.metrics.captions import caption_scores, with_words
from pipelines.evaluate.metrics.matching import matching_scores
from pipelines.evaluate.metrics.retrieval import retrieval_scores
from pipelines.evaluate.report import Report
from pipelines.evaluate.verdict import BaselineComparison, compare
from vlmodel.answers import Normalizer, normal_form
from vlmodel.task_spec import MATCH, NO_MATCH, TaskSpec, is_match

_ASKED, _CAPTIONED = TaskSpec(reads="questions"), TaskSpec(reads="captions", text=False, target="tokens")
_MATCHED, _COMPARED = TaskSpec(reads="captions", target="match"), TaskSpec(reads="captions", target="none")

_TOP_SAYS_LITTLE = 10
"""With fewer classes than this many times k, nearly everything is among the k best."""


def build_report(
    answers: pa.Table,
    split: str,
    fields: TaskSpec,
    baselines: Baselines,
    labels: Sequence[str] = (),
    normalizer: Normalizer = "none",
) -> Report:
    """Report on a table of ``predict.SCHEMA``.

    Args:
        fields: what the task reads, which says what kind of task it is.
        baselines: what is reached without looking, as it was learned from a training split.
        labels: the answers that a classifier chooses among.
        normalizer: answers in words are compared by these rules.

    Raises:
        DataError: no row has anything to be judged by.
    """
    if fields.target == "none":
        report = _report_on_retrieval(answers, split)
    elif fields.target == "match":
        report = _report_on_matching(answers, split)
    elif fields.target == "tokens" and not fields.text:
        assert baselines.caption is not None
        report = _report_on_captions(answers, split, baselines.caption)
    else:
        assert baselines.answers is not None
        report = report_on_answers(answers, split, baselines.answers, labels, normalizer)
    if cut := pc.sum(answers["truncated"]).as_py():
        note = f"{cut} of {answers.num_rows} texts were cut, as they have more tokens than the model takes"
        return replace(report, notes=(*report.notes, note))
    return report


def report_on_answers(
    answers: pa.Table, split: str, baselines: AnswerPrior, labels: Sequence[str] = (), normalizer: Normalizer = "none"
) -> Report:
    """Answers to questions: accuracy, agreement with annotators where there are several, calibration."""
    answered = _with_target(answers, split, "question")
    targets, predicted = answered["target"].to_pylist(), answered["predicted"].to_pylist()
    right = answers_match(targets, predicted, normalizer)
    probabilities = np.clip(answered["probability"].to_numpy(), 0, 1)
    metrics = {"accuracy": sum(right) / len(right)}
    references = answered["references"].to_pylist()
    annotated = any(len(given) > 1 for given in references)
    if annotated:
        metrics |= vqa_accuracy(predicted, references)
    ranked = answered["answers"].to_pylist()
    k = max(len(best) for best in ranked)
    if k > 1 and len(labels) > _TOP_SAYS_LITTLE * k:
        among = (any(answers_match([t] * len(best), best, normalizer)) for t, best in zip(targets, ranked, strict=True))
        metrics[f"top{k}_accuracy"] = sum(among) / len(targets)
    metrics |= calibration_error(probabilities.tolist(), right)

    credits = score_examples(answered, _ASKED, normalizer)
    guesses = {"majority": [baselines.majority] * len(targets), "question_only": baselines.answers(answered["text"])}
    description = {"majority": f'always "{baselines.majority}"', "question_only": "the question alone"}
    beside: dict[str, dict[str, float]] = {}
    comparisons: list[BaselineComparison] = []
    subset_metrics: dict[str, dict[str, float]] = {}
    for name, guessed in guesses.items():
        of_guess = score_examples(_with(answered, predicted=guessed), _ASKED, normalizer)
        beside[name] = {"accuracy": of_guess.value} | (vqa_accuracy(guessed, references) if annotated else {})
        comparisons.append(compare(name, description[name], credits, of_guess))
    shuffled = _shuffled(answered)
    if shuffled is not None:
        same, of_other = shuffled
        for table, of_table in ((same, subset_metrics), (of_other, beside)):
            of_table["image_shuffled"] = {"accuracy": score_examples(table, _ASKED, normalizer).value}
            if annotated:
                of_table["image_shuffled"] |= vqa_accuracy(
                    table["predicted"].to_pylist(), table["references"].to_pylist()
                )
        comparisons.append(_beside_other_images(same, of_other, _ASKED, normalizer))

    forms = [normal_form(target, normalizer) for target in targets]
    totals, hit = Counter(forms), Counter(form for form, ok in zip(forms, right, strict=True) if ok)
    known = {normal_form(label, normalizer) for label in labels}
    unknown = sum(n for form, n in totals.items() if labels and form not in known)
    notes = [f"{sum(right)} of {len(right)} questions answered right"]
    if unknown:
        notes.append(f"{unknown} right answers are outside the model's vocabulary and count as wrong")
    return Report(
        split=split,
        samples=_samples(answers),
        rows=len(targets),
        unit="questions",
        metric="accuracy",
        metrics=metrics,
        baselines=beside,
        notes=tuple(notes),
        by_answer=[(a, n, hit[a] / n) for a, n in sorted(totals.items(), key=lambda item: (-item[1], item[0]))],
        interval=interval(credits),
        comparisons=tuple(comparisons),
        subset_metrics=_of_part(subset_metrics, answered, shuffled),
    )


def _report_on_captions(answers: pa.Table, split: str, constant: str) -> Report:
    place = answers.schema.get_field_index("references")
    judged = pa.array(with_words(answers["references"].to_pylist()), answers.schema.field(place).type)
    answers = answers.set_column(place, "references", judged)
    captioned = answers.filter(pc.greater(pc.list_value_length(answers["references"]), 0))
    if not captioned.num_rows:
        raise DataError(f"no image of split {split!r} has a caption with a word to compare with; choose another split")
    references = captioned["references"].to_pylist()
    baselines = {"constant_caption": caption_scores([constant] * len(references), references)}
    credits = score_examples(captioned, _CAPTIONED)
    of_constant = score_examples(_with(captioned, predicted=[constant] * len(references)), _CAPTIONED)
    comparisons = [compare("constant_caption", "one caption for all images", credits, of_constant)]
    shuffled = _shuffled(captioned)
    subset_metrics: dict[str, dict[str, float]] = {}
    notes = [
        f'constant caption: "{constant}"',
        f"{pc.count_distinct(captioned['predicted']).as_py()} different captions",
    ]
    if shuffled is not None:
        same, of_other = shuffled
        for table, of_table in ((same, subset_metrics), (of_other, baselines)):
            of_table["image_shuffled"] = caption_scores(table["predicted"].to_pylist(), table["references"].to_pylist())
        comparisons.append(_beside_other_images(same, of_other, _CAPTIONED))
    return Report(
        split=split,
        samples=_samples(answers),
        rows=captioned.num_rows,
        unit="images",
        metric="cider",
        metrics=caption_scores(captioned["predicted"].to_pylist(), references),
        baselines=baselines,
        notes=tuple(notes),
        interval=interval(credits),
        comparisons=tuple(comparisons),
        subset_metrics=_of_part(subset_metrics, captioned, shuffled),
    )


def _report_on_matching(answers: pa.Table, split: str) -> Report:
    pairs = _with_target(answers, split, "pair")
    matches = [is_match(target) for target in pairs["target"].to_pylist()]
    scores = matching_scores(_match_probabilities(pairs["predicted"], pairs["probability"]), matches)
    baselines = {"constant": _pop_prefixed(scores, "floor_")}
    both = "balanced_accuracy" in scores
    one_kind = (
        f"every pair is {'a match' if matches[0] else 'no match'}, so only accuracy can be said; captions meet another "
        "image of their batch: raise predict.batch above 1, or choose a split with more images"
    )
    credits = score_examples(pairs, _MATCHED)
    constant = MATCH if both or matches[0] else NO_MATCH
    of_constant = score_examples(_with(pairs, predicted=[constant] * len(matches)), _MATCHED)
    comparisons = [compare("constant", "one answer for all pairs", credits, of_constant)]
    shuffled = _shuffled(pairs)
    subset_metrics: dict[str, dict[str, float]] = {}
    if shuffled is not None and len(kinds := [is_match(t) for t in shuffled[0]["target"].to_pylist()]) > sum(kinds) > 0:
        for table, of_table in zip(shuffled, (subset_metrics, baselines), strict=True):
            scores_there = matching_scores(_match_probabilities(table["predicted"], table["probability"]), kinds)
            _pop_prefixed(scores_there, "floor_")
            of_table["image_shuffled"] = scores_there
        comparisons.append(_beside_other_images(*shuffled, _MATCHED))
    return Report(
        split=split,
        samples=_samples(answers),
        rows=pairs.num_rows,
        unit="pairs",
        metric="balanced_accuracy" if both else "accuracy",
        metrics=scores,
        baselines=baselines,
        notes=() if both else (one_kind,),
        interval=interval(credits),
        comparisons=tuple(comparisons),
        subset_metrics=_of_part(subset_metrics, pairs, shuffled),
    )


def _report_on_retrieval(answers: pa.Table, split: str) -> Report:
    first = answers.filter(pc.is_valid(answers["image_embedding"]))
    if not first.num_rows:
        raise DataError(f"no image of split {split!r} has a caption to be found by; choose another split")
    image_N = image_ids(answers)
    place = {image: row for row, image in enumerate(image_N[pc.is_valid(answers["image_embedding"]).to_numpy()])}
    scores = retrieval_scores(
        _vectors(first["image_embedding"]),
        _vectors(answers["text_embedding"]),
        torch.tensor([place[image] for image in image_N]),
    )
    baselines = {"chance": _pop_prefixed(scores, "floor_")}
    credits = score_examples(answers, _COMPARED)
    # One figure to compare models by: the mean of all recalls, as "rsum" of the field is their sum.
    for metrics in (scores, baselines["chance"]):
        recalls = [value for name, value in metrics.items() if "recall_at" in name]
        metrics["mean_recall"] = sum(recalls) / len(recalls)
    return Report(
        split=split,
        samples=first.num_rows,
        rows=answers.num_rows,
        unit="captions",
        metric="mean_recall",
        metrics=scores,
        baselines=baselines,
        interval=interval(credits),
        comparisons=(compare("chance", "chance", credits, chance(answers, credits)),),
    )


def _with(answers: pa.Table, **columns: object) -> pa.Table:
    """The table with other values in some columns."""
    for name, values in columns.items():
        place = answers.schema.get_field_index(name)
        column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, answers.schema.field(place).type)
        answers = answers.set_column(place, answers.schema.field(place), column)
    return answers


def _shuffled(answers: pa.Table) -> tuple[pa.Table, pa.Table] | None:
    """The rows that were also asked of another image: as they were answered, and as of the other image."""
    same = answers.filter(pc.is_valid(answers["shuffled"]))
    if not same.num_rows:
        return None
    return same, _with(same, predicted=same["shuffled"], probability=same["shuffled_probability"])


def _beside_other_images(
    same: pa.Table, of_other: pa.Table, fields: TaskSpec, normalizer: Normalizer = "none"
) -> BaselineComparison:
    both = (score_examples(table, fields, normalizer) for table in (same, of_other))
    return compare("image_shuffled", "its own answers about other images", *both)


def _of_part(
    subset_metrics: dict[str, dict[str, float]], answers: pa.Table, shuffled: tuple[pa.Table, pa.Table] | None
) -> dict[str, dict[str, float]]:
    """The figures on the rows that were also asked of another image, where these are not all."""
    return subset_metrics if shuffled is not None and shuffled[0].num_rows < answers.num_rows else {}


def _with_target(answers: pa.Table, split: str, what: str) -> pa.Table:
    found = answers.filter(pc.is_valid(answers["target"]))
    if not found.num_rows:
        raise DataError(f"no {what} of split {split!r} has a right answer to score against; choose another split")
    return found


def _samples(answers: pa.Table) -> int:
    return len(np.unique(image_ids(answers)))


def _match_probabilities(answer: pa.ChunkedArray, probability: pa.ChunkedArray) -> list[float]:
    """Probability of a match from that of the better of the two answers."""
    pairs = zip(answer.to_pylist(), np.clip(probability.to_numpy(), 0, 1).tolist(), strict=True)
    return [p if given == MATCH else 1 - p for given, p in pairs]


def _pop_prefixed(scores: dict[str, float], prefix: str) -> dict[str, float]:
    """The entries whose names begin with ``prefix``, taken out of ``scores``, by the rest of their names."""
    names = [name for name in scores if name.startswith(prefix)]
    return {name.removeprefix(prefix): scores.pop(name) for name in names}


def _vectors(column: pa.ChunkedArray) -> torch.Tensor:
    flat = column.combine_chunks()
    return torch.from_numpy(np.array(flat.flatten())).view(len(flat), -1)
