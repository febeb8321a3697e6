"""Imports COCO captions (Chen et al. 2015, arXiv:1504.00325) and VQA v2 (Goyal et al. 2017, arXiv:1612.00837).

Both annotate COCO's images, so an image's captions and questions become one sample. Files are found at any depth by
the names they are published under (2014 and 2017; a year is not needed), or named by the settings.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.data.importers._answers import consensus_answer
from pipelines.data.importers._files import (
    find_file,
    fingerprint_files,
    key_of_image,
    load_json,
    resolve_path,
    source_folder,
)
from pipelines.data.importers._images import (
    MISSING_IMAGE,
    NoImages,
    SourceImages,
    open_source_images,
    read_image_sample,
)
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason
from pipelines.data.tars.shards import SPLITS
from pipelines.errors import DataError
from vlmodel.config import ConfigSection
from vlmodel.locations import Location
from vlmodel.sample import Question, SampleTexts


class SplitFiles(ConfigSection):
    """The files of one split, relative to the source folder; a file with an empty name is searched for."""

    captions: str = ""
    """Captions, as captions_train2014.json."""
    questions: str = ""
    """Questions, as v2_OpenEnded_mscoco_train2014_questions.json."""
    annotations: str = ""
    """Answers to the questions, as v2_mscoco_train2014_annotations.json; a test split may have none."""


class Config(Importer):
    """Settings of an import of captions, questions, or both, with the images in any sub-folder or in a plain tar."""

    kind: str = "coco"
    folder: Location
    """Folder that holds the JSON files and the images."""
    images: Location = ""
    """Folder or tar of the images, relative to ``folder``; empty for ``folder`` itself."""
    train: SplitFiles = SplitFiles()
    val: SplitFiles = SplitFiles()
    test: SplitFiles = SplitFiles()

    def fingerprint(self) -> str:
        root = source_folder(self.folder)
        files = [file for subset in self._find_files(root).values() for file in subset.values()]
        return fingerprint_files(root, [*files, *self._open_images(root).files()])

    def read(self) -> SourceContents:
        root = source_folder(self.folder)
        rejects: list[RejectedSample] = []
        unused: Counter[str] = Counter()
        pictures: list[tuple[str, _AnnotatedPicture]] = []
        documents = self._find_files(root)
        for split, files in documents.items():
            by_id: dict[int, _AnnotatedPicture] = {}
            if files["captions"]:
                rejects += _add_captions(by_id, files["captions"])
            if files["questions"]:
                rejects += _add_questions(by_id, files["questions"], files["annotations"], unused)
            pictures += [(split, picture) for picture in by_id.values()]
        images = self._open_images(root)
        used = [file for files in documents.values() for file in files.values()]
        records = _iterate_samples(pictures, images, rejects)
        return SourceContents(
            len(pictures), records, lambda: unused + images.count_skipped_files(used), documents.keys()
        )

    def _open_images(self, root: Path) -> SourceImages | NoImages:
        return open_source_images(self.inputs, resolve_path(self.images, root))

    def _find_files(self, root: Path) -> dict[str, dict[str, Path | None]]:
        by_split: dict[str, dict[str, Path | None]] = {}
        for split in SPLITS:
            subset: SplitFiles = getattr(self, split)
            # The digits exclude test-dev2015, a part of test2015. Without a year: files of one's own.
            years = (f"{split}20[0-9][0-9]", split)
            patterns = {
                "captions": [f"captions_{part}.json" for part in years] + ["captions.json"] * (split == "train"),
                "questions": [f"*{part}_questions.json" for part in years],
                "annotations": [f"*{part}_annotations.json" for part in years],
            }
            files = {
                name: find_file(root, usual, getattr(subset, name), f"source.{split}.{name}")
                for name, usual in patterns.items()
            }
            if files["captions"] or files["questions"]:
                by_split[split] = files
        if not by_split:
            raise DataError(
                f"{root} holds neither captions (as captions_train2017.json, captions_val.json or captions.json) nor "
                "questions (as v2_OpenEnded_mscoco_train2014_questions.json); point source.folder at these "
                "files, or name them by source.train.captions and source.train.questions"
            )
        return by_split


@dataclass
class _AnnotatedPicture:
    id: int
    names: list[str]
    """File names to try."""
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def _add_captions(by_id: dict[int, _AnnotatedPicture], file: Path) -> Iterator[RejectedSample]:
    tree = _read_json_document(file, "annotations")
    names = {}
    for image in tree.get("images", []):
        match image:
            case {"id": int(image_id), "file_name": str(name)}:
                names[image_id] = name
            case _:
                yield RejectedSample(file.name, FaultReason.BAD_SCHEMA, f"image {image!r:.80} needs id and file_name")
    for annotation in tree["annotations"]:
        match annotation:
            case {"image_id": int(image_id), "caption": str(caption)} if caption.strip():
                if image_id in names:
                    picture = by_id.setdefault(image_id, _AnnotatedPicture(image_id, [names[image_id]]))
                    picture.captions.append(caption.strip())
                else:
                    yield RejectedSample(f"{image_id}", MISSING_IMAGE, f"{file.name} lists no image of id {image_id}")
            case _:
                yield RejectedSample(
                    file.name, FaultReason.BAD_SCHEMA, f"caption {annotation!r:.80} needs image_id and caption"
                )


def _add_questions(
    by_id: dict[int, _AnnotatedPicture], file: Path, annotations: Path | None, unused: Counter[str]
) -> Iterator[RejectedSample]:
    tree = _read_json_document(file, "questions")
    answers = _read_annotator_answers(annotations, unused) if annotations else {}
    question_ids = set()
    subset = tree.get("data_subtype", "")
    for row in tree["questions"]:
        match row:
            case {"image_id": int(image_id), "question_id": int(question_id), "question": str(text)} if text.strip():
                question_ids.add(question_id)
                all_answers, answer = answers.get(question_id, ((), None))
                if annotations and answer is None:
                    detail = f"{annotations.name} has no answer to question {question_id}"
                    yield RejectedSample(f"{question_id}", FaultReason.MISSING_TEXT, detail)
                    continue
                names = [f"COCO_{subset}_{image_id:012d}.jpg", f"{image_id:012d}.jpg"]
                picture = by_id.setdefault(image_id, _AnnotatedPicture(image_id, names))
                picture.questions.append(Question(text.strip(), answer, all_answers, str(question_id)))
            case _:
                detail = f"question {row!r:.80} needs image_id, question_id and question"
                yield RejectedSample(file.name, FaultReason.BAD_SCHEMA, detail)
    unused["answers to questions that are not asked"] += len(answers.keys() - question_ids)


def _read_annotator_answers(file: Path, unused: Counter[str]) -> dict[int, tuple[tuple[str, ...], str | None]]:
    """Read all annotators' answers and their consensus, by question id."""
    by_question = {}
    for row in _read_json_document(file, "annotations", _reduce_record_to_answer)["annotations"]:
        match row:
            case {"question_id": int(question_id)}:
                annotated = row.get("answers")
                annotated = annotated if isinstance(annotated, list) else []
                answers = tuple(answer for answer in annotated if isinstance(answer, str) and answer.strip())
                chosen = row.get("multiple_choice_answer") or row.get("answer")
                chosen = chosen.strip() or None if isinstance(chosen, str) else None
                by_question[question_id] = answers, consensus_answer(answers, chosen) or chosen
            case _:
                unused["answers without question_id"] += 1
    return by_question


