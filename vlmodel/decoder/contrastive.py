"""Contrastive learning of images and texts: both in one space, where those that belong together are near."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.distributed import all_gather_counts, gather, is_distributed
from vlmodel.task_spec import TaskSpec
from vlmodel.tokens import DecoderInput

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor

SPEC = TaskSpec(reads="captions", target="none")

_LARGEST_SCALE = 100.0


class Config(parts.DecoderPart):
    """One space for images and texts; it reads what the encoders give, and needs neither topology nor fusion."""

    kind: Literal["contrastive"] = "contrastive"
    width: int = Field(256, ge=1)
    """Width of the space."""
    temperature: float = Field(0.07, ge=1 / _LARGEST_SCALE, allow_inf_nan=False)
    """Temperature of the softmax to begin with; it is learned, and never falls below 0.01."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of what the encoders give, before the projections: from few pairs, these learn it by heart."""
    gather: bool = True
    """Compare with the images and texts of all workers, not with the worker's own alone."""

    def tasks(self) -> dict[str, TaskSpec]:
        return {"": SPEC}

    def reads_joint(self) -> bool:
        return False

    def build(self, widths: Mapping[str, int], vocabulary: parts.Vocabulary) -> ContrastiveDecoder:
        return ContrastiveDecoder(self, widths["vision"], widths["language"])


@dataclass(frozen=True)
class _Pairs:
    """A images and M texts, each with one of the images.

    Attributes:
        image_AD, text_MD: their places in the space, of length one.
        image_M: the image of each text.
        key_M: equal for equal texts.
        counted_M: False where a pair is to be as if it were not there.
        lone_A: True for images that belong to no text, and to which texts are compared all the same; None for none.
    """

    image_AD: Tensor
    text_MD: Tensor
    image_M: Tensor
    key_M: Tensor
    counted_M: Tensor
    unpaired_A: Tensor | None = None

    def gathered(self) -> _Pairs:
        """Those of all processes."""
        counts = all_gather_counts([len(self.image_AD), len(self.text_MD)])
        images, texts = ([of_rank[i] for of_rank in counts] for i in (0, 1))
        image_M = self.image_M + sum(images[: dist.get_rank()])
        about_M3 = gather(torch.stack([image_M, self.key_M, self.counted_M.long()], dim=1), texts)
        image_M, key_M, counted_M = about_M3.unbind(1)
        unpaired_A = None if self.unpaired_A is None else gather(self.unpaired_A.long(), images).bool()
        return _Pairs(
            gather(self.image_AD, images), gather(self.text_MD, texts), image_M, key_M, counted_M.bool(), unpaired_A
        )


