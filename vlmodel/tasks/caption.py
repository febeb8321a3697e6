"""Task ``caption``: a text is generated from the image alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from vlmodel.answers import Normalizer
from vlmodel.judging import AnsweredRows, ExampleAnswer, Judgement, Metrics, NoScorableRowsError
from vlmodel.metrics.scores import ExampleScores
from vlmodel.operations.base import Operation
from vlmodel.operations.chat import ChatOperation
from vlmodel.operations.describe import CaptionOperation
from vlmodel.sample import TEXTS, Sample, SampleTexts
from vlmodel.task import TaskRow
from vlmodel.tasks._generation import GenerationTask
from vlmodel.tasks._judging import BaselineComparisons, example_answers
from vlmodel.tasks._texts import captions_of


class Config(GenerationTask):
    """Settings of a head that generates captions."""

    learns_baseline: ClassVar[bool] = True
    copies_neighbours: ClassVar[bool] = True
    operations: ClassVar[tuple[Operation, ...]] = (CaptionOperation(), ChatOperation())

    kind: Literal["caption"] = "caption"

    @property
    def learning_requirement(self) -> str:
        return "captions with an input"

    def reads_text(self) -> bool:
        return False

    def can_answer(self, present: frozenset[str]) -> bool:
        return bool(present - TEXTS)

    def can_learn(self, present: frozenset[str]) -> bool:
        return "captions" in present and bool(present - TEXTS)

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        return [[TaskRow(target=caption) for caption in sample.texts.captions] for sample in samples]

    def rows_to_answer(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        """Make one row for each image; the first caption serves as the right answer."""
        captions = (sample.texts.captions for sample in samples)
        return [[TaskRow(target=next(iter(given), None), references=given)] for given in captions]

    def texts_to_generate(self, texts: SampleTexts) -> Iterable[str]:
        return captions_of(texts)

    def learn_baseline(self, samples: Iterable[SampleTexts], normalizer: Normalizer) -> dict[str, Any]:
        """Find the most typical caption, which the baseline gives for all images."""
        from vlmodel.metrics.captions import most_typical_caption

        captions = [caption for texts in samples for caption in texts.captions]
        try:
            return {"caption": most_typical_caption(captions)}
        except ValueError as error:
            raise ValueError(f"captions stand beside the most typical one of the training split: {error}") from None

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score each image that has a caption with a word by the CIDEr-D of the generated caption."""
        from vlmodel.metrics.captions import cider_per_image, drop_wordless_references

        references = drop_wordless_references(row.references for row in answered.rows)
        row_N = np.flatnonzero([bool(captions) for captions in references])
        score_N = cider_per_image(
            [answered.predicted[n] for n in row_N.tolist()], [references[n] for n in row_N.tolist()]
        )
        return ExampleScores.with_one_group(score_N, answered.sample_N, row_N, binary=False)

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute BLEU, ROUGE-L and CIDEr-D."""
        from vlmodel.metrics.captions import caption_scores, consensus_captions, drop_wordless_references

        assert baseline is not None
        references = drop_wordless_references(row.references for row in answered.rows)
        rows = [n for n, captions in enumerate(references) if captions]
        if not rows:
            raise NoScorableRowsError("image", "a caption with a word to compare with")

        def metrics_of(given: AnsweredRows) -> Metrics:
            return caption_scores(given.predicted, drop_wordless_references(row.references for row in given.rows))

        captioned = answered.select_rows(rows)
        compared = BaselineComparisons(captioned, metrics_of, partial(self.score_rows, normalizer=normalizer))
        constant = baseline["caption"]
        compared.add_baseline("constant_caption", "one caption for all images", [constant] * len(captioned))
        compared.add_shuffled_baseline()
        if (near := captioned.neighbours) is not None:
            nearest, consensus = [one[0] for one in near], consensus_captions(near)
            compared.add_baseline("nearest_caption", "a caption of the nearest training image", nearest, looks=True)
            agreed = "the caption that the nearest training images agree on"
            compared.add_baseline("consensus", agreed, consensus, looks=True)
        notes = [f'constant caption: "{constant}"', f"{len(set(captioned.predicted))} different captions"]
        return compared.to_judgement("images", "cider", metrics_of(captioned), notes)

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        return example_answers(answered, lambda target, best: None, titled=False)
