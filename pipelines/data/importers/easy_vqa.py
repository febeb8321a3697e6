"""Imports easy-VQA: ``data/{train,test}/questions.json`` and 64x64 PNGs (github.com/vzhou842/easy-VQA).

The images of a split lie in ``data/SPLIT/images/`` or in ``SPLIT_images.tar``. ``questions.json`` is one list of
``[question, answer, image id]``; image ids restart in each split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.data.importers._files import fingerprint_files, load_json, source_folder
from pipelines.data.importers._images import NoImages, SourceImages, read_image_sample
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.shards import SPLITS
from pipelines.errors import DataError
from vlmodel.locations import Location
from vlmodel.sample import Question, SampleTexts


class Config(Importer):
    """Settings of an import of easy-VQA or any data set in its layout; a ``val`` split beside ``train`` and ``test`` is
    read too.
    """

    kind: str = "easy_vqa"
    folder: Location
    """Folder that holds ``data/``, or ``data/`` itself."""

    def fingerprint(self) -> str:
        root = source_folder(self.folder)
        splits = self._split_folders(root)
        images = [file for split in splits for file in self._open_images(root, split).files()]
        return fingerprint_files(root, [*splits.values(), *images])

    def read(self) -> SourceContents:
        root = source_folder(self.folder)
        rejects: list[RejectedSample] = []
        samples: list[tuple[str, int, list[Question]]] = []
        splits = self._split_folders(root)
        for split, file in splits.items():
            by_image: dict[int, list[Question]] = {}
            for number, row in enumerate(_read_question_rows(file)):
                try:
                    image_id, question = _parse_question(row)
                except SampleError as error:
                    rejects.append(RejectedSample(f"{split}/questions.json[{number}]", error.reason, error.detail))
                else:
                    by_image.setdefault(image_id, []).append(question)
            samples += [(split, image_id, questions) for image_id, questions in sorted(by_image.items())]
        images = {split: self._open_images(root, split) for split in splits}

        def count_skipped_files() -> Counter[str]:
            return sum((of_split.count_skipped_files() for of_split in images.values()), Counter())

        return SourceContents(
            len(samples), _iterate_samples(samples, images, rejects), count_skipped_files, splits.keys()
        )

    def _split_folders(self, root: Path) -> dict[str, Path]:
        files = {split: self._data_folder(root) / split / "questions.json" for split in SPLITS}
        present = {split: file for split, file in files.items() if file.is_file()}
        if not present:
            raise DataError(f"{root} has no data/train/questions.json; point source.folder at an easy-VQA folder")
        return present

    def _data_folder(self, root: Path) -> Path:
        return root / "data" if (root / "data").is_dir() else root

    def _open_images(self, root: Path, split: str) -> SourceImages | NoImages:
        if not self.imports_input("image"):
            return NoImages()
        folder, tar = self._data_folder(root) / split / "images", root / f"{split}_images.tar"
        for place in (folder, tar):
            if place.exists():
                return SourceImages(place)
        raise DataError(f"the images of split {split!r} are missing: neither {folder} nor {tar} exists")


def _read_question_rows(file: Path) -> list[Any]:
    rows = load_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file} is not a JSON list of [question, answer, image id]; download it again")
    return rows


def _parse_question(row: Any) -> tuple[int, Question]:
    match row:
        case [str(question), str(answer), int(image_id)] if question.strip() and answer.strip():
            return image_id, Question(question, answer)
    raise SampleError(FaultReason.BAD_SCHEMA, f"{row!r:.80} is not [question, answer, image id]")


def _iterate_samples(
    samples: list[tuple[str, int, list[Question]]],
    images: dict[str, SourceImages | NoImages],
    rejects: list[RejectedSample],
) -> Iterator[SourceSample | RejectedSample]:
    yield from rejects
    for split, image_id, questions in samples:
        texts, extra = SampleTexts((), tuple(questions)), {"image_id": image_id}
        yield read_image_sample(images[split], f"{image_id}.png", split, f"{split}-{image_id}", texts, extra)
