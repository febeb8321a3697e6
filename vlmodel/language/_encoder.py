"""What the text encoders of transformers share: the way from a batch of texts to tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vlmodel import lora, parts
from vlmodel.tokens import Tokens

if TYPE_CHECKING:
    from vlmodel.language._settings import EncoderConfig


class TextEncoder(parts.LanguageEncoder):
    """Base of the text encoders: ``encoder`` is a model of transformers.

    Subclasses define ``compute_features``, ``project_tokens`` and ``parameter_names_by_stage``.
    """

    config: EncoderConfig
    encoder: Any

    def freeze_encoder_or_add_adapters(self) -> None:
        """Do what the settings say of the training of ``encoder``, once it is built."""
        if self.config.frozen:
            self.freeze_submodules("encoder")
        elif self.config.lora is not None:
            self.add_adapters("encoder", self.config.lora)

    def project_tokens(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        """Make the stream of what ``compute_features`` returns."""
        raise NotImplementedError

    def parameter_names_by_stage(self) -> Sequence[Sequence[str]]:
        """List the names of the parameters of ``encoder``: of the embeddings, of each layer, and of what follows."""
        raise NotImplementedError

    def forward(self, input_ids_NT: Tensor, mask_NT: Tensor, layout: parts.TokenLayout | None = None) -> Tokens:
        if not len(input_ids_NT):
            # transformers cannot reshape an empty batch. A row of padding is encoded in its place, so that every
            # parameter still has a gradient.
            one = self(input_ids_NT.new_zeros(1, input_ids_NT.shape[1]), mask_NT.new_zeros(1, mask_NT.shape[1]))
            return Tokens(one.x_BTD[:0], one.mask_BT[:0], one.pooled_BD[:0])
        arranged = {} if layout is None else {"layout": layout}
        return self.project_tokens(*self.compute_features(input_ids_NT, mask_NT, **arranged))

    def tokens_from_features(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        # Cached features may have less precision than the weights.
        return self.project_tokens(features_NTF.to(self.encoder.dtype), mask_NT)

    def load_encoder_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load pretrained weights of ``encoder``, which may have adapters."""
        names = lora.names_without_adapters(self.encoder)
        self.encoder.load_state_dict({name: state[plain] for name, plain in names.items()}, strict=False)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        yield from itertools.chain.from_iterable(self.pretrained_layers())

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        if not self.config.pretrained or self.config.lora is not None:
            return []
        own = dict(self.encoder.named_parameters())
        return [[own[name] for name in names if own[name].requires_grad] for names in self.parameter_names_by_stage()]
