"""What a model said when it was registered, and whether it says so elsewhere."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipelines.registry import golden
from pipelines.registry.errors import ArtifactError
from pipelines.registry.registry import Registry
from pipelines.registry.version_score import VersionScore
from tests.pipelines.registry.conftest import QUESTION, asked, picture, save_reading_model
from tests.pipelines.serve.conftest import DECODERS
from tests.pipelines.serve.conftest import save_model as save_decoder
from vlmodel.facts import Fact, LinkedFact
from vlmodel.inference import Predictor


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Predictor]:
    """A tiny model with that decoder."""

    def load(name: str) -> Predictor:
        return Predictor.from_pretrained(save_decoder(tmp_path_factory.mktemp(name), DECODERS[name]))

    return load


def test_each_picture_is_asked_as_it_is_and_in_other_formats(checkpoint: Path) -> None:
    predictor = Predictor.from_pretrained(checkpoint)
    found = golden.record_golden_answers(predictor, {"": asked()})
    images = [one.example().inputs["image"] for one in found]
    assert images[0] == picture(0)
    assert [Image.open(io.BytesIO(image)).format for image in images] == ["PNG", "JPEG", "PNG", "WEBP"]
    assert Image.open(io.BytesIO(images[2])).size == (24, 30)
    assert all(len(one.answers) == 4 and one.text == QUESTION for one in found)
    assert golden.differing_answers(predictor, found, 1e-4) == []


def test_another_model_gives_other_answers(checkpoint: Path, other_checkpoint: Path) -> None:
    found = golden.record_golden_answers(Predictor.from_pretrained(checkpoint), {"": asked()})
    lines = golden.differing_answers(Predictor.from_pretrained(other_checkpoint), found, 0.02)
    assert lines
    assert f"about '{QUESTION}'" in lines[0]
    assert "expected" in lines[0]


def test_noise_within_the_tolerance_is_no_difference(checkpoint: Path) -> None:
    predictor = Predictor.from_pretrained(checkpoint)
    one = golden.record_golden_answers(predictor, {"": asked()})[0]
    moved = [one.model_copy(update={"answers": [(answer, score + 0.01) for answer, score in one.answers]})]
    assert golden.differing_answers(predictor, moved, 0.011) == []
    assert len(golden.differing_answers(predictor, moved, 0.009)) == 1
    broken = [one.model_copy(update={"answers": [(answer, float("nan")) for answer, _ in one.answers]})]
    assert len(golden.differing_answers(predictor, broken, 0.5)) == 1


@pytest.mark.parametrize("name", ["caption", "answer", "contrastive", "matching", "all"])
def test_every_kind_of_task_has_golden_answers(decoded: Callable[[str], Predictor], name: str) -> None:
    predictor = decoded(name)
    tasks = predictor.processor.tasks
    found = golden.record_golden_answers(predictor, {task: asked(1, "is there a circle ?") for task in tasks})
    assert {one.task for one in found} == set(tasks)
    assert golden.differing_answers(predictor, found, 1e-4) == []
    written = [one for one in found if tasks[one.task].writes_text]
    for one in written:
        other = one.model_copy(update={"answers": [(f"{one.answers[0][0]} or not", one.answers[0][1])]})
        assert len(golden.differing_answers(predictor, [other], 0.5)) == 1, (
            "a text that is written is another by a letter"
        )


def test_a_picture_that_fails_here_is_a_difference(checkpoint: Path) -> None:
    predictor = Predictor.from_pretrained(checkpoint)
    one = golden.record_golden_answers(predictor, {"": asked()})[0]
    [line] = golden.differing_answers(predictor, [one.model_copy(update={"inputs": {"image": ""}})], 0.02)
    assert "fails here" in line


def test_they_are_stored_with_the_version_and_guarded_by_its_manifest(
    registry: Registry, run_id: str, checkpoint: Path, score: VersionScore
) -> None:
    version = registry.log_model(run_id, checkpoint, asked(), score)
    local = registry.download(version)
    assert local.golden_answers_file is not None
    stored = golden.read_golden_answers(local.golden_answers_file)
    assert len(stored) == 4
    assert golden.differing_answers(Predictor.from_pretrained(local.folder), stored, 1e-4) == []
    local.golden_answers_file.write_bytes(b"[]")
    restored = registry.download(version).golden_answers_file
    assert restored is not None
    assert golden.read_golden_answers(restored) == stored


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text('[{"task": ""')
    with pytest.raises(ArtifactError, match=r"golden\.json' cannot be read"):
        golden.read_golden_answers(tmp_path / "golden.json")
    shutil.rmtree(tmp_path)
    with pytest.raises(ArtifactError, match="deploy again"):
        golden.read_golden_answers(tmp_path / "golden.json")


def test_facts_are_golden_too(tmp_path: Path) -> None:
    """The model answers with the facts of its registration, whatever a store says later."""
    predictor = Predictor.from_pretrained(save_reading_model(tmp_path / "model", 0))
    fact = Fact("1", "shape", "Is", "red", "the shape is red", "test")
    linked = ((LinkedFact(fact, 0.5, (19, 24)),),)
    example = replace(asked(), facts=linked, knowledge_version=3)
    found = golden.record_golden_answers(predictor, {"": example})
    golden.write_golden_answers(found, tmp_path)
    read = golden.read_golden_answers(tmp_path / golden.GOLDEN)
    assert read == found
    assert (read[0].example().facts, read[0].example().knowledge_version) == (linked, 3)
    assert golden.differing_answers(predictor, read, 1e-4) == []
    without = [one.model_copy(update={"facts": ()}) for one in read]
    assert golden.differing_answers(predictor, without, 1e-6), "this model reads facts"