class ContrastiveDecoder(parts.Decoder):
    """Linear projections into one space and a learned temperature, as in CLIP (Radford et al. 2021).

    The loss of a pair is the mean of two: that of its image among all texts, and that of its text among all images. An
    image with several captions, and equal texts of several images, have several right partners: the loss is the mean
    of the negative log probabilities of all of them (Khosla et al. 2020, eq. 2; for images and texts Yang et al. 2022).
    Where there is no wrong partner there is nothing to learn, and that half of the pair is not counted. A half came
    out right if a right partner is nearer than every wrong one, so the accuracy depends on how many are compared.
    Images without texts are wrong partners of all texts.

    Partners are those of one forward pass: in training of all workers, which must run it together; in evaluation, where
    workers may have different numbers of batches, the worker's own. Accumulation makes the number smaller.
    """

    spec = SPEC
    reads_joint = False
    is_contrastive = True

    def __init__(self, config: Config, vision: int, language: int) -> None:
        super().__init__()
        self.gather = config.gather
        self.dropout = nn.Dropout(config.dropout)
        self.image = nn.Linear(vision, config.width, bias=False)
        self.text = nn.Linear(language, config.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    @property
    def temperature(self) -> float:
        """What similarities are divided by before their softmax, as it was learned."""
        return max(1 / _LARGEST_SCALE, math.exp(-self.log_scale.item()))

    def forward(  # type: ignore[override]
        self,
        encoded: DecoderInput,
        weights_N: Tensor | None = None,
        text_key_N: Tensor | None = None,
        unpaired_image_mask_B: Tensor | None = None,
    ) -> parts.DecoderOutput:
        """Loss and counts of the N pairs.

        Args:
            weights_N: weight of each pair; one if not given. A pair of weight zero is nobody's partner, right or wrong.
            text_key_N: equal for equal texts, in all workers. If not given, texts that were encoded once are equal.
            unpaired_image_mask_B: True for images that come without texts; given to all workers or to none.

        Raises:
            ValueError: ``text_key_N`` is not given and texts of several workers are to be compared.
        """
        image_BD, text_ND = self.embed(encoded)
        image_N, row_N = encoded.rows["vision"], encoded.rows["language"]
        present_N = _present(encoded, "vision")[image_N] & _present(encoded, "language")[row_N]
        weights_N = present_N.float() if weights_N is None else weights_N.float() * present_N
        together = self.gather and self.training and is_distributed()
        if together and text_key_N is None:
            raise ValueError(
                "text_key_N is needed to tell equal texts of several workers; give what VLProcessor makes, or set "
                "decoder.gather=false"
            )
        own = _Pairs(
            image_BD,
            text_ND,
            image_N,
            row_N if text_key_N is None else text_key_N,
            weights_N > 0,
            unpaired_image_mask_B,
        )
        every = own.gathered() if together else own
        if self.training:
            # Clamped in the computation instead, a scale above the limit would get no gradient and stay there.
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(_LARGEST_SCALE))
        with torch.autocast(image_BD.device.type, enabled=False):
            of_image_3B, of_text_3N = _both_directions(own, every, self.log_scale.exp())
        halves_3N = (of_image_3B.index_select(1, image_N) + of_text_3N) / 2
        loss_sum, count, correct = (halves_3N * weights_N).sum(1).unbind()
        return parts.DecoderOutput(None, loss_sum, count, correct, count)

    def answer(self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any) -> list[parts.Answers]:
        """The cosine of the angle between text and image, from -1 to 1."""
        image_BD, text_ND = self.embed(encoded)
        cosine_N = (image_BD[encoded.rows["vision"]] * text_ND).sum(-1)
        return [[("similarity", cosine)] for cosine in cosine_N.tolist()]

    def embed(self, encoded: DecoderInput) -> tuple[Tensor, Tensor]:
        """The B images and the N texts in the space, as float vectors of length one; zeros for what is missing."""
        image_BD, text_UD = (
            F.normalize(
                linear(
                    self.dropout(encoded.streams[name].pooled_BD.masked_fill(~_present(encoded, name)[:, None], 0))
                ).float()
            )
            for name, linear in (("vision", self.image), ("language", self.text))
        )
        return image_BD, text_UD.index_select(0, encoded.rows["language"])


def _both_directions(own: _Pairs, every: _Pairs, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``_one_direction`` for own images among all texts, (3, B), and for own texts among all images, (3, N)."""
    equal_NM = (own.key_M[:, None] == every.key_M) & own.counted_M[:, None] & every.counted_M
    equal_NM = equal_NM.float()
    images, texts = len(own.image_AD), len(every.text_MD)
    right_BM = equal_NM.new_zeros(images, texts).index_add(0, own.image_M, equal_NM) > 0
    of_image_3B = _one_direction(scale * own.image_AD @ every.text_MD.T, right_BM, every.counted_M)
    texts, images = len(own.text_MD), len(every.image_AD)
    right_NA = equal_NM.new_zeros(texts, images).index_add(1, every.image_M, equal_NM) > 0
    counted_A = equal_NM.new_zeros(images).index_add(0, every.image_M, every.counted_M.float()) > 0
    if every.unpaired_A is not None:
        counted_A = counted_A | every.unpaired_A
    of_text_3N = _one_direction(scale * own.text_MD @ every.image_AD.T, right_NA, counted_A)
    return of_image_3B, of_text_3N


def _one_direction(scores_QC: Tensor, right_QC: Tensor, among_C: Tensor) -> Tensor:
    """Loss, whether it is counted, and whether it came out right, of Q queries among C candidates: (3, Q)."""
    nobody = torch.finfo(scores_QC.dtype).min
    wrong_QC = among_C & ~right_QC
    # One candidate more, which is nobody: so there is always a best one.
    of_right, of_wrong = (
        F.pad(scores_QC.masked_fill(~chosen_QC, nobody), (0, 1), value=nobody) for chosen_QC in (right_QC, wrong_QC)
    )
    log_sum_Q = torch.logaddexp(of_right.logsumexp(1), of_wrong.logsumexp(1))
    mean_Q = (scores_QC * right_QC).sum(1) / right_QC.sum(1).clamp_min(1)
    counted_Q = wrong_QC.any(1)
    correct_Q = counted_Q & (of_right.amax(1) > of_wrong.amax(1))
    return torch.stack([(log_sum_Q - mean_Q) * counted_Q, counted_Q.float(), correct_Q.float()])


def _present(encoded: DecoderInput, name: str) -> Tensor:
    return encoded.streams[name].mask_BT.any(1)
