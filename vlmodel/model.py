"""VLModel: encoders, topology (with its fusion) and decoder as one transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from vlmodel import parts
from vlmodel.config import ConfigError, Section, dump, parse, part

if TYPE_CHECKING:
    from vlmodel.processor import ProcessorConfig, VLProcessor


class ModelConfig(Section):
    """The parts of the model."""

    vision: part("vlmodel.vision", "cnn") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Vision encoder."""
    language: part("vlmodel.language", "transformer") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Language encoder."""
    topology: part("vlmodel.topology", "dual") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Where the streams meet."""
    fusion: part("vlmodel.fusion", "transformer") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """How they meet."""
    decoder: part("vlmodel.decoder", "vqa") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """The task."""

    def resolve(self, vocabulary: parts.Vocabulary) -> ModelConfig:
        """The same with all that is needed to build it inside."""
        return self.model_copy(update={"language": self.language.resolve(vocabulary)})

    def check_processor(self, processor: ProcessorConfig) -> None:
        """Refuse a processor whose pictures or texts the encoders cannot take.

        Raises:
            ConfigError: naming both sides.
        """
        smallest = self.vision.smallest_image()
        if processor.image_size < smallest:
            raise ConfigError(
                f"processor.image_size={processor.image_size} is smaller than one grid cell of model.vision, which "
                f"stands for {smallest} x {smallest} pixels; make the image larger or keep fewer stages"
            )
        longest = self.language.longest_text()
        if longest is not None and processor.max_tokens > longest:
            raise ConfigError(
                f"processor.max_tokens={processor.max_tokens} is more than the {longest} tokens that model.language "
                "takes; lower the one or raise the other (language.positions)"
            )


class VLConfig(PreTrainedConfig):
    """transformers' configuration of a ``VLModel``.

    Attributes:
        model: the resolved ``ModelConfig`` as a plain tree; the model is rebuilt from it alone.
        vocab_size, pad_token_id: of the tokenizer.
        id2label, label2id: the classes of the task.
    """

    model_type = "vlmodel"

    model: dict[str, Any] | None = None
    vocab_size: int = 30522
    pad_token_id: int = 0


