"""Imports a day of corrections that a service received (pipelines/records/corrections.py)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from pipelines.data.importers._answers import consensus_answer
from pipelines.data.importers._files import fingerprint_files, open_regular_file, source_folder
from pipelines.data.importers._images import NoImages, SourceImages, open_source_images, read_image_sample
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.errors import DataError
from pipelines.records.corrections import CORRECTIONS, IMAGES, Correction
from vlmodel.locations import Location
from vlmodel.sample import Question, SampleTexts


class Config(Importer):
    """Settings of an import of corrections: a picture with all corrections of it becomes one sample of split train.

    Of one sender's answers to one question the last counts; of several senders' answers the most common one is the
    target, and all are stored.
    """

    kind: str = "feedback"
    folder: Location
    """Folder of one past day in the spool: serve.feedback.folder/2026-01-31."""
    senders: int = Field(1, ge=1)
    """Fewest senders that must agree on an answer or a caption; others are left out."""
    test_fraction: float = Field(default=0, ge=0, lt=1)
    """Share of the corrections that becomes split test; none by default, as they are for training."""

    def fingerprint(self) -> str:
        root = self._day_folder()
        return fingerprint_files(root, [*self._find_files(root), *self._open_images(root).files()])

    def read(self) -> SourceContents:
        root = self._day_folder()
        by_image: defaultdict[str, list[Correction]] = defaultdict(list)
        rejects = []
        for file in self._find_files(root):
            try:
                with open_regular_file(file) as opened:
                    correction = Correction.model_validate_json(opened.read())
            except SampleError as error:
                rejects.append(RejectedSample(file.name, error.reason, error.detail))
            except ValidationError as error:
                rejects.append(RejectedSample(file.name, FaultReason.BAD_SCHEMA, str(error.errors()[0]["msg"])))
            else:
                by_image[correction.image].append(correction)
        images = self._open_images(root)
        return SourceContents(len(by_image), self._read_samples(images, by_image, rejects), images.count_skipped_files)

    def _day_folder(self) -> Path:
        root = source_folder(self.folder)
        if not (root / CORRECTIONS).is_dir():
            raise DataError(f"{root} has no {CORRECTIONS}/; point source.folder at the folder of one day in a spool")
        return root

    def _find_files(self, root: Path) -> list[Path]:
        return sorted(file for file in (root / CORRECTIONS).glob("*.json") if not file.name.startswith("."))

    def _open_images(self, root: Path) -> SourceImages | NoImages:
        return open_source_images(self.inputs, root / IMAGES)

    def _read_samples(
        self, images: SourceImages | NoImages, by_image: dict[str, list[Correction]], rejects: list[RejectedSample]
    ) -> Iterator[SourceSample | RejectedSample]:
        yield from rejects
        for name, corrections in sorted(by_image.items()):
            key = name.partition(".")[0]
            texts = SampleTexts(self._corrected_captions(corrections), self._corrected_questions(corrections))
            if not texts.captions and not texts.questions:
                yield RejectedSample(
                    key, FaultReason.MISSING_TEXT, f"fewer than {self.senders} senders agree (source.senders)"
                )
                continue
            senders = sorted({correction.sender for correction in corrections})
            yield read_image_sample(images, name, "train", key, texts, {"senders": senders})

    def _corrected_captions(self, corrections: list[Correction]) -> tuple[str, ...]:
        by_caption: defaultdict[str, set[str]] = defaultdict(set)
        for correction in corrections:
            if correction.caption is not None:
                by_caption[correction.caption].add(correction.sender)
        return tuple(caption for caption, senders in by_caption.items() if len(senders) >= self.senders)

    def _corrected_questions(self, corrections: list[Correction]) -> tuple[Question, ...]:
        by_question: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for correction in corrections:
            if correction.question is not None and correction.answer is not None:
                by_question[correction.question][correction.sender] = correction.answer
        questions = []
        for question, by_sender in by_question.items():
            answers = tuple(by_sender.values())
            answer = consensus_answer(answers)
            if answers.count(answer) >= self.senders:
                questions.append(Question(question, answer, answers if len(answers) > 1 else ()))
        return tuple(questions)
