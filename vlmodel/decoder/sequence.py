"""A head that generates a text token by token, with cross-attention to the joint stream."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.decoder import _causal
from vlmodel.decoder._writing import (
    StopTextCriterion,
    add_row_without_weight,
    build_causal_model,
    check_streams_single_text,
    complete_generation_settings,
    drop_repeated_texts,
    mask_up_to_end_token,
    sum_token_losses,
    token_cross_entropy,
)
from vlmodel.layers import to_transformers_mask
from vlmodel.tokens import DecoderInput

if TYPE_CHECKING:
    from vlmodel.heads.sequence import Config
    from vlmodel.processor import VLProcessor

Memory = tuple[Tensor, Tensor]
"""The sequence that cross-attention reads (N, S, D), and which of its tokens are real (N, S)."""


class SequenceDecoder(parts.TextWriter):
    """A causal language model of transformers with cross-attention to the joint stream.

    Its output is tied to its word embeddings. The cross-attention reads the joint tokens and, after them, their pooled
    vector, so that the layers that make this vector are trained too. If no token is real it reads zeros.

    A fusion that keeps no sequence gives the pooled vector alone. A softmax over one key is constant: the queries and
    keys of the cross-attention then have a gradient of zero, and only its values are learned.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        assert config.resolved is not None
        self.config = config
        self.inner = build_causal_model(config.resolved)
        self.begin, self.end, self.padding = (
            int(config.resolved[f"{name}_token_id"]) for name in ("bos", "eos", "pad")
        )
        # Without a padding token transformers does not warn about the padding after a text's end.
        self.inner.config.pad_token_id = None
        hidden_size = self.inner.config.hidden_size
        self.adapter: nn.Module = nn.Identity() if width == hidden_size else nn.Linear(width, hidden_size)

    def forward(  # type: ignore[override]
        self,
        encoded: DecoderInput,
        target_ids_NT: Tensor | None = None,
        target_mask_NT: Tensor | None = None,
        weights_N: Tensor | None = None,
    ) -> parts.DecoderOutput:
        """Compute the cross-entropy of the target tokens by teacher forcing, and the number of right predictions.

        Args:
            target_ids_NT: the texts, each between the tokens that begin and end it; the first token is not predicted.
            target_mask_NT: True where a token is real; all False for an unknown text.
            weights_N: weight of each text's tokens in loss and counts; one if not given.
        """
        if target_ids_NT is None or target_mask_NT is None:
            return parts.DecoderOutput()
        memory = self._cross_attention_memory(encoded)
        weights_NT = target_mask_NT[:, 1:].float()
        if weights_N is not None:
            weights_NT = weights_NT * weights_N[:, None]
        if not len(target_ids_NT):
            memory, target_ids_NT, weights_NT = add_row_without_weight(memory, target_ids_NT, weights_NT)
        logits_NTK = self._forward_texts(self.inner, target_ids_NT[:, :-1], memory).logits
        labels_NT = target_ids_NT[:, 1:]
        return sum_token_losses(logits_NTK, labels_NT, weights_NT, self.config.label_smoothing)

    def generate_answers(
        self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[parts.Answers]:
        """Generate answers for each row; see ``TextWriter``."""
        streamer = settings.pop("streamer", None)
        memory = self._cross_attention_memory(encoded)
        count = len(memory[0])
        check_streams_single_text(streamer, count, top_k, settings)
        if not count:
            return []
        stop = settings.pop("stop_strings", ())
        criteria = [StopTextCriterion(processor, stop)] if stop else None
        generation = self._generation_config(processor, top_k, settings)
        ids_NkT = self._generate_ids(memory, generation, streamer, criteria)
        # One of the k after the other, so that it takes no more memory than training.
        ranked = []
        for ids_NT in ids_NkT.unbind(1):
            logits_NTK = self._forward_texts(self.inner, ids_NT[:, :-1], memory).logits
            loss_NT = token_cross_entropy(logits_NTK, ids_NT[:, 1:]) * mask_up_to_end_token(ids_NT[:, 1:], (self.end,))
            texts = processor.tokenizer.batch_decode(ids_NT.tolist(), skip_special_tokens=True)
            ranked.append(zip(map(str.strip, texts), loss_NT.sum(1).neg().exp().tolist(), strict=True))
        return [drop_repeated_texts(row, bool(settings.get("do_sample"))) for row in zip(*ranked, strict=True)]

    def compute_attention(
        self, encoded: DecoderInput, processor: VLProcessor, answers: list[parts.Answers]
    ) -> Tensor | None:
        """Average ``compute_token_attention`` over the tokens of each answer, without its end token; see
        ``Decoder``.
        """
        fused = encoded.fused_stream
        if any(stop > fused.tokens.mask_BT.shape[1] for _, stop in fused.spans.values()):
            # The spans are those of a topology before a fusion that keeps no sequence.
            return None
        tokens, weights_NLT = self.compute_token_attention(encoded, processor, [row[0][0] for row in answers])
        lengths_N = torch.tensor([max(1, len(row) - 1) for row in tokens], device=weights_NLT.device)
        mask_NL = torch.arange(weights_NLT.shape[1], device=lengths_N.device) < lengths_N[:, None]
        return (weights_NLT * mask_NL.unsqueeze(-1)).sum(1) / lengths_N[:, None]

    def compute_token_attention(
        self, encoded: DecoderInput, processor: VLProcessor, texts: Sequence[str]
    ) -> tuple[list[list[str]], Tensor]:
        """Compute the cross-attention weights over the joint stream for each token of N ``texts``.

        Returns:
            The tokens of each text with the one that ends it, and the attention (N, L, T), averaged over layers and
            heads, without that to the pooled vector. Padding has zeros.
        """
        memory, length = self._cross_attention_memory(encoded), encoded.fused_stream.tokens.mask_BT.shape[1]
        targets = processor.tokenize_targets(texts)
        ids_NT, mask_NT = (
            torch.from_numpy(targets[key]).to(memory[0].device) for key in ("target_ids_NT", "target_mask_NT")
        )
        layers = self._forward_texts(
            self._copy_with_eager_attention(), ids_NT[:, :-1], memory, output_attentions=True
        ).cross_attentions
        weights_NLT = torch.stack([weights_NHLT.float().mean(1) for weights_NHLT in layers]).mean(0)[..., :length]
        ids = [row[1 : int(count)] for row, count in zip(ids_NT.tolist(), mask_NT.sum(1), strict=True)]
        tokens = [list(processor.tokenizer.convert_ids_to_tokens(row)) for row in ids]
        return tokens, weights_NLT * mask_NT[:, 1:, None]

    def load_pretrained(self) -> None:
        if self.config.pretrained:
            _causal.load_decoder_weights(self.inner, self.config.pretrained)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters with pretrained values, see ``Pretrainable``; the cross-attention never has any."""
        if self.config.pretrained:
            yield from (
                p for key, p in self.inner.named_parameters() if not _causal.is_cross_attention_weight(self.inner, key)
            )

    def _cross_attention_memory(self, encoded: DecoderInput) -> Memory:
        tokens = encoded.fused_stream.tokens
        x_NSD, mask_NS = tokens.x_BTD, tokens.mask_BT
        present_N1 = mask_NS.any(1, keepdim=True)
        if encoded.fused_stream.keeps_sequence:
            mask_NS = torch.cat([mask_NS, present_N1], dim=1)
            x_NSD = torch.cat([x_NSD, tokens.pooled_BD.unsqueeze(1)], dim=1)
        return self.adapter(x_NSD.masked_fill(~mask_NS.unsqueeze(-1), 0)), mask_NS | ~present_N1

    def _forward_texts(self, inner: Any, ids_NT: Tensor, memory: Memory, **options: Any) -> Any:
        """Run the language model once over whole texts, which are padded on the right; causal attention hides the
        padding.
        """
        x_NSD, mask_NS = memory
        length = ids_NT.shape[1]
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=ids_NT.device).tril()
        return inner(
            input_ids=ids_NT,
            attention_mask=to_transformers_mask(inner, causal_TT[None, None]),
            encoder_hidden_states=x_NSD,
            encoder_attention_mask=to_transformers_mask(inner, mask_NS[:, None, None]),
            use_cache=False,
            **options,
        )

    def _copy_with_eager_attention(self) -> Any:
        """Copy ``inner``, sharing its weights, in the mode that returns attention weights. A copy, as other threads may
        be using ``inner``.
        """
        weights = itertools.chain(self.inner.parameters(), self.inner.buffers())
        inner = copy.deepcopy(self.inner, {id(tensor): tensor for tensor in weights})
        inner.set_attn_implementation("eager")
        return inner

    def _generate_ids(self, memory: Memory, generation: Any, streamer: Any, criteria: Any) -> Tensor:
        """Generate k texts for each row and return their token ids (N, k, T), with the token that begins each text."""
        from transformers import DynamicCache, EncoderDecoderCache

        x_NSD, mask_NS = memory
        begin_N1 = torch.full((len(x_NSD), 1), self.begin, device=x_NSD.device)
        ids_NT: Tensor = self.inner.generate(
            input_ids=begin_N1,
            attention_mask=torch.ones_like(begin_N1),
            encoder_hidden_states=x_NSD,
            encoder_attention_mask=to_transformers_mask(self.inner, mask_NS[:, None, None]),
            # By default transformers caches self-attention only.
            cache=EncoderDecoderCache(*(DynamicCache(config=self.inner.config) for _ in range(2))),
            generation_config=generation,
            streamer=streamer,
            stopping_criteria=criteria,
        )
        return ids_NT.unflatten(0, (len(x_NSD), -1))

    def _generation_config(self, processor: VLProcessor, top_k: int, settings: Mapping[str, Any]) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            **complete_generation_settings(settings, top_k, processor.config.max_target_tokens - 1),
            bos_token_id=self.begin,
            eos_token_id=self.end,
            pad_token_id=self.padding,
        )