@dataclass
class VLOutput(ModelOutput):
    """What ``VLModel`` returns; K classes for each of N texts.

    Attributes:
        loss: mean loss of the labelled texts (zero if there is none).
        loss_sum, count, correct: sums over the labelled texts, by their weights; add them over batches and workers.
        logits_NK: scores.
        attention_LNQS: attention of each round of the fusion, averaged over heads; on request.
        spans: place of each stream in Q and S; on request.
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    count: Tensor | None = None
    correct: Tensor | None = None
    logits_NK: Tensor | None = None
    attention_LNQS: Tensor | None = None
    spans: dict[str, tuple[int, int]] | None = None


class VLModel(PreTrainedModel):
    """Encoders, topology and decoder, composed by a ``ModelConfig``.

    Make a new one with ``from_tree``, which also reads pretrained encoders; ``from_pretrained`` needs its folder only.
    """

    config_class = VLConfig
    base_model_prefix = ""
    main_input_name = "pixels_BHWC"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["TransformerLayer", "BasicBlock", "Bottleneck"]

    def __init__(self, config: VLConfig) -> None:
        super().__init__(config)
        if config.model is None:
            raise ConfigError("this VLConfig has no tree of parts; make a model with VLModel.from_tree")
        tree = parse(ModelConfig, config.model)
        vocabulary = _vocabulary(config)
        self.vision: parts.Encoder = tree.vision.build()
        self.language: parts.Encoder = tree.language.build(vocabulary)
        widths = {"vision": self.vision.width, "language": self.language.width}
        self.topology: parts.Topology = tree.topology.build(tree.fusion.build(widths), widths)
        self.decoder: parts.Decoder = tree.decoder.build(self.topology.width, vocabulary)
        self._untrained = tuple(name for name, p in self.named_parameters() if not p.requires_grad)
        self.post_init()

    @classmethod
    def from_tree(cls, tree: ModelConfig, processor: VLProcessor) -> VLModel:
        """A new model for the tokenizer and labels of ``processor``, with the pretrained weights that ``tree`` names.

        Raises:
            ConfigError: parts that do not fit each other or the processor.
            WeightsError: pretrained weights that do not exist or do not fit.
        """
        tree.check_processor(processor.config)
        labels = processor.labels
        config = VLConfig(
            vocab_size=len(processor.tokenizer),
            pad_token_id=processor.tokenizer.pad_token_id,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
        config.model = dump(tree.resolve(_vocabulary(config)))
        model = cls(config)
        for encoder in (model.vision, model.language):
            encoder.load_pretrained()
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with safetensors only.

        Raises:
            WeightsError: the weights are not exactly those of the model that the configuration describes.
        """
        with_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        problems = [
            f"{len(info[kind])} {kind.removesuffix('_keys')}: {', '.join(map(str, sorted(info[kind])[:3]))}"
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if info[kind]
        ]
        if problems:
            raise parts.WeightsError(
                f"the weights in {str(args[0]) if args else '?'!r} are of another architecture than its configuration: "
                + "; ".join(problems)
            )
        # transformers puts fresh parameters in the place of ours, trained and contiguous.
        for name in model._untrained:
            model.get_parameter(name).requires_grad_(False)
        model.vision.to(memory_format=torch.channels_last)
        return (model, info) if with_info else model

    def forward(
        self,
        pixels_BHWC: Tensor,
        input_ids_NT: Tensor,
        text_mask_NT: Tensor,
        text_image_N: Tensor,
        distinct_U: Tensor | None = None,
        text_distinct_N: Tensor | None = None,
        output_attention: bool = False,
        **targets: Tensor | None,
    ) -> VLOutput:
        """Encode B images once and N texts, fuse each text with its image, decode.

        Args:
            pixels_BHWC: uint8 RGB images.
            input_ids_NT, text_mask_NT: token ids, and True where they are no padding.
            text_image_N: for each text the row of its image.
            distinct_U, text_distinct_N: rows that hold each distinct text once, and for each text its place among them.
                With both, a text that is asked of several images is encoded once too.
            output_attention: return ``attention_LNQS`` and ``spans``; costs nothing otherwise.
            targets: what the decoder learns from, such as ``labels_N`` and ``weights_N``.
        """
        rows = {"vision": text_image_N}
        if distinct_U is not None and text_distinct_N is not None:
            input_ids_NT, text_mask_NT = (t.index_select(0, distinct_U) for t in (input_ids_NT, text_mask_NT))
            rows["language"] = text_distinct_N
        streams = {"vision": self.vision(pixels_BHWC), "language": self.language(input_ids_NT, text_mask_NT)}
        fused = self.topology(
            streams,
            rows,
            pooled_only=self.decoder.pooled_only,
            output_attention=output_attention,
        )
        decoded: parts.Decoded = self.decoder(fused, **targets)
        loss = None
        if decoded.loss_sum is not None and decoded.count is not None:
            # Where nothing is counted the sum is zero too, whatever it is divided by.
            loss = decoded.loss_sum / decoded.count.clamp_min(torch.finfo(decoded.count.dtype).tiny)
        return VLOutput(
            loss=loss,
            loss_sum=decoded.loss_sum,
            count=decoded.count,
            correct=decoded.correct,
            logits_NK=decoded.logits_NK,
            attention_LNQS=fused.attention_LBQS,
            spans=fused.spans if output_attention else None,
        )

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Trained parameters that came from pretrained encoders."""
        yield from self.vision.pretrained_parameters()
        yield from self.language.pretrained_parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """All other trained parameters."""
        backbone = {id(parameter) for parameter in self.backbone_parameters()}
        yield from (p for p in self.parameters() if p.requires_grad and id(p) not in backbone)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each part draws its weights when it is built, and ``from_pretrained`` refuses missing ones."""


def _vocabulary(config: VLConfig) -> parts.Vocabulary:
    return parts.Vocabulary(config.vocab_size, config.pad_token_id, config.num_labels or 0)


AutoConfig.register("vlmodel", VLConfig, exist_ok=True)
AutoModel.register(VLConfig, VLModel, exist_ok=True)
