"""A contrastive head: it projects images and texts into one space in which matching pairs have similar vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.decoder import _dual
from vlmodel.distributed import all_gather_counts, all_gather_rows, is_distributed
from vlmodel.tasks.contrastive import LARGEST_SCALE
from vlmodel.tokens import DecoderInput
from vlmodel.weights import WeightsError

if TYPE_CHECKING:
    from vlmodel.tasks.contrastive import Config


@dataclass(frozen=True)
class _ImageTextPairs:
    """The embeddings of A images and M texts, with the index of each text's image.

    Attributes:
        image_AD, text_MD: their embeddings, of length one.
        image_M: the image of each text.
        key_M: equal for equal texts.
        counted_M: False for pairs to be ignored.
        unpaired_A: True for images without text, which are negatives of all texts; None if there are none.
    """

    image_AD: Tensor
    text_MD: Tensor
    image_M: Tensor
    key_M: Tensor
    counted_M: Tensor
    unpaired_A: Tensor | None = None

    def gather_from_processes(self) -> _ImageTextPairs:
        """Gather the pairs of all data-parallel processes into one set."""
        counts = all_gather_counts([len(self.image_AD), len(self.text_MD)])
        images, texts = ([of_rank[i] for of_rank in counts] for i in (0, 1))
        image_M = self.image_M + sum(images[: dist.get_rank()])
        integers_M3 = all_gather_rows(torch.stack([image_M, self.key_M, self.counted_M.long()], dim=1), texts)
        image_M, key_M, counted_M = integers_M3.unbind(1)
        unpaired_A = None if self.unpaired_A is None else all_gather_rows(self.unpaired_A.long(), images).bool()
        return _ImageTextPairs(
            all_gather_rows(self.image_AD, images),
            all_gather_rows(self.text_MD, texts),
            image_M,
            key_M,
            counted_M.bool(),
            unpaired_A,
        )


class ContrastiveDecoder(parts.Decoder):
    """Projects images and texts linearly into one space, with a learned temperature, as CLIP does (Radford et al.
    2021).

    The loss of a pair is the mean of two: that of its image among all texts, and that of its text among all images. An
    image with several captions, and equal texts of several images, have several positives: the loss is the mean of
    their negative log probabilities (Khosla et al. 2020, eq. 2; for images and texts Yang et al. 2022). A direction
    without negatives is not counted. It is correct if a positive is nearer than every negative, so the accuracy depends
    on the number of candidates. Images without texts are negatives of all texts.

    Candidates are those of one forward pass: in training of all workers, which must run it together; in evaluation,
    where workers may have different numbers of batches, the worker's own. Accumulation makes their number smaller.
    """

    reads_joint_stream = False

    def __init__(self, config: Config, compared: int, language: int) -> None:
        super().__init__()
        self.pretrained = config.pretrained
        self.stream = config.stream
        self.gather = config.gather
        self.dropout = nn.Dropout(config.dropout)
        self.image = nn.Linear(compared, config.width, bias=False)
        self.text = nn.Linear(language, config.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def load_pretrained(self) -> None:
        """Load pretrained projections, see ``Pretrainable``. The towers of SigLIP already give vectors of the shared
        space, so its projections become the identity.
        """
        if not self.pretrained:
            return
        found = _dual.read_embedding_space(self.pretrained)
        for name, linear in (("image", self.image), ("text", self.text)):
            weight = found.projections.get(name, torch.eye(linear.in_features))
            if weight.shape != linear.weight.shape:
                raise WeightsError(
                    f"task.pretrained={self.pretrained!r} maps {name}s from {weight.shape[1]} to {weight.shape[0]} "
                    f"numbers, and here they are mapped from {linear.in_features} to {linear.out_features}; set "
                    f"task.width={weight.shape[0]}, leave projections out of the encoders, and give "
                    "vision.name and language.pretrained the same model"
                )
            linear.weight.data.copy_(weight)
        self.log_scale.data.fill_(found.log_scale)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        if self.pretrained:
            yield from self.parameters()

    @property
    def temperature(self) -> float:
        """The learned temperature; similarities are divided by it before the softmax."""
        return max(1 / LARGEST_SCALE, math.exp(-self.log_scale.item()))

    def forward(  # type: ignore[override]
        self,
        encoded: DecoderInput,
        weights_N: Tensor | None = None,
        text_key_N: Tensor | None = None,
        unpaired_image_mask_B: Tensor | None = None,
    ) -> parts.DecoderOutput:
        """Compute the contrastive loss and the retrieval counts of N image-text pairs.

        Args:
            weights_N: weight of each pair; one if not given. A pair of weight zero is no positive and no negative.
            text_key_N: equal for equal texts, in all workers. If not given, texts that were encoded once are equal.
            unpaired_image_mask_B: True for images without texts; given to all workers or to none.

        Raises:
            ValueError: ``text_key_N`` is not given and texts of several workers are to be compared.
        """
        image_BD, text_ND = self.embed_batch(encoded)
        image_N, row_N = encoded.rows[self.stream], encoded.rows["language"]
        present_N = _has_stream(encoded, self.stream)[image_N] & _has_stream(encoded, "language")[row_N]
        weights_N = present_N.float() if weights_N is None else weights_N.float() * present_N
        gathers = self.gather and self.training and is_distributed()
        if gathers and text_key_N is None:
            raise ValueError(
                "text_key_N is needed to tell equal texts of several workers; give what VLProcessor makes, or set "
                "task.gather=false"
            )
        own = _ImageTextPairs(
            image_BD,
            text_ND,
            image_N,
            row_N if text_key_N is None else text_key_N,
            weights_N > 0,
            unpaired_image_mask_B,
        )
        candidates = own.gather_from_processes() if gathers else own
        if self.training:
            # Clamped in the forward pass instead, a scale above the limit would get no gradient.
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        with torch.autocast(image_BD.device.type, enabled=False):
            of_image_3B, of_text_3N = _both_retrieval_losses(own, candidates, self.log_scale.exp())
        means_3N = (of_image_3B.index_select(1, image_N) + of_text_3N) / 2
        loss_sum, count, correct = (means_3N * weights_N).sum(1).unbind()
        return parts.DecoderOutput(None, loss_sum, count, correct, count)

    def embed_batch(self, encoded: DecoderInput) -> tuple[Tensor, Tensor]:
        """Embed the B images and the N texts of a batch as float vectors of length one; missing ones become zeros."""
        image_BD, text_UD = (
            self.embed_pooled(encoded.streams[name].pooled_BD.masked_fill(~_has_stream(encoded, name)[:, None], 0), to)
            for name, to in ((self.stream, self.image), ("language", self.text))
        )
        return image_BD, text_UD.index_select(0, encoded.rows["language"])

    def embed_pooled(self, pooled_BD: Tensor, to_space: nn.Linear) -> Tensor:
        """The embeddings of pooled vectors, by ``image`` or ``text``."""
        return F.normalize(to_space(self.dropout(pooled_BD)).float())


def _both_retrieval_losses(own: _ImageTextPairs, candidates: _ImageTextPairs, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``_retrieval_loss`` in both directions: of own images among all texts, (3, B), and of own texts among all
    images, (3, N).
    """
    equal_NM = (own.key_M[:, None] == candidates.key_M) & own.counted_M[:, None] & candidates.counted_M
    equal_NM = equal_NM.float()
    images, texts = len(own.image_AD), len(candidates.text_MD)
    positive_BM = equal_NM.new_zeros(images, texts).index_add(0, own.image_M, equal_NM) > 0
    of_image_3B = _retrieval_loss(scale * own.image_AD @ candidates.text_MD.T, positive_BM, candidates.counted_M)
    texts, images = len(own.text_MD), len(candidates.image_AD)
    positive_NA = equal_NM.new_zeros(texts, images).index_add(1, candidates.image_M, equal_NM) > 0
    counted_A = equal_NM.new_zeros(images).index_add(0, candidates.image_M, candidates.counted_M.float()) > 0
    if candidates.unpaired_A is not None:
        counted_A = counted_A | candidates.unpaired_A
    of_text_3N = _retrieval_loss(scale * own.text_MD @ candidates.image_AD.T, positive_NA, counted_A)
    return of_image_3B, of_text_3N


def _retrieval_loss(scores_QC: Tensor, positive_QC: Tensor, counted_C: Tensor) -> Tensor:
    """Compute for Q queries among C candidates the loss, whether the query counts, and whether its best candidate is a
    right one: (3, Q).
    """
    lowest = torch.finfo(scores_QC.dtype).min
    negative_QC = counted_C & ~positive_QC
    # One candidate with the lowest score is added, so that there always is a best one.
    positives, negatives = (
        F.pad(scores_QC.masked_fill(~chosen_QC, lowest), (0, 1), value=lowest)
        for chosen_QC in (positive_QC, negative_QC)
    )
    log_sum_Q = torch.logaddexp(positives.logsumexp(1), negatives.logsumexp(1))
    mean_Q = (scores_QC * positive_QC).sum(1) / positive_QC.sum(1).clamp_min(1)
    counted_Q = negative_QC.any(1)
    correct_Q = counted_Q & (positives.amax(1) > negatives.amax(1))
    return torch.stack([(log_sum_Q - mean_Q) * counted_Q, counted_Q.float(), correct_Q.float()])


def _has_stream(encoded: DecoderInput, name: str) -> Tensor:
    return encoded.streams[name].mask_BT.any(1)
