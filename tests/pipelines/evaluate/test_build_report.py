"""Reports of every kind of task, worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import DataError
from pipelines.evaluate.baselines import Baselines
from pipelines.evaluate.build_report import build_report
from pipelines.evaluate.examples import choose_examples
from pipelines.evaluate.report import TaskReport
from pipelines.evaluate.schema import SCHEMA
from vlmodel.metrics.answer_prior import AnswerPrior
from vlmodel.sample import Question, SampleTexts
from vlmodel.task import Task
from vlmodel.tasks import caption, contrastive, matching, vqa

ASKED = vqa.Config()
CAPTIONED = caption.Config()
MATCHED = matching.Config(pairs="questions")
COMPARED = contrastive.Config()


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(SCHEMA.names) | row for row in rows], schema=SCHEMA)


def answers(*rows: tuple[str, str, str | None, str], **more: Any) -> pa.Table:
    """(key, question, right answer, predicted) rows; the second best answer is always "no"."""
    return table(
        *(
            {
                "key": key, "text": text, "target": target, "references": [target] if target else [],
                "predicted": predicted, "probability": 0.5, "answers": [predicted, "no"],
                "probabilities": [0.5, 0.3], **more,
            }
            for key, text, target, predicted in rows
        )
    )  # fmt: skip


LEARNED = AnswerPrior.learn(
    [("is it red?", "yes"), ("is it red?", "yes"), ("how many?", "2"), ("how many?", "1"), ("?", "no")]
)


TRAINING = [
    SampleTexts(("a dog runs", "a dog"), (Question("is it red?", "yes"), Question("how many?", "2"))),
    SampleTexts(("a dog runs fast",), (Question("is it red?", "yes"),)),
]
LEARNED_BY = {
    task.kind: Baselines.learn(TRAINING, {"": task}, "none") for task in (ASKED, CAPTIONED, MATCHED, COMPARED)
}


def report_of(rows: pa.Table, split: str, task: Task, *more: Any) -> TaskReport:
    return build_report(rows, split, task, LEARNED_BY[task.kind], *more)


def report_on_answers(rows: pa.Table, split: str, prior: AnswerPrior, *more: Any) -> TaskReport:
    return build_report(rows, split, ASKED, Baselines({"": prior.to_dict()}), *more)


def test_baselines_are_the_most_frequent_answers() -> None:
    assert LEARNED.majority == "yes"
    assert LEARNED.by_question == {"is it red?": "yes", "how many?": "1", "?": "no"}  # of equals the first by name


def test_every_answered_question_counts_and_unknown_ones_do_not() -> None:
    given = answers(
        ("a", "is it red?", "yes", "yes"),
        ("a", "how many?", "2", "1"),
        ("b", "how many?", "1", "1"),
        ("b", "never asked before", "zebra", "yes"),
        ("c", "is it red?", "no", "yes"),
        ("c", "is it blue?", None, "yes"),
    )
    report = report_on_answers(given, "val", LEARNED, ["yes", "no", "1", "2"])
    assert (report.samples, report.rows, report.metric) == (3, 5, "accuracy")
    assert report.value == report.metrics["accuracy"] == pytest.approx(2 / 5)
    assert report.baselines["majority"] == {"accuracy": pytest.approx(1 / 5)}
    assert report.baselines["question_only"] == {"accuracy": pytest.approx(2 / 5)}
    assert report.best_baseline_value == pytest.approx(2 / 5)
    assert "image_shuffled" not in report.baselines
    assert report.by_answer == [("1", 1, 1.0), ("2", 1, 0.0), ("no", 1, 0.0), ("yes", 1, 1.0), ("zebra", 1, 0.0)]
    assert report.tracked_metrics()["val/floor_question_only"] == pytest.approx(2 / 5)
    assert report.tracked_metrics("vqa")["val/vqa/accuracy"] == pytest.approx(2 / 5)
    assert "accuracy 0.4000  (5 questions, 3 samples)" in str(report)
    assert "1 right answers are outside" in str(report)


def test_the_k_best_say_something_among_many_answers_only() -> None:
    given = answers(("a", "q", "no", "yes"), ("b", "q", "maybe", "yes"))
    assert "top2_accuracy" not in report_on_answers(given, "val", LEARNED, ["yes", "no"]).metrics
    many = [str(n) for n in range(21)]
    assert report_on_answers(given, "val", LEARNED, many).metrics["top2_accuracy"] == 0.5


def test_answers_about_other_images_are_a_baseline() -> None:
    given = pa.concat_tables(
        [answers(("a", "q", "yes", "yes"), shuffled="no"), answers(("b", "q", "no", "no"), shuffled="no"),
         answers(("c", "q", "no", "no"))]
    )  # fmt: skip
    report = report_on_answers(given, "val", LEARNED)
    assert report.baselines["image_shuffled"] == {"accuracy": 0.5}
    assert report.metrics["accuracy"] == 1


def test_answers_about_other_images_stand_beside_those_about_the_same_images() -> None:
    """A quarter of 40 rows was asked of another image: those rows are all right, the others are wrong."""
    asked = answers(*((f"a{n}", "q", "yes", "yes") for n in range(10)), shuffled="no")
    others = answers(*((f"b{n}", "q", "yes", "no") for n in range(30)))
    report = report_on_answers(pa.concat_tables([asked, others]), "val", LEARNED)
    assert report.value == 0.25
    assert report.baselines["image_shuffled"] == {"accuracy": 0}
    assert report.subset_metrics == {"image_shuffled": {"accuracy": 1}}
    (found,) = (one for one in report.comparisons if one.name == "image_shuffled")
    assert (found.model, found.baseline, found.relation, found.rows) == (1, 0, "better", 10)
    assert "model, those rows" in str(report)
    assert report.tracked_metrics()["val/beside_image_shuffled"] == 1
    assert report.best_baseline_value == 1  # always "yes"; a floor of a part of the rows is not one of all


def test_a_model_below_its_baseline_is_called_so() -> None:
    """Always "yes" is right in 30 of 40 rows, the model in 10 others."""
    rows = answers(*((f"a{n}", "never asked", "yes" if n < 30 else "no", "no") for n in range(40)))
    report = report_on_answers(rows, "val", LEARNED)
    assert report.relation_to_baselines == "worse"
    assert 'accuracy is worse than always "yes" (0.7500) by 0.5000' in str(report)
    assert "accuracy 0.2500  (40 questions, 40 samples)  95 % interval 0.1419 to 0.4019" in str(report)
    low, high = report.tracked_metrics()["val/accuracy_low"], report.tracked_metrics()["val/accuracy_high"]
    assert (round(low, 4), round(high, 4)) == (0.1419, 0.4019)


def test_answers_in_other_spellings_are_right_by_the_rules() -> None:
    rows = answers(("a", "q", "Two dogs.", "2 dogs"), ("b", "q", "Yes", "yes"), ("c", "q", "yes", "no"))
    report = report_of(rows, "val", ASKED, ["yes", "no", "2 dogs"], "vqa")
    assert report.value == pytest.approx(2 / 3)
    assert report.by_answer == [("yes", 2, 0.5), ("2 dogs", 1, 1.0)]
    assert "outside the model's vocabulary" not in str(report)
    assert report_of(rows, "val", ASKED, ["yes", "no"]).value == 0
    assert [row.answer.right for row in choose_examples(rows, ASKED, 3, normalizer="vqa")].count(True) == 2


def test_texts_that_were_cut_are_counted() -> None:
    rows = pa.concat_tables(
        [answers(("a", "q", "yes", "yes"), truncated=True), answers(("b", "q", "yes", "yes"), truncated=False)]
    )
    assert "1 of 2 texts were cut" in str(report_of(rows, "val", ASKED))
    assert "cut" not in str(report_of(rows.slice(1), "val", ASKED))


def test_several_annotators_make_agreement_a_metric() -> None:
    given = answers(("a", "how many?", "2", "2"), references=["2"] * 3 + ["3"] * 7)
    report = report_of(given, "val", ASKED, ["2", "yes"])
    assert report.metrics["vqa_accuracy"] == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert report.baselines["question_only"]["vqa_accuracy"] == report.metrics["vqa_accuracy"]
    assert report.baselines["majority"]["vqa_accuracy"] == 0
    assert "image_shuffled" not in report.baselines


def test_agreement_has_a_baseline_of_other_images_too() -> None:
    given = pa.concat_tables(
        [answers(("a", "q", "3", "3"), shuffled="2", references=["2"] * 3 + ["3"] * 7),
         answers(("b", "q", "2", "2"), shuffled="3", references=["2"] * 10),
         answers(("c", "q", "2", "2"), references=["2"] * 10)]
    )  # fmt: skip
    report = report_on_answers(given, "val", LEARNED)
    # Of the two that were asked of another image: "2" of three annotators among ten, and "3" of none.
    agreed = pytest.approx((3 * 2 / 3 + 7) / 10 / 2)
    assert report.baselines["image_shuffled"] == {"accuracy": 0, "vqa_accuracy": agreed}
    assert report.metrics["vqa_accuracy"] == 1


def test_captions_stand_beside_a_constant_one_and_those_of_other_images() -> None:
    rows = [
        {"key": key, "text": "", "target": true[0], "references": true, "predicted": said, "probability": 0.1,
         "shuffled": other}
        for key, true, said, other in (
            ("a", ["a dog runs on grass", "a brown dog"], "a dog runs on grass", "two men sit on a bench"),
            ("b", ["two men sit on a bench", "men sitting"], "two men sit on a bench", "a dog runs on grass"),
        )
    ]  # fmt: skip
    report = report_of(table(*rows), "val", CAPTIONED)
    assert (report.metric, report.unit, report.rows) == ("cider", "images", 2)
    assert report.metrics["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert report.value > report.best_baseline_value
    assert set(report.baselines) == {"constant_caption", "image_shuffled"}
    assert report.baselines["image_shuffled"]["cider"] < report.value
    assert 'constant caption: "a dog runs' in str(report)
    near = {(None, "a"): ["a brown dog", "a dog runs", "the brown dog runs"], (None, "b"): ["two men sit", "men"]}
    copied = report_of(table(*rows), "val", CAPTIONED, (), "none", "", near)
    assert {"nearest_caption", "consensus"} < set(copied.baselines)
    assert 0 < copied.baselines["consensus"]["cider"] < copied.value
    assert copied.best_baseline_value == report.best_baseline_value  # who copies looks: the gate does not count it
    exact = {(None, row["key"]): [row["target"]] for row in rows}
    equal = report_of(table(*rows), "val", CAPTIONED, (), "none", "", exact)
    assert equal.baselines["nearest_caption"]["cider"] == equal.value > equal.best_baseline_value
    assert equal.relation_to_baselines == report.relation_to_baselines
    del near[None, "b"]  # an image without neighbours: there is nothing to compare with
    assert "consensus" not in report_of(table(*rows), "val", CAPTIONED, (), "none", "", near).baselines


def test_matching_counts_both_kinds_alike_and_knows_a_match_by_any_name() -> None:
    rows = [
        {"key": key, "text": "t", "target": target, "references": [], "predicted": said, "probability": p}
        for key, target, said, p in (
            ("a", "match", "match", 0.9),
            ("b", "Yes", "no match", 0.6),
            ("c", "no-match", "no match", 0.8),
            ("d", "no", "no match", 0.7),
        )
    ]
    report = report_of(table(*rows), "val", MATCHED)
    assert report.value == pytest.approx(0.75)
    assert report.metrics["roc_auc"] == 1
    assert report.baselines["constant"] == {"accuracy": 0.5, "balanced_accuracy": 0.5, "roc_auc": 0.5}


def test_matching_of_one_kind_is_evaluated_by_accuracy_and_says_why() -> None:
    pairs = answers(("a", "t", "match", "match"), ("b", "t", "yes", "no match"), probability=0.6)
    report = report_of(pairs, "val", MATCHED)
    assert (report.metric, report.value, report.best_baseline_value) == ("accuracy", 0.5, 1.0)
    assert report.metrics.keys() == {"accuracy", "ece"}
    assert "every pair is a match, so only accuracy can be said" in str(report)
    assert "raise predict.batch above 1" in str(report)


def test_captions_without_a_word_are_no_references() -> None:
    said = {"text": "", "predicted": "a dog", "probability": 0.1}
    rows = [
        {"key": "a", "references": ["a dog", "..."], **said},
        {"key": "b", "references": ["...", "?!"], **said},
        {"key": "c", "references": ["two men"], **said},
    ]
    report = report_of(table(*rows), "val", CAPTIONED)
    assert (report.rows, report.samples) == (2, 3)
    assert report.metrics == report_of(table(rows[0] | {"references": ["a dog"]}, rows[2]), "val", CAPTIONED).metrics
    with pytest.raises(DataError, match="no image of split 'val' has a caption with a word"):
        report_of(table(rows[1]), "val", CAPTIONED)
    with pytest.raises(DataError, match="none of the 1 captions has a word; the training split needs at least one"):
        Baselines.learn([SampleTexts(("...",))], {"": CAPTIONED}, "none")


def test_retrieval_ranks_both_ways() -> None:
    basis = np.eye(3, dtype=np.float32)
    rows = [
        {"key": f"{image}", "text": f"{image}{n}", "target": None, "references": [], "predicted": "similarity",
         "probability": 1.0, "image_embedding": basis[image] if n == 0 else None,
         "text_embedding": basis[(image + n) % 3]}
        for image in range(3) for n in range(2)
    ]  # fmt: skip
    report = report_of(table(*rows), "val", COMPARED)
    assert (report.samples, report.rows, report.unit) == (3, 6, "captions")
    assert report.metrics["text_to_image_recall_at_1"] == 0.5
    assert report.baselines["chance"]["text_to_image_recall_at_1"] == pytest.approx(1 / 3)
    (random_order_scores,) = report.comparisons
    assert random_order_scores.baseline == pytest.approx(report.best_baseline_value)
    assert "median_rank" not in "".join(report.baselines["chance"])
    assert report.value == pytest.approx((0.5 + 1 + 1 + report.metrics["image_to_text_recall_at_1"] + 1 + 1) / 6)


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(DataError, match="no question of split 'test' has a right answer"):
        report_of(answers(("a", "q", None, "yes")), "test", ASKED, ["yes"])
    with pytest.raises(ValueError, match="no answered question"):
        AnswerPrior.learn([])
    captions = table({"key": "a", "text": "", "references": [], "predicted": "x", "probability": 1.0})
    with pytest.raises(DataError, match="no image of split 'test' has a caption"):
        report_of(captions, "test", CAPTIONED)


def test_examples_are_half_wrong_where_there_are_enough() -> None:
    right = [(f"r{n}", "q", "yes", "yes") for n in range(9)]
    wrong = [(f"w{n}", "q", "no", "yes") for n in range(9)]
    chosen = choose_examples(answers(*right, *wrong), ASKED, 6)
    assert sorted(row.key[0] for row in chosen) == ["r"] * 3 + ["w"] * 3
    assert chosen == choose_examples(answers(*right, *wrong), ASKED, 6)
    assert [row.key[0] for row in choose_examples(answers(*right, wrong[0]), ASKED, 6)] == ["w"] + ["r"] * 5


def test_captions_and_retrieved_texts_make_examples_too() -> None:
    captions = table({"key": "a", "text": "", "target": "t", "references": ["t"], "predicted": "x", "probability": 1.0})
    (example,) = choose_examples(captions, CAPTIONED, 4)
    chosen = example.answer
    assert (chosen.title, chosen.right, chosen.answer, chosen.predicted) == ("", None, "t", "x")
    rows = [
        {"key": key, "text": text, "probability": 1.0, "image_embedding": image, "text_embedding": description}
        for key, text, image, description in (
            ("a", "of a", [1.0, 0.0], [1.0, 0.0]),
            ("a", "also of a", None, [0.9, 0.0]),
            ("b", "of b", [0.5, 0.1], [0.0, 1.0]),
        )
    ]  # fmt: skip
    found = {row.key: row.answer for row in choose_examples(table(*rows), COMPARED, 4)}
    assert (found["a"].predicted, found["a"].right) == ("of a", True)
    assert (found["b"].predicted, found["b"].right, found["b"].answer) == ("of a", False, "of b")
