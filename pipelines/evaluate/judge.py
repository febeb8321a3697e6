"""From the table of a task's answers to its report: one function for each kind of task, chosen by what it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.data.errors import DataError
from pipelines.data.sample import Texts
from pipelines.evaluate.credit import images_of
from pipelines.evaluate.floors import Floors
from pipelines.evaluate.metrics.answers import vqa_accuracy
from pipelines.evaluate.metrics.calibration import calibration_error
from pipelines.evaluate.metrics.captions import caption_scores, constant_caption, with_words
from pipelines.evaluate.metrics.matching import matching_scores
from pipelines.evaluate.metrics.retrieval import retrieval_scores
from pipelines.evaluate.report import Report
from vlmodel.fields import MATCH, Fields, is_match

_TOP_SAYS_LITTLE = 10
"""With fewer classes than this many times k, nearly everything is among the k best."""


def judge(
    answers: pa.Table, split: str, fields: Fields, training: Callable[[], Iterable[Texts]], labels: Sequence[str] = ()
) -> Report:
    """Report on a table of ``predict.SCHEMA``.

    Args:
        fields: what the task reads, which says what kind of task it is.
        training: the texts of the training split, from which floors are learned; called where they are needed.
        labels: the answers that a classifier chooses among.

    Raises:
        DataError: no row has anything to be judged by.
    """
    if fields.target == "none":
        return _retrieval(answers, split)
    if fields.target == "match":
        return _matching(answers, split)
    if fields.target == "tokens" and not fields.text:
        return _captions(answers, split, training)
    pairs = ((q.question, q.answer) for texts in training() for q in texts.questions if q.answer is not None)
    return judge_answers(answers, split, Floors.learn(pairs), labels)


def judge_answers(answers: pa.Table, split: str, floors: Floors, labels: Sequence[str] = ()) -> Report:
    """Answers to questions: accuracy, agreement with annotators where there are several, calibration."""
    answered = _with_target(answers, split, "question")
    targets, predicted = answered["target"].to_pylist(), answered["predicted"].to_pylist()
    right = [target == given for target, given in zip(targets, predicted, strict=True)]
    probabilities = np.clip(answered["probability"].to_numpy(), 0, 1)
    figures = {"accuracy": sum(right) / len(right)}
    references = answered["references"].to_pylist()
    annotated = any(len(given) > 1 for given in references)
    if annotated:
        figures |= vqa_accuracy(predicted, references)
    ranked = answered["answers"].to_pylist()
    k = max(len(best) for best in ranked)
    if k > 1 and len(labels) > _TOP_SAYS_LITTLE * k:
        figures[f"top{k}_accuracy"] = sum(t in best for t, best in zip(targets, ranked, strict=True)) / len(targets)
    figures |= calibration_error(probabilities.tolist(), right)

    beside = {name: {"accuracy": value} for name, value in floors.score(answered).items()}
    if annotated:
        guesses = {"majority": [floors.majority] * len(targets), "question_only": floors.answers(answered["text"])}
        for name, guessed in guesses.items():
            beside[name] |= vqa_accuracy(guessed, references)
    shuffled = answered.filter(pc.is_valid(answered["shuffled"]))
    if shuffled.num_rows:
        of_other = shuffled["shuffled"].to_pylist()
        hits = pc.sum(pc.equal(shuffled["target"], shuffled["shuffled"])).as_py()
        beside["image_shuffled"] = {"accuracy": hits / shuffled.num_rows}
        if annotated:
            beside["image_shuffled"] |= vqa_accuracy(of_other, shuffled["references"].to_pylist())

    totals, hit = Counter(targets), Counter(t for t, ok in zip(targets, right, strict=True) if ok)
    known = set(labels)
    unknown = sum(n for answer, n in totals.items() if labels and answer not in known)
    notes = [f"{sum(right)} of {len(right)} questions answered right"]
    if unknown:
        notes.append(f"{unknown} right answers are outside the model's vocabulary and count as wrong")
    return Report(
        split=split,
        samples=_samples(answers),
        rows=len(targets),
        unit="questions",
        metric="accuracy",
        figures=figures,
        floors=beside,
        notes=tuple(notes),
        by_answer=[(a, n, hit[a] / n) for a, n in sorted(totals.items(), key=lambda item: (-item[1], item[0]))],
    )


def _captions(answers: pa.Table, split: str, training: Callable[[], Iterable[Texts]]) -> Report:
    place = answers.schema.get_field_index("references")
    judged = pa.array(with_words(answers["references"].to_pylist()), answers.schema.field(place).type)
    answers = answers.set_column(place, "references", judged)
    captioned = answers.filter(pc.greater(pc.list_value_length(answers["references"]), 0))
    if not captioned.num_rows:
        raise DataError(f"no image of split {split!r} has a caption with a word to compare with; choose another split")
    references = captioned["references"].to_pylist()
    try:
        constant = constant_caption(caption for texts in training() for caption in texts.captions)
    except ValueError as error:
        raise DataError(f"captions stand beside the most typical one of the training split: {error}") from None
    floors = {"constant_caption": caption_scores([constant] * len(references), references)}
    shuffled = captioned.filter(pc.is_valid(captioned["shuffled"]))
    notes = [
        f'constant caption: "{constant}"',
        f"{pc.count_distinct(captioned['predicted']).as_py()} different captions",
    ]
    if shuffled.num_rows:
        floors["image_shuffled"] = caption_scores(shuffled["shuffled"].to_pylist(), shuffled["references"].to_pylist())
        if shuffled.num_rows < captioned.num_rows:
            notes.append(f"image shuffled: of the first {shuffled.num_rows} images")
    return Report(
        split=split,
        samples=_samples(answers),
        rows=captioned.num_rows,
        unit="images",
        metric="cider",
        figures=caption_scores(captioned["predicted"].to_pylist(), references),
        floors=floors,
        notes=tuple(notes),
    )


def _matching(answers: pa.Table, split: str) -> Report:
    pairs = _with_target(answers, split, "pair")
    matches = [is_match(target) for target in pairs["target"].to_pylist()]
    scores = matching_scores(_match_probabilities(pairs["predicted"], pairs["probability"]), matches)
    floors = {"constant": _taken(scores, "floor_")}
    both = "balanced_accuracy" in scores
    one_kind = (
        f"every pair is {'a match' if matches[0] else 'no match'}, so only accuracy can be said; captions meet another "
        "image of their batch: raise predict.batch above 1, or choose a split with more images"
    )
    shuffled = pairs.filter(pc.is_valid(pairs["shuffled"]))
    of_shuffled = [is_match(target) for target in shuffled["target"].to_pylist()]
    if len(set(of_shuffled)) == 2:
        of_other = matching_scores(
            _match_probabilities(shuffled["shuffled"], shuffled["shuffled_probability"]),
            of_shuffled,
        )
        _taken(of_other, "floor_")
        floors["image_shuffled"] = of_other
    return Report(
        split=split,
        samples=_samples(answers),
        rows=pairs.num_rows,
        unit="pairs",
        metric="balanced_accuracy" if both else "accuracy",
        figures=scores,
        floors=floors,
        notes=() if both else (one_kind,),
    )


def _retrieval(answers: pa.Table, split: str) -> Report:
    first = answers.filter(pc.is_valid(answers["image_embedding"]))
    if not first.num_rows:
        raise DataError(f"no image of split {split!r} has a caption to be found by; choose another split")
    image_N = images_of(answers)
    place = {image: row for row, image in enumerate(image_N[pc.is_valid(answers["image_embedding"]).to_numpy()])}
    scores = retrieval_scores(
        _vectors(first["image_embedding"]),
        _vectors(answers["text_embedding"]),
        torch.tensor([place[image] for image in image_N]),
    )
    floors = {"chance": _taken(scores, "floor_")}
    # One figure to compare models by: the mean of all recalls, as "rsum" of the field is their sum.
    for figures in (scores, floors["chance"]):
        recalls = [value for name, value in figures.items() if "recall_at" in name]
        figures["mean_recall"] = sum(recalls) / len(recalls)
    return Report(
        split=split,
        samples=first.num_rows,
        rows=answers.num_rows,
        unit="captions",
        metric="mean_recall",
        figures=scores,
        floors=floors,
    )


def _with_target(answers: pa.Table, split: str, what: str) -> pa.Table:
    found = answers.filter(pc.is_valid(answers["target"]))
    if not found.num_rows:
        raise DataError(f"no {what} of split {split!r} has a right answer to score against; choose another split")
    return found


def _samples(answers: pa.Table) -> int:
    return len(np.unique(images_of(answers)))


def _match_probabilities(answer: pa.ChunkedArray, probability: pa.ChunkedArray) -> list[float]:
    """Probability of a match from that of the better of the two answers."""
    pairs = zip(answer.to_pylist(), np.clip(probability.to_numpy(), 0, 1).tolist(), strict=True)
    return [p if given == MATCH else 1 - p for given, p in pairs]


def _taken(scores: dict[str, float], prefix: str) -> dict[str, float]:
    """The entries whose names begin with ``prefix``, taken out of ``scores``, by the rest of their names."""
    names = [name for name in scores if name.startswith(prefix)]
    return {name.removeprefix(prefix): scores.pop(name) for name in names}


def _vectors(column: pa.ChunkedArray) -> torch.Tensor:
    flat = column.combine_chunks()
    return torch.from_numpy(np.array(flat.flatten())).view(len(flat), -1)
