"""The base classes of the model's parts, which the files of ``vision/``, ``language/``, ``fusion/`` and so on subclass.

A part is a file with a ``Config``, whose ``build`` makes the module and draws its weights; it reads no files. The
module is in a private file beside it, which ``build`` imports: so settings are read without torch (``part_configs``).
Pretrained weights are read once, when a model is created (``load_pretrained``), and stored in its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from vlmodel import lora
from vlmodel.encoder_parts import EncoderPart as EncoderPart
from vlmodel.encoder_parts import ModalityPart as ModalityPart
from vlmodel.part_configs import FusionPart as FusionPart
from vlmodel.part_configs import LanguagePart as LanguagePart
from vlmodel.part_configs import TopologyPart as TopologyPart
from vlmodel.part_configs import VisionPart as VisionPart
from vlmodel.part_configs import Vocabulary as Vocabulary
from vlmodel.streams import StreamAdapters
from vlmodel.tokens import DecoderInput, FusedStream, Rows, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.facts import LinkedFact
    from vlmodel.processor import VLProcessor


@dataclass(frozen=True)
class TokenLayout:
    """The positions of the tokens of N texts, and which tokens attend to which, if these differ from the usual order
    and full attention.

    Attributes:
        positions_NT: from 0; several tokens may have one.
        visible_NTT: True where the first token attends to the second.
    """

    positions_NT: Tensor
    visible_NTT: Tensor

    def select_texts(self, index_U: Tensor) -> TokenLayout:
        """Select the layouts of the texts with these indices."""
        return TokenLayout(self.positions_NT.index_select(0, index_U), self.visible_NTT.index_select(0, index_U))

    def slice_texts(self, texts: slice, columns: slice) -> TokenLayout:
        """Select the layouts of some texts, cut to some columns."""
        return TokenLayout(self.positions_NT[texts, columns], self.visible_NTT[texts, columns, columns])


class Pretrainable(nn.Module):
    """The base class of parts that may load pretrained weights."""

    def load_pretrained(self) -> None:
        """Load the pretrained weights that the configuration names; called once, when a model is created.

        Raises:
            WeightsError: they do not exist or do not fit.
        """

    def restore_buffers(self) -> None:
        """Compute the buffers that no checkpoint holds (non-persistent ones); called after the weights were loaded."""

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """List the trained parameters with pretrained values, which need a smaller learning rate than new ones."""
        return iter(())

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        """Group ``pretrained_parameters`` by layer, from the input's side to the output's; a layer of which nothing is
        trained has an empty list.
        """
        return [list(self.pretrained_parameters())]

    def frozen_tensor_names(self) -> Iterator[str]:
        """List the names, as in ``state_dict``, of all weights and statistics that training never changes. They are
        stored once for all models that share them (``vlmodel.bases``).
        """
        return iter(())


class Encoder(Pretrainable):
    """The base class of encoders, which turn one input into ``Tokens`` of ``width``. Subclasses define ``forward``.

    If the backbone is frozen (``EncoderPart.is_frozen``), forward(x) = from_features(features(x)), and the features can
    be cached.
    """

    width: int

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[str] = []
        self._adapted: list[str] = []

    def weights_to_grid(self, weights_NT: Tensor) -> Tensor | None:
        """Arrange weights of the tokens, such as attention, as a grid (N, H, W); None if the tokens are no grid.

        By default the tokens are a square grid, row by row; images are square.
        """
        side = math.isqrt(weights_NT.shape[1])
        return weights_NT.unflatten(1, (side, side)) if side * side == weights_NT.shape[1] else None

    def frozen_state_dict(self) -> dict[str, Tensor]:
        """Return all weights that training never changes, by name; cached features depend only on these."""
        parameters = {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}
        return parameters | dict(self.named_buffers())

    def frozen_tensor_names(self) -> Iterator[str]:
        for name in self._frozen:
            yield from (f"{name}.{key}" for key in self.get_submodule(name).state_dict())
        for name in self._adapted:
            yield from (f"{name}.{key}" for key in lora.names_without_adapters(self.get_submodule(name)))

    def freeze_submodules(self, *names: str) -> None:
        """Exclude submodules from training: they get no gradient and stay in evaluation mode (BatchNorm, dropout)."""
        self._frozen.extend(names)
        for name in names:
            self.get_submodule(name).requires_grad_(False).eval()

    def add_adapters(self, name: str, config: lora.LoraSettings, never_called: Collection[str] = ()) -> None:
        """Put low-rank adapters into a submodule (``lora.inject_adapters``); everything else in it is frozen and in
        evaluation mode.
        """
        lora.inject_adapters(self.get_submodule(name), config, never_called=never_called)
        self._adapted.append(name)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        for name in self._adapted:
            for path, module in self.get_submodule(name).named_modules():
                if "lora_" not in path:
                    module.training = False
        return self


class VisionEncoder(Encoder):
    """The base class of vision encoders: ``forward(pixels_BHWC: uint8)`` returns ``Tokens``."""

    def compute_features(self, pixels_BHWC: Tensor) -> Tensor:
        """Run the backbone on uint8 images and return its output (B, F), which is all that ``tokens_from_features``
        needs.
        """
        raise NotImplementedError

    def tokens_from_features(self, features_BF: Tensor) -> Tokens:
        """Compute the tokens from the backbone's output: the part of the encoder after ``compute_features``.

        Raises:
            ValueError: the features are not of this encoder.
        """
        raise NotImplementedError

    def grid_shapes(self) -> Sequence[tuple[int, int, int]]:
        """Return the shapes (height, width, channels) of the grids that the features of an image consist of, one after
        the other; none if they are one vector.
        """
        return ()


class LanguageEncoder(Encoder):
    """The base class of language encoders: ``forward(input_ids_NT, mask_NT)`` returns ``Tokens``; encoders whose
    settings say ``accepts_token_layout`` also take a ``layout`` (``TokenLayout``).

    The first token of the stream is its classification token, wherever the tokenizer puts it; the other real tokens
    follow in their order, then the padding.
    """

    def compute_features(self, input_ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Run the backbone on N tokenized texts; returns its output (N, T, F) and a mask of the real tokens (N, T)."""
        raise NotImplementedError

    def pool_features(self, features_NTF: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce the features of each text to those of one token (N, 1, F) that gives the same pooled vector, and
        return whether the text has any token (N, 1). Only if ``LanguagePart.can_pool_features``.
        """
        raise NotImplementedError

    def tokens_from_features(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        """Compute the tokens from the backbone's output: the part of the encoder after ``compute_features``."""
        raise NotImplementedError


class ModalityEncoder(Encoder):
    """The base class of encoders of additional inputs: ``forward`` takes the arrays that ``ModalityPart.collate``
    makes.

    Attributes:
        feature_width: F, of an encoder whose features can be cached.
    """

    feature_width: int

    def compute_features(self, **arrays: Tensor) -> tuple[Tensor, Tensor]:
        """Run the backbone on B inputs; returns its output (B, T, F) and a mask of the real tokens (B, T)."""
        raise NotImplementedError

    def tokens_from_features(self, features_BTF: Tensor, mask_BT: Tensor) -> Tokens:
        """Compute the tokens from the backbone's output: the part of the encoder after ``compute_features``."""
        raise NotImplementedError

    def weights_over_time(self, weights_NT: Tensor) -> Tensor | None:
        """Convert weights of the tokens, such as attention, to weights of equal, consecutive parts of the input's time
        (N, parts); None if the tokens are not in the order of time.
        """
        return None


class Fusion(nn.Module):
    """The base class of fusions. ``width`` is the width of the result; ``adapters`` project each stream to the fusion's
    width.

    A stream is missing in a row where its mask is all False, and in every row if it is not given. Its values there
    change nothing, and values and gradients are finite even if every stream is missing.
    """

    width: int
    adapters: StreamAdapters

    def adapt_stream(self, name: str, tokens: Tokens) -> Tokens:
        """Project the stream ``name`` to the width of the fusion.

        Topologies call it before ``forward``: an image is adapted once, then repeated for each of its texts.
        """
        return self.adapters.adapt_stream(name, tokens)

    def forward(self, streams: Streams, *, pooled_only: bool = False, output_attention: bool = False) -> FusedStream:
        """Merge the adapted ``streams``, which have equally many rows, into one stream.

        Args:
            pooled_only: only ``pooled_BD`` of the result will be read; its tokens may be anything.
            output_attention: return the attention too, if the fusion has one.
        """
        raise NotImplementedError


class Topology(nn.Module):
    """The base class of topologies. ``width`` is the width of the result. Streams may be missing, as in a fusion."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion, self.width = fusion, fusion.width

    def forward(
        self, streams: Streams, rows: Rows, *, pooled_only: bool = False, output_attention: bool = False
    ) -> FusedStream:
        """Merge the encoders' streams into one stream with a row for each text.

        Args:
            streams: the encoded streams.
            rows: of streams that several texts share (images).
            pooled_only, output_attention: as for a fusion.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DecoderOutput:
    """The output of a decoder: sums instead of means, so that outputs of several batches and workers can be added.

    A unit is what the task counts: a text for a classifier, a token for a decoder of sequences.

    Attributes:
        logits_NK: scores of the classes, if the task has classes.
        loss_sum: weighted sum of the losses of the units that have a target; None if no targets were given.
        count: sum of their weights.
        correct: weighted sum of the units that are predicted correctly.
        total: sum of the weights of all units, also of those that cannot be predicted correctly.
    """

    logits_NK: Tensor | None = None
    loss_sum: Tensor | None = None
    count: Tensor | None = None
    correct: Tensor | None = None
    total: Tensor | None = None


Answers = list[tuple[str, float]]
"""Answers to one row of a task with their probabilities (or scores), the best first."""


class Decoder(Pretrainable):
    """The base class of the heads of tasks: ``forward`` returns scores, loss and counts of a task's rows.

    Attributes:
        pooled_only: the head reads only the pooled vector of the joint stream.
        reads_joint_stream: the head reads the joint stream; otherwise only the encoders' streams, and nothing is fused.
    """

    pooled_only: bool = False
    reads_joint_stream: bool = True

    def task_decoders(self) -> Mapping[str, Decoder]:
        """Map the name of each task to its head; a single task is called ""."""
        return {"": self}

    def combine_task_outputs(self, decoded: Mapping[str, DecoderOutput]) -> DecoderOutput:
        """Combine the outputs of ``task_decoders`` into one, by which the model is trained and compared."""
        return next(iter(decoded.values()))

    def forward(self, encoded: DecoderInput, **targets: Tensor | None) -> DecoderOutput:
        """Compute the scores and, if there are targets (the arrays of ``Task.collate_targets``), loss and counts."""
        raise NotImplementedError

    def compute_attention(self, encoded: DecoderInput, processor: VLProcessor, answers: list[Answers]) -> Tensor | None:
        """Compute the head's attention to the joint stream for the best answers, (N, T); None if the head has no
        attention.
        """
        return None

    def compute_stream_attention(
        self, encoded: DecoderInput, processor: VLProcessor, answers: list[Answers]
    ) -> dict[str, Tensor] | None:
        """Compute for the best answers how much the head looks at each token of the streams that it reads, (N, T) for
        each stream by its name; None for a head that reads the joint stream.
        """
        return None


@dataclass(frozen=True)
class WrittenText:
    """A text that a language model generated.

    Attributes:
        probability: the product of those of its tokens.
        prompt_tokens: that it read, those of the sample's inputs included.
        tokens: that it wrote, with the one that ends the text.
        is_complete: whether it ended the text itself, and was not cut off.
        facts: those that it got with the prompt.
        knowledge_version: of the store that they are from; None without one.
    """

    text: str
    probability: float
    prompt_tokens: int
    tokens: int
    is_complete: bool
    facts: tuple[LinkedFact, ...] = ()
    knowledge_version: int | None = None


class TextWriter(Decoder):
    """The base class of heads that generate texts."""

    def generate_answers(
        self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[Answers]:
        """Generate at most ``top_k`` different texts for each row, each with its probability.

        The probability is the product of those of its tokens, including the last one. A single text is generated
        greedily; ``top_k`` texts by a search with as many beams, ranked by probability unless ``length_penalty`` says
        otherwise; with ``do_sample`` they are samples, the most probable first.

        Args:
            settings: of ``generation.SETTINGS``, in place of these defaults, and ``streamer``, which gets the tokens of
                a single row's text as they are generated (transformers' ``TextStreamer`` with ``skip_prompt=True``).

        Raises:
            ValueError: ``streamer`` and more than one text.
        """
        raise NotImplementedError

    def generate_texts(
        self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[list[WrittenText]]:
        """Generate texts by a language model: all of them, also equal ones, in the order of generation."""
        raise NotImplementedError


class Bridge(nn.Module):
    """The base class of bridges: ``forward(x_BTD, mask_BT)`` returns tokens of a language model's width and a mask of
    which are real.
    """

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError
