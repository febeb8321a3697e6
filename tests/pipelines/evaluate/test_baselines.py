"""What is reached without looking is learned once, and kept with the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.tars.shards import ShardWriter
from pipelines.errors import DataError
from pipelines.evaluate.baselines import FILE, Baselines, check_baselines_are_learnable
from tests.pipelines.data.tar_maker import photo
from tests.pipelines.evaluate.test_build_report import ASKED, CAPTIONED, COMPARED, MATCHED
from vlmodel.metrics.answer_prior import AnswerPrior
from vlmodel.sample import Question, SampleTexts

TEXTS = [
    SampleTexts(("a dog runs", "a dog"), (Question("is it red?", "Yes."), Question("how many?", "two"))),
    SampleTexts(("a dog runs fast",), (Question("is it red?", "yes"), Question("is it big?", None))),
    SampleTexts((), (Question("is it red?", "yes"), Question("is it red?", "no"), Question("how many?", "2"))),
]
QUESTIONS = ["is it red?", "how many?", "never asked"]


def test_answers_in_other_spellings_count_together() -> None:
    found = AnswerPrior.learn([("q", "no"), ("q", "Yes"), ("q", "yes"), ("q", "yes."), ("q", "no")], "vqa")
    assert found.majority == "Yes"  # of equally frequent spellings the first
    assert AnswerPrior.learn([("q", "no"), ("q", "Yes"), ("q", "yes"), ("q", "no")]).majority == "no"


def test_they_are_the_same_once_they_were_kept(tmp_path: Path) -> None:
    learned = Baselines.learn(TEXTS, {"ask": ASKED, "tell": CAPTIONED}, "vqa", ["ab12"])
    assert AnswerPrior(**learned.tasks["ask"]).predict(QUESTIONS) == ["yes", "2", "yes"]
    assert learned.tasks["tell"]["caption"] in ("a dog runs", "a dog", "a dog runs fast")
    learned.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {FILE}
    assert Baselines.load(tmp_path) == learned
    assert learned.trained_on == ("ab12",)
    assert Baselines.load(tmp_path / "nowhere") is None
    (tmp_path / FILE).write_text('{"answers": null, "caption": null, "trained_on": []}')
    with pytest.raises(DataError, match="is of another version; train the model anew"):
        Baselines.load(tmp_path)


def test_only_what_a_task_needs_is_learned() -> None:
    assert Baselines.learn(TEXTS, {"find": COMPARED, "match": MATCHED}, "none") == Baselines()
    assert list(Baselines.learn(TEXTS, {"find": COMPARED, "tell": CAPTIONED}, "none").tasks) == ["tell"]
    with pytest.raises(DataError, match="no answered question"):
        Baselines.learn([SampleTexts(("a dog",))], {"": ASKED}, "none")


def test_they_are_learned_from_what_is_trained_on_where_the_data_to_judge_by_have_no_training_split(
    tmp_path: Path, ray_local: None
) -> None:
    for folder, split in (("judged", "test"), ("trained", "train")):
        (tmp_path / folder).mkdir()
        with ShardWriter(tmp_path / folder, split, max_samples=5) as writer:
            writer.add("0", {"image": (photo(0), "jpg")}, TEXTS[0])
    judged, trained = (
        build_index(str(tmp_path / name), IndexConfig(validation_fraction=0.0)) for name in ("judged", "trained")
    )
    with pytest.raises(
        DataError, match=r"no train sample of .*judged has questions, .* the model has no baselines\.json"
    ):
        check_baselines_are_learnable(judged, {"": ASKED})
    found = Baselines.learn_from_training_split(judged, [trained], {"": ASKED}, "none")
    assert found.tasks == {"": AnswerPrior.learn([("is it red?", "Yes."), ("how many?", "two")]).to_dict()}
    assert found.trained_on == (trained.hash,)
    check_baselines_are_learnable(judged, {"": COMPARED})
