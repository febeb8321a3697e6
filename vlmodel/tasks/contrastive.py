"""Task ``contrastive``: images and texts are embedded in one space in which matching pairs have similar vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from vlmodel.answers import Normalizer
from vlmodel.encoder_parts import IMAGE, input_of_stream
from vlmodel.judging import AnsweredRows, BaselineScores, ExampleAnswer, Judgement, NoScorableRowsError
from vlmodel.metrics.scores import ExampleScores
from vlmodel.operations.base import BatchedRequest, Operation
from vlmodel.operations.classify import CLASSES, ClassifyOperation
from vlmodel.operations.embed import EmbedOperation
from vlmodel.operations.match import MatchOperation, MatchResult
from vlmodel.sample import TEXTS, Sample, SampleTexts
from vlmodel.task import Task, TaskRow
from vlmodel.tasks._judging import split_baseline_metrics
from vlmodel.tasks._texts import captions_of
from vlmodel.zero_shot import class_probabilities, class_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vlmodel.inference import Prediction, Predictor
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Answers, Decoder
    from vlmodel.processor import VLProcessor
    from vlmodel.tokens import DecoderInput

LARGEST_SCALE = 100.0
_MAX_CAPTIONS = 2000
"""So many captions are compared for the page of examples."""


class MatchBySimilarity(MatchOperation):
    """Matches texts to an image by cosine similarity, and a softmax over the texts, as in CLIP (Radford et al. 2021,
    section 3.1).
    """

    rank: ClassVar[int] = 1  # a matching task judges each text by itself

    def run(self, predictor: Predictor, task: str, items: Sequence[BatchedRequest]) -> list[MatchResult]:
        predictions = predictor.predict([item.example for item in items], top_k=1, task=task)
        temperature: float = predictor.model.decoder.task_decoders()[task].temperature
        return [_softmax_matches(of_item, temperature) for of_item in predictions]


class ClassifyByPrompts(ClassifyOperation):
    """Classifies zero-shot: the classes are named in each request and compared with the image as prompts made of their
    names (``vlmodel.zero_shot``).
    """

    rank: ClassVar[int] = 1  # a classifier knows its classes from examples
    least_agreement: ClassVar[float | None] = 0.7

    def unsupported_request_reason(self, settings: Mapping[str, Any]) -> tuple[str, str] | None:
        if CLASSES in settings:
            return None
        return "no_classes", "this model has no classes of its own; name those to choose among in 'classes'"

    def run(self, predictor: Predictor, task: str, items: Sequence[BatchedRequest]) -> list[list[Prediction]]:
        temperature: float = predictor.model.decoder.task_decoders()[task].temperature
        embedded = predictor.embed([item.example for item in items], task)
        return [
            [_choose_class(item, input_D, text_ND, temperature)]
            for item, (input_D, text_ND) in zip(items, embedded, strict=True)
        ]

    def warm_up(self, task: Task) -> Iterable[tuple[int, bool]]:
        return ((5, False),)


class Config(Task):
    """Settings of contrastive learning. The embeddings come from the encoders; topology and fusion are not used."""

    operations: ClassVar[tuple[Operation, ...]] = (MatchBySimilarity(), EmbedOperation(), ClassifyByPrompts())

    kind: Literal["contrastive"] = "contrastive"
    stream: str = "vision"
    """The stream that is compared with the texts: vision, or a further input's name (model.inputs)."""
    pretrained: str = ""
    """Folder or hub name of a CLIP or SigLIP (safetensors) whose space this is: its projections and its temperature are
    taken. Its towers are model.vision.kind="hf" with output="pooled", and model.language.kind="tower"."""
    width: int = Field(256, ge=1)
    """Width of the space."""
    temperature: float = Field(0.07, ge=1 / LARGEST_SCALE, allow_inf_nan=False)
    """Initial temperature of the softmax; it is learned, and never falls below 0.01."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the projections, which overfit to few pairs."""
    gather: bool = True
    """Compare with the images and texts of all workers, and not only with the worker's own."""

    @property
    def learning_requirement(self) -> str:
        return f"captions with {'an image' if self.embedded_input == IMAGE else f'the input {self.embedded_input!r}'}"

    @property
    def embedded_input(self) -> str:
        return input_of_stream(self.stream)

    def reads_joint_stream(self) -> bool:
        return False

    def unfused_stream_names(self) -> frozenset[str]:
        return frozenset({self.stream, "language"})

    def can_answer(self, present: frozenset[str]) -> bool:
        return {self.embedded_input, "captions"} <= present

    def is_used_in_training(self, present: frozenset[str]) -> bool:
        return self.can_answer(present) or self._has_no_texts(present)

    def _has_no_texts(self, present: frozenset[str]) -> bool:
        return self.embedded_input in present and not present & TEXTS

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        return [[TaskRow(caption) for caption in sample.texts.captions] for sample in samples]

    def texts_to_read(self, texts: SampleTexts) -> Iterable[str]:
        return captions_of(texts)

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        from vlmodel.decoder.contrastive import ContrastiveDecoder

        return ContrastiveDecoder(self, widths[self.stream], widths["language"])

    def collate_targets(
        self, targets: Sequence[str | None], arrays: Mapping[str, NDArray[np.generic]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Build ``text_key_N`` int64, a hash that is equal for texts with equal tokens, in any batch."""
        return {"text_key_N": _token_hashes(arrays["input_ids_NT"], arrays["text_mask_NT"])}

    def collate_samples(self, samples: Sequence[Sample], weight: float) -> dict[str, NDArray[np.generic]]:
        """Build ``unpaired_image_mask_B`` bool, which marks images without texts; they are negatives of all texts."""
        alone = [weight > 0 and self._has_no_texts(sample.present) for sample in samples]
        return {"unpaired_image_mask_B": np.array(alone, np.bool_)}

    def predict_answers(
        self, head: Decoder, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[Answers]:
        """Compute the cosine between text and image, from -1 to 1."""
        image_BD, text_ND = self.embed_batch(head, encoded)
        cosine_N = (image_BD[encoded.rows[self.stream]] * text_ND).sum(-1)
        return [[("similarity", cosine)] for cosine in cosine_N.tolist()]

    def embed_batch(self, head: Decoder, encoded: DecoderInput) -> tuple[Tensor, Tensor]:
        from vlmodel.decoder.contrastive import ContrastiveDecoder

        assert isinstance(head, ContrastiveDecoder)
        return head.embed_batch(encoded)

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score each text and each image (two groups) by the mean of its recalls at 1, 5 and 10: a row counts for its
        text, and the first row of an image for the image too.
        """
        from vlmodel.metrics.retrieval import RANKS, retrieval_ranks

        ranks = retrieval_ranks(*_stack_embeddings(answered))
        text_N, first_B = np.arange(len(answered)), _rows_with_image_embedding(answered)
        row_N = np.concatenate([text_N, first_B])
        rank_N = np.concatenate([ranks[way].numpy(force=True) for way in ("text_to_image", "image_to_text")])
        return ExampleScores(
            score_N=(rank_N[:, None] <= np.array(RANKS)).mean(1),
            group_N=np.repeat(np.arange(2), [len(text_N), len(first_B)]),
            image_N=answered.sample_N[row_N],
            row_N=row_N,
            binary=False,
        )

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute the recall and the median rank in both directions, and those of a random order."""
        from vlmodel.metrics.retrieval import retrieval_scores

        if not len(_rows_with_image_embedding(answered)):
            raise NoScorableRowsError("image", "a caption to be found by")
        metrics, expected = split_baseline_metrics(retrieval_scores(*_stack_embeddings(answered)))
        # One metric to compare models by: the mean of all recalls; the field's "rsum" is their sum.
        for recalls in (metrics, expected):
            values = [value for name, value in recalls.items() if "recall_at" in name]
            recalls["mean_recall"] = sum(values) / len(values)
        scores = self.score_rows(answered, normalizer)
        chance = BaselineScores("chance", "chance", expected, _random_order_scores(answered, scores), scores)
        return Judgement("captions", len(answered), "mean_recall", metrics, scores, [chance])

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        """Show for each image the nearest of all images' first captions; it is right if it is one of the
        image's own.
        """
        some = answered.select_rows(range(min(len(answered), _MAX_CAPTIONS)))
        first_B = _rows_with_image_embedding(some)
        image_BD = np.stack([some.image_embedding[row] for row in first_B])
        similarity_BN = image_BD @ np.stack(some.text_embedding).T
        title = f"of {len(some)} captions the nearest"
        nearest = zip(first_B.tolist(), similarity_BN.argmax(1), similarity_BN.max(1), strict=True)
        return [
            ExampleAnswer(
                row, title, some.texts[row], some.texts[n], float(cosine), bool(some.sample_N[n] == some.sample_N[row])
            )
            for row, n, cosine in nearest
        ]


def _choose_class(
    item: BatchedRequest, input_D: NDArray[np.float32] | None, text_ND: NDArray[np.float32], temperature: float
) -> Prediction:
    """Return the best classes for one request; if the request lacks the embedded input, all classes are equally
    probable.
    """
    from vlmodel.inference import Prediction

    # The requests of a warm-up name none: their texts stand for classes.
    names = item.settings.get(CLASSES, item.example.texts)
    compared_D = np.zeros(text_ND.shape[1], np.float32) if input_D is None else input_D
    [probability_C] = class_probabilities(compared_D[None], class_vectors(text_ND, len(names)), temperature)
    order = np.argsort(-probability_C, kind="stable")[: item.top_k].tolist()
    return Prediction([(names[n], float(probability_C[n])) for n in order])


def _softmax_matches(predictions: Sequence[Prediction], temperature: float) -> MatchResult:
    cosines = [prediction.answers[0][1] for prediction in predictions]
    scores_N = np.array(cosines) / temperature
    shares_N = np.exp(scores_N - scores_N.max())
    shares_N /= shares_N.sum()
    probabilities: list[float | None] = [None] if len(cosines) == 1 else shares_N.tolist()
    return MatchResult.from_predictions(
        predictions, method="similarity", probabilities=probabilities, similarities=cosines, temperature=temperature
    )


def _rows_with_image_embedding(answered: AnsweredRows) -> NDArray[np.int64]:
    """Select the rows whose image was embedded."""
    return np.flatnonzero([vector is not None for vector in answered.image_embedding]).astype(np.int64)


def _stack_embeddings(answered: AnsweredRows) -> tuple[Tensor, Tensor, Tensor]:
    """Stack the embeddings of images and texts, and return for each text the row of its image."""
    import torch

    first_B = _rows_with_image_embedding(answered)
    place = {sample: b for b, sample in enumerate(answered.sample_N[first_B].tolist())}
    image_BD = np.stack([answered.image_embedding[row] for row in first_B])
    text_ND = np.stack(answered.text_embedding)
    text_image_N = torch.tensor([place[sample] for sample in answered.sample_N.tolist()])
    return torch.from_numpy(image_BD), torch.from_numpy(text_ND), text_image_N


def _random_order_scores(answered: AnsweredRows, scores: ExampleScores) -> ExampleScores:
    """Compute the expected scores of a random order of all images and texts, on the rows of a model's scores."""
    import torch

    from vlmodel.metrics.retrieval import RANKS, random_recall_of_images

    _, image_R = np.unique(answered.sample_N, return_inverse=True)
    texts_B = np.bincount(image_R)
    of_text = np.mean([min(1.0, k / len(texts_B)) for k in RANKS])
    of_image_B = np.mean([random_recall_of_images(torch.from_numpy(texts_B), k).numpy() for k in RANKS], axis=0)
    score_N = np.where(scores.group_N == 0, of_text, of_image_B[image_R[scores.row_N]])
    return replace(scores, score_N=score_N)


def _token_hashes(ids_NT: NDArray[np.generic], mask_NT: NDArray[np.generic]) -> NDArray[np.int64]:
    """Hash the tokens of each text by a multilinear hash (Lemire & Kaser 2014), independent of the process and of
    padding.
    """
    position_NT = np.cumsum(mask_NT, axis=1) - 1
    factors_T = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, (ids_NT.shape[1],), np.uint64)
    terms_NT = (ids_NT.astype(np.uint64) + 1) * factors_T[position_NT]
    return np.where(mask_NT, terms_NT, np.uint64(0)).sum(axis=1, dtype=np.uint64).view(np.int64)
