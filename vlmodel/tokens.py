"""The data classes that all parts of the model exchange, and the meaning of the letters that name tensor dimensions.

Legend, used as suffixes of names (``x_BTD`` has three dimensions):

    B  images (or other primary inputs) in the batch      N  texts in the batch; each belongs to one image
    T  tokens of a stream                                 Q, S  query and key/value tokens of an attention
    U  distinct texts in the batch                        G  groups of them that are encoded together
    D  width of a stream                                  K  classes, such as answers
    C  channels      H, W  height and width               L  layers or rounds
    P  images, if some samples have none                  F  features that a frozen backbone returns for an image
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Tokens:
    """A stream of tokens with a mask and a pooled vector: encoders return it, topologies and fusions read and return
    it.

    Attributes:
        x_BTD: the tokens, float.
        mask_BT: True where a token is real, False where it is padding.
        pooled_BD: one vector for the whole stream.
    """

    x_BTD: Tensor
    mask_BT: Tensor
    pooled_BD: Tensor

    def select_rows(self, index_N: Tensor) -> Tokens:
        """Repeat or reorder the rows of the stream: row n of the result is row ``index_N[n]``."""
        return Tokens(*(t.index_select(0, index_N) for t in (self.x_BTD, self.mask_BT, self.pooled_BD)))

    def select_rows_or_missing(self, index_B: Tensor) -> Tokens:
        """Select rows as ``select_rows`` does; an index one past the last row gives a missing stream, all padding and
        zeros.
        """
        tensors = (self.x_BTD, self.mask_BT, self.pooled_BD)
        return Tokens(*(torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for t in tensors)).select_rows(index_B)

    @staticmethod
    def concatenate(groups: Sequence[Tokens]) -> Tokens:
        """Concatenate the rows of all groups to one stream, padded to the longest of them."""
        longest = max(group.mask_BT.shape[1] for group in groups)
        missing = [longest - group.mask_BT.shape[1] for group in groups]
        return Tokens(
            torch.cat([pad(group.x_BTD, (0, 0, 0, n)) for group, n in zip(groups, missing, strict=True)]),
            torch.cat([pad(group.mask_BT, (0, n)) for group, n in zip(groups, missing, strict=True)]),
            torch.cat([group.pooled_BD for group in groups]),
        )


Streams = Mapping[str, Tokens]
"""Streams by their names."""

Rows = Mapping[str, Tensor]
"""For streams by name the row of each that belongs to text n, (N,); a stream that is not named has a row a text."""


@dataclass(frozen=True)
class FusedStream:
    """The joint stream into which a topology merges all streams.

    Attributes:
        tokens: the joint stream.
        spans: (start, stop) of each input stream in the joint sequence, and so in Q and S of the attention; empty if
            there is no such sequence.
        attention_LBQS: attention of each round of topology and fusion, averaged over heads; only on request, and if
            they have one. It has spans even if the fusion keeps no sequence and the tokens have none.
        keeps_sequence: False if the only token of the joint stream is its pooled vector.
    """

    tokens: Tokens
    spans: dict[str, tuple[int, int]]
    attention_LBQS: Tensor | None = None
    keeps_sequence: bool = True

    def select_rows(self, index_N: Tensor) -> FusedStream:
        """Repeat or reorder the rows of the joint stream: row n of the result is row ``index_N[n]``."""
        attention = None if self.attention_LBQS is None else self.attention_LBQS.index_select(1, index_N)
        return FusedStream(self.tokens.select_rows(index_N), self.spans, attention, self.keeps_sequence)


@dataclass(frozen=True)
class Prompts:
    """What a language model reads before it generates.

    Attributes:
        ids_NT: token ids, padded in front; below zero are slots for the sample's inputs: -1 for all streams, in the
            order of their names, and -2 - k for the k-th.
        mask_NT: True where a token or a slot is.
    """

    ids_NT: Tensor
    mask_NT: Tensor


@dataclass(frozen=True)
class DecoderInput:
    """The streams and rows of a batch that a decoder reads.

    Attributes:
        streams: the encoded streams, each input once.
        rows: of all streams, for the N rows of the task.
        joint: the fused stream, with N rows; None for a decoder that does not read it.
        fact_weights_NJ: of the J facts of each row, in their order; None for a model that does not weigh them.
        prompts: of N rows, for a head that is a language model.
    """

    streams: Streams
    rows: Rows
    joint: FusedStream | None
    fact_weights_NJ: Tensor | None = None
    prompts: Prompts | None = None

    @property
    def fused_stream(self) -> FusedStream:
        """The joint stream, for decoders that require it."""
        assert self.joint is not None
        return self.joint