def _reduce_record_to_answer(tree: dict[str, Any]) -> Any:
    """Replace the record of one annotator by its answer while parsing: the 4.4 million dicts of VQA v2's train split
    would take gigabytes.
    """
    return sys.intern(tree["answer"]) if isinstance(tree.get("answer"), str) and "question_id" not in tree else tree


def _read_json_document(file: Path, needed: str, object_hook: Any = None) -> dict[str, Any]:
    tree = load_json(file, object_hook)
    if not isinstance(tree, dict) or not isinstance(tree.get(needed), list):
        raise DataError(f"{file} has no list {needed!r}; its name is that of another kind of file")
    return tree


def _iterate_samples(
    pictures: list[tuple[str, _AnnotatedPicture]], images: SourceImages | NoImages, rejects: list[RejectedSample]
) -> Iterator[SourceSample | RejectedSample]:
    yield from rejects
    for split, picture in pictures:
        texts, extra = SampleTexts(tuple(picture.captions), tuple(picture.questions)), {"image_id": picture.id}
        for name in picture.names:
            sample = read_image_sample(images, name, split, key_of_image(name), texts, extra)
            if isinstance(sample, SourceSample) or sample.reason is not MISSING_IMAGE:
                break
        yield sample if isinstance(sample, SourceSample) else sample._replace(key=key_of_image(picture.names[0]))
