"""A head that is a large language model: it reads the encoders' streams as tokens within its prompt, and writes
a text.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmodel import lora, parts
from vlmodel.conversation import ConversationError
from vlmodel.decoder import _llm
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
from vlmodel.heads._prompts import ALL_STREAMS, get_prompt_template
from vlmodel.tokens import DecoderInput, FusedStream, Prompts, Tokens
from vlmodel.weights import config_from_dict

if TYPE_CHECKING:
    from vlmodel.heads.llm import Config
    from vlmodel.processor import VLProcessor

Embedded = tuple[Tensor, Tensor]
"""What the language model reads (N, L, D), padded in front, and which of it is real (N, L)."""


class LanguageModel(parts.TextWriter):
    """A causal language model of transformers that reads the stream of each encoder through a bridge.

    A row is the prompt, in which the tokens of the bridges take the places of the slots, and then the text. All padding
    is on the left, so that the generated tokens are the last columns. A missing stream has no tokens at all: without
    any stream, the language model reads its prompt as it would alone.

    Args:
        widths: of the streams that it reads, by their names.
    """

    def __init__(self, config: Config, widths: Mapping[str, int]) -> None:
        super().__init__()
        assert config.resolved is not None
        self.config, self.reads_joint_stream = config, config.reads_joint_stream()
        self.inner = build_causal_model(config.resolved)
        width = self.inner.get_input_embeddings().embedding_dim
        self.bridges = nn.ModuleDict(
            {name: config.bridge_config().build(widths[name], width) for name in sorted(widths)}
        )
        self._takes_positions = "position_ids" in inspect.signature(self.inner.forward).parameters
        if config.training == "frozen":
            self.inner.requires_grad_(False)
        elif config.training == "lora":
            lora.inject_adapters(self.inner, config.lora, exclude=_find_layers_without_adapter(self.inner))
        if config.gradient_checkpointing:
            self.inner.activation_checkpointing_enable({"use_reentrant": False})

    def forward(  # type: ignore[override]
        self,
        encoded: DecoderInput,
        target_ids_NT: Tensor | None = None,
        target_mask_NT: Tensor | None = None,
        weights_N: Tensor | None = None,
    ) -> parts.DecoderOutput:
        """Compute the cross-entropy of the target tokens by teacher forcing, and the number of right predictions.

        Args:
            target_ids_NT: the texts, each with the token that ends it, padded in front.
            target_mask_NT: True where a token is real; all False for an unknown text.
            weights_N: weight of each text's tokens in loss and counts; one if not given.

        Raises:
            ConversationError: prompt and text are longer than the model's window.
        """
        if target_ids_NT is None or target_mask_NT is None:
            return parts.DecoderOutput()
        embedded = self._embed_prompts(encoded)
        weights_NT = target_mask_NT.float()
        if weights_N is not None:
            weights_NT = weights_NT * weights_N[:, None]
        if not len(target_ids_NT):
            embedded, target_ids_NT, weights_NT = add_row_without_weight(embedded, target_ids_NT, weights_NT)
            target_mask_NT = torch.ones_like(target_ids_NT, dtype=torch.bool)
        logits_NTK = self._text_logits(embedded, target_ids_NT, target_mask_NT)
        return sum_token_losses(logits_NTK, target_ids_NT, weights_NT, self.config.label_smoothing)

    def first_token_logits(self, encoded: DecoderInput) -> Tensor:
        """Compute the logits (N, K) of the first token of the answer to each prompt.

        Raises:
            ConversationError: a prompt is longer than the model's window.
        """
        x_NLD, mask_NL = self._embed_prompts(encoded)
        self._check_context_length(mask_NL)
        logits_N1K: Tensor = self.inner(
            inputs_embeds=x_NLD,
            attention_mask=mask_NL.long(),
            logits_to_keep=1,
            use_cache=False,
            **self._position_ids_argument(mask_NL),
        ).logits
        return logits_N1K[:, -1]

    def generate_answers(
        self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[parts.Answers]:
        """Generate answers to the prompts; see ``TextWriter``.

        Raises:
            ConversationError: a prompt is longer than the model's window.
        """
        written = self.generate_texts(encoded, processor, top_k, **settings)
        by_probability = bool(settings.get("do_sample"))
        return [drop_repeated_texts([(one.text, one.probability) for one in row], by_probability) for row in written]

    @torch.no_grad()
    def generate_texts(
        self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[list[parts.WrittenText]]:
        streamer = settings.pop("streamer", None)
        embedded = self._embed_prompts(encoded)
        count = len(embedded[0])
        check_streams_single_text(streamer, count, top_k, settings)
        if not count:
            return []
        template = get_prompt_template(processor.tokenizer, self.config.template_kind())
        ends = {template.end}
        if processor.tokenizer.eos_token_id is not None:
            ends.add(int(processor.tokenizer.eos_token_id))
        ids_NkT = self._generate_ids(_remove_padding_columns(embedded), processor, ends, top_k, settings, streamer)
        # One of the k after the other, so that it takes no more memory than training.
        ranked = []
        for ids_NT in ids_NkT.unbind(1):
            said_NT = mask_up_to_end_token(ids_NT, ends)
            probabilities = self._generated_text_losses(embedded, ids_NT, said_NT).neg().exp().tolist()
            ranked.append(
                [
                    parts.WrittenText(
                        str(processor.tokenizer.decode(ids, skip_special_tokens=True)).strip(),
                        probability,
                        prompt,
                        len(ids),
                        ids[-1] in ends,
                    )
                    for ids, probability, prompt in zip(
                        [row[:length] for row, length in zip(ids_NT.tolist(), said_NT.sum(1).tolist(), strict=True)],
                        probabilities,
                        embedded[1].sum(1).tolist(),
                        strict=True,
                    )
                ]
            )
        return [list(row) for row in zip(*ranked, strict=True)]

    def compute_attention(
        self, encoded: DecoderInput, processor: VLProcessor, answers: list[parts.Answers]
    ) -> Tensor | None:
        """See ``Decoder``; as ``compute_stream_attention``."""
        fused = encoded.joint
        if fused is None or any(stop > fused.tokens.mask_BT.shape[1] for _, stop in fused.spans.values()):
            # The spans are those of a topology before a fusion that keeps no sequence.
            return None
        return self._compute_relevance(encoded, processor, [row[0][0] for row in answers])["joint"]

    def compute_stream_attention(
        self, encoded: DecoderInput, processor: VLProcessor, answers: list[parts.Answers]
    ) -> dict[str, Tensor] | None:
        """See ``Decoder``: how much the tokens of the inputs say for the text, by gradient times input (Shrikumar et
        al. 2016, arXiv:1605.01713), in size. Not every architecture has attention, and a bridge may mix tokens.
        """
        if self.reads_joint_stream:
            return None
        return self._compute_relevance(encoded, processor, [row[0][0] for row in answers])

    def load_pretrained(self) -> None:
        if self.config.pretrained:
            _llm.load_llm_weights(self.inner, config_from_dict(self.config.resolved or {}), self.config.pretrained)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        if self.config.pretrained and self.config.training == "full":
            yield from self.inner.parameters()

    def frozen_tensor_names(self) -> Iterator[str]:
        if self.config.training == "full":
            return
        trained = {f"inner.{name}" for name, p in self.inner.named_parameters() if p.requires_grad}
        yield from (name for name in self.state_dict() if name.startswith("inner.") and name not in trained)

    def _compute_relevance(
        self, encoded: DecoderInput, processor: VLProcessor, texts: Sequence[str]
    ) -> dict[str, Tensor]:
        """Compute gradient times input of the texts' log-probabilities for each token that the bridges read, (N, T)."""
        assert encoded.prompts is not None
        targets = self.config.collate_targets(texts, processor)
        # What was computed without gradients cannot be a part of a graph; copies can.
        with torch.inference_mode(False), torch.enable_grad():
            prompts = Prompts(encoded.prompts.ids_NT.clone(), encoded.prompts.mask_NT.clone())
            ids_NT, mask_NT = (
                torch.from_numpy(targets[key]).to(prompts.ids_NT.device) for key in ("target_ids_NT", "target_mask_NT")
            )
            read, rows = {}, torch.arange(len(ids_NT), device=ids_NT.device)
            for name in self.bridges:
                tokens = encoded.fused_stream.tokens if name == "joint" else encoded.streams[name]
                row_N = rows if name == "joint" else encoded.rows[name].clone()
                x_NTD = tokens.x_BTD.detach().clone().index_select(0, row_N).requires_grad_()
                read[name] = Tokens(x_NTD, tokens.mask_BT.clone().index_select(0, row_N), x_NTD.mean(1))
            joint = FusedStream(read["joint"], {}) if self.reads_joint_stream else None
            embedded = self._embed_prompts(DecoderInput(read, dict.fromkeys(read, rows), joint, prompts=prompts))
            loss = (token_cross_entropy(self._text_logits(embedded, ids_NT, mask_NT), ids_NT) * mask_NT).sum()
            gradients = torch.autograd.grad(loss, [tokens.x_BTD for tokens in read.values()])
        return {
            name: (gradient_NTD * tokens.x_BTD).detach().sum(-1).abs() * tokens.mask_BT
            for (name, tokens), gradient_NTD in zip(read.items(), gradients, strict=True)
        }

    def _embed_prompts(self, encoded: DecoderInput) -> Embedded:
        """Embed the tokens of the prompts, and insert the bridged tokens of the streams at their placeholders.

        Raises:
            ConversationError: one is longer than the model's window.
        """
        assert encoded.prompts is not None
        ids_NT, mask_NT = encoded.prompts.ids_NT, encoded.prompts.mask_NT
        x_NTD = self.inner.get_input_embeddings()(ids_NT.clamp_min(0))
        streams = {"joint": encoded.fused_stream.tokens} if self.reads_joint_stream else encoded.streams
        values, masks = [x_NTD], [mask_NT & (ids_NT >= 0)]
        # Sorting by these numbers puts each stream's tokens where its slot is.
        column_T = torch.arange(ids_NT.shape[1], device=ids_NT.device)
        places = [column_T.expand_as(ids_NT)]
        for k, (name, bridge) in enumerate(self.bridges.items()):
            x_BSD, mask_BS = bridge(streams[name].x_BTD, streams[name].mask_BT)
            if name != "joint":
                x_BSD, mask_BS = (t.index_select(0, encoded.rows[name]) for t in (x_BSD, mask_BS))
            slots_NT = ((ids_NT == ALL_STREAMS) | (ids_NT == -2 - k)) & mask_NT
            values.append(x_BSD.to(x_NTD.dtype))
            masks.append(mask_BS & slots_NT.any(1, keepdim=True))
            places.append(slots_NT.int().argmax(1, keepdim=True).expand_as(mask_BS))
        mask_NL, place_NL = torch.cat(masks, dim=1), torch.cat(places, dim=1)
        order_NL = place_NL.masked_fill(~mask_NL, -1).argsort(dim=1, stable=True)
        x_NLD = torch.cat(values, dim=1).take_along_dim(order_NL.unsqueeze(-1), 1)
        return x_NLD, mask_NL.take_along_dim(order_NL, 1)

    def _text_logits(self, embedded: Embedded, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Compute the logits (N, T, K) that predict each token of left-padded texts."""
        x_NTD = self.inner.get_input_embeddings()(ids_NT)
        mask_NL = torch.cat([embedded[1], mask_NT], dim=1)
        order_NL = mask_NL.int().argsort(dim=1, stable=True)
        x_NLD = torch.cat([embedded[0], x_NTD.to(embedded[0].dtype)], dim=1).take_along_dim(order_NL.unsqueeze(-1), 1)
        mask_NL = mask_NL.take_along_dim(order_NL, 1)
        self._check_context_length(mask_NL)
        logits_NTK: Tensor = self.inner(
            inputs_embeds=x_NLD,
            attention_mask=mask_NL.long(),
            logits_to_keep=ids_NT.shape[1] + 1,
            use_cache=False,
            **self._position_ids_argument(mask_NL),
        ).logits
        return logits_NTK[:, :-1]

    def _generated_text_losses(self, embedded: Embedded, ids_NT: Tensor, said_NT: Tensor) -> Tensor:
        """Sum the loss of each generated text (N,); the texts are padded on the right."""
        order_NT = said_NT.int().argsort(dim=1, stable=True)
        ids_NT, said_NT = ids_NT.take_along_dim(order_NT, 1), said_NT.take_along_dim(order_NT, 1)
        logits_NTK = self._text_logits(embedded, ids_NT, said_NT)
        return (token_cross_entropy(logits_NTK, ids_NT) * said_NT).sum(1)

    def _position_ids_argument(self, mask_NL: Tensor) -> dict[str, Tensor]:
        """Build the argument ``position_ids`` that skips the padding on the left; {} for language models without it."""
        return {"position_ids": (mask_NL.long().cumsum(1) - 1).clamp_min(0)} if self._takes_positions else {}

    def _generate_ids(
        self,
        embedded: Embedded,
        processor: VLProcessor,
        ends: set[int],
        top_k: int,
        settings: Mapping[str, Any],
        streamer: Any,
    ) -> Tensor:
        """Generate k texts for each row and return their token ids (N, k, T), padded on the right."""
        from transformers import GenerationConfig

        x_NLD, mask_NL = embedded
        chosen = complete_generation_settings(settings, top_k, processor.config.max_target_tokens)
        if (window := self.config.context_length()) is not None:
            longest = int(mask_NL.sum(1).max())
            if longest >= window:
                raise ConversationError(
                    f"the prompt has {longest} tokens with its inputs, and the language model takes {window} with the "
                    "text that it writes; make it shorter"
                )
            chosen["max_new_tokens"] = min(chosen["max_new_tokens"], window - longest)
        stop = chosen.pop("stop_strings", ())
        ids_NT: Tensor = self.inner.generate(
            inputs_embeds=x_NLD,
            attention_mask=mask_NL.long(),
            generation_config=GenerationConfig(**chosen, eos_token_id=sorted(ends), pad_token_id=min(ends)),
            streamer=streamer,
            stopping_criteria=[StopTextCriterion(processor, stop)] if stop else None,
        )
        return ids_NT.unflatten(0, (len(x_NLD), -1))

    def _check_context_length(self, mask_NL: Tensor) -> None:
        window = self.config.context_length()
        if window is None or mask_NL.shape[1] <= window:
            return
        # Only now, as it waits for the device.
        if (longest := int(mask_NL.sum(1).max())) > window:
            raise ConversationError(
                f"prompt, inputs and text have {longest} tokens, and the language model takes {window}; lower "
                "processor.max_tokens or max_target_tokens, use a bridge of fewer tokens, or raise task.head.positions"
            )


def _remove_padding_columns(embedded: Embedded) -> Embedded:
    """Remove the columns on the left that are padding in all rows of the batch."""
    x_NLD, mask_NL = embedded
    first = min(int(mask_NL.any(0).int().argmax()), mask_NL.shape[1] - 1)
    return x_NLD[:, first:], mask_NL[:, first:]


def _find_layers_without_adapter(inner: nn.Module) -> list[str]:
    """List the paths of layers that must not get an adapter: the output layer, which may share its weights with the
    embeddings, and layers whose weights Mamba's kernels read without calling the layer.
    """
    output = inner.get_output_embeddings()  # type: ignore[operator]
    is_mamba = "mamba" in inner.config.model_type  # type: ignore[operator, union-attr]
    return [
        path
        for path, module in inner.named_modules()
        if module is output or (is_mamba and path.endswith(("out_proj", "conv1d")))
    ]
