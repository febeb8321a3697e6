"""VLModel: encoders, topology (with its fusion) and decoder as one transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from vlmodel import parts
from vlmodel.config import ConfigError, Section, dump, parse, part
from vlmodel.task_spec import split
from vlmodel.tokens import DecoderInput, Fused, Tokens

if TYPE_CHECKING:
    from vlmodel.processor import ProcessorConfig, VLProcessor

INPUTS = (
    "text_image_N", "input_ids_NT", "text_mask_NT", "distinct_U", "text_distinct_N", "distinct_groups_G3",
    "text_features_UTF", "text_features_mask_UT",
)  # fmt: skip
"""Arrays of a task that go in; the others are what should come out."""

Groups = Sequence[Sequence[int]]
"""``distinct_groups_G3`` as numbers (``fields.stays_on_host``)."""


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

    @model_validator(mode="after")
    def _text_is_encoded(self) -> ModelConfig:
        if self.topology.encodes_text and self.decoder.reads_encoded():
            raise ValueError(
                f"topology.kind={self.topology.kind!r} encodes the text together with the image, and "
                f"decoder.kind={self.decoder.kind!r} reads it encoded alone, as every contrastive task does; use "
                "topology.kind='dual' or 'interactive', or leave that task out"
            )
        return self

    @model_validator(mode="after")
    def _text_can_be_embedded(self) -> ModelConfig:
        if self.topology.encodes_text:
            try:
                self.language.without_layers()
            except ConfigError as error:
                raise ValueError(
                    f"topology.kind={self.topology.kind!r} encodes the text itself, of its embeddings: {error}"
                ) from None
        return self

    def frozen_streams(self) -> tuple[str, ...]:
        """Streams whose encoder has a backbone that training leaves as it is, so that what it gives can be kept."""
        texts = not self.topology.encodes_text and any(fields.text for fields in self.decoder.tasks().values())
        is_frozen = {"vision": self.vision.is_frozen(), "language": texts and self.language.is_frozen()}
        return tuple(name for name, is_resting in is_frozen.items() if is_resting)

    def text_features(self) -> Literal["tokens", "pooled"]:
        """Whether the language encoder's features are needed of each token of a text, or of it as a whole."""
        joined = self.decoder.reads_joint() and (self.topology.reads_tokens or self.fusion.reads_tokens)
        whole = self.language.can_pool_features() and not (joined and self.language.outputs_tokens())
        return "pooled" if whole else "tokens"

    def resolve(self, vocabulary: parts.Vocabulary) -> ModelConfig:
        """The same with all that is needed to build it inside."""
        language = self.language.without_layers() if self.topology.encodes_text else self.language
        return self.model_copy(
            update={"language": language.resolve(vocabulary), "decoder": self.decoder.resolve(vocabulary)}
        )

    def check_processor(self, processor: ProcessorConfig) -> None:
        """Refuse a processor whose pictures or texts the encoders cannot take.

        Raises:
            ConfigError: naming both sides.
        """
        self.vision.check_image(processor.image_size)
        longest = self.language.longest_text()
        if longest is not None and processor.max_tokens > longest:
            raise ConfigError(
                f"processor.max_tokens={processor.max_tokens} is more than the {longest} tokens that model.language "
                "takes; lower the one or raise the other (language.positions)"
            )
        written = self.decoder.longest_target()
        if written is not None and processor.max_target_tokens > written:
            raise ConfigError(
                f"processor.max_target_tokens={processor.max_target_tokens} is more than the {written} tokens that "
                "model.decoder can write; lower the one or raise the other (decoder.positions)"
            )

    def text_limits(self, processor: VLProcessor) -> tuple[int | None, int | None]:
        """Most tokens of a text that goes into the model, and of one that it can write; None where there is no limit.

        Raises:
            WeightsError: a pretrained part that does not exist.
        """
        resolved = self.resolve(vocabulary_of(processor))
        return resolved.language.longest_text(), resolved.decoder.longest_target()


def vocabulary_of(processor: VLProcessor) -> parts.Vocabulary:
    """What the parts need to know of a processor's tokens and labels."""
    begin, end = (-1 if number is None else number for number in (processor.begin_id, processor.end_id))
    tokenizer = processor.tokenizer
    return parts.Vocabulary(len(tokenizer), tokenizer.pad_token_id, len(processor.labels), begin, end)


class VLConfig(PreTrainedConfig):
    """transformers' configuration of a ``VLModel``.

    Attributes:
        model: the resolved ``ModelConfig`` as a plain tree; the model is rebuilt from it alone.
        vocab_size, pad_token_id: of the tokenizer.
        begin_token_id, end_token_id: tokens that begin and end a text to be written; -1 where there are none.
        id2label, label2id: the answers that a classifier chooses among.
    """

    model_type = "vlmodel"

    model: dict[str, Any] | None = None
    vocab_size: int = 30522
    pad_token_id: int = 0
    begin_token_id: int = -1
    end_token_id: int = -1


@dataclass
class VLOutput(ModelOutput):
    """What ``VLModel`` returns; K classes for each of N rows. Units are what a task counts: texts, or tokens.

    Attributes:
        loss: mean loss of the units that have a target (zero if there is none).
        loss_sum, count, correct, total: sums over units, by their weights (see ``parts.DecoderOutput``); add them over
            batches and workers. Of several tasks they are the sums by the tasks' weights.
        tasks: the four sums of each task, (4,) float64, where there are several.
        logits_NK: scores, where the task has classes.
        attention_LNQS: attention of each round of topology and fusion, averaged over heads; on request.
        spans: place of each stream in Q and S; on request.
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    count: Tensor | None = None
    correct: Tensor | None = None
    total: Tensor | None = None
    tasks: dict[str, Tensor] | None = None
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
            raise ConfigError(
                f"the configuration {config.name_or_path!r} has no tree of parts, so it is none of a VLModel; name a "
                "folder that VLModel.save_pretrained wrote, or make a model with VLModel.from_tree"
            )
        tree = parse(ModelConfig, config.model)
        vocabulary = _vocabulary(config)
        self.vision: parts.VisionEncoder = tree.vision.build()
        widths = {"vision": self.vision.width}
        # What no task needs is not built: data-parallel training waits for the gradient of every parameter.
        self.language: parts.LanguageEncoder | None = None
        if any(fields.text for fields in tree.decoder.tasks().values()):
            self.language = tree.language.build(vocabulary)
            widths["language"] = self.language.width
        self.topology: parts.Topology | None = None
        if tree.decoder.reads_joint():
            fusion = tree.fusion.build(tree.topology.fusion_widths(widths))
            self.topology = tree.topology.build(fusion, widths)
            widths["joint"] = self.topology.width
        self.decoder: parts.Decoder = tree.decoder.build(widths, vocabulary)
        self._untrained = tuple(name for name, p in self.named_parameters() if not p.requires_grad)
        self.post_init()
        # transformers looks for tied weights in its own models among the direct children only.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

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
            begin_token_id=-1 if processor.begin_id is None else processor.begin_id,
            end_token_id=-1 if processor.end_id is None else processor.end_id,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
        resolved = tree.resolve(_vocabulary(config))
        # Only now the limits of pretrained parts are known.
        resolved.check_processor(processor.config)
        config.model = dump(resolved)
        model = cls(config)
        for source in model.pretrainable_parts():
            source.load_pretrained()
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with safetensors only.

        Raises:
            WeightsError: the weights cannot be read, or are not exactly those of the model that the configuration
                describes.
        """
        with_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        folder = str(args[0]) if args else "?"
        try:
            # Weights of another shape are told by name below; of their own transformers would only say that there are.
            loaded: Any = super().from_pretrained(
                *args, output_loading_info=True, **{**kwargs, "ignore_mismatched_sizes": True}
            )
        except SafetensorError as error:  # neither a ValueError nor an OSError
            raise parts.WeightsError(f"the weights in {folder!r} are damaged: {error}; restore the file") from error
        model, info = loaded
        problems = [
            f"{len(info[kind])} {kind.removesuffix('_keys')}: {', '.join(sorted(info[kind])[:3])}"
            for kind in ("missing_keys", "unexpected_keys")
            if info[kind]
        ]
        if mismatched := sorted(info["mismatched_keys"]):
            examples = (
                f"{key} {tuple(found)} where {tuple(wanted)} is needed" for key, found, wanted in mismatched[:3]
            )
            problems.append(f"{len(mismatched)} of another shape: {', '.join(examples)}")
        if problems:
            raise parts.WeightsError(
                f"the weights in {folder!r} are of another architecture than its configuration: " + "; ".join(problems)
            )
        # transformers puts fresh parameters in the place of ours, trained and contiguous.
        for name in model._untrained:
            model.get_parameter(name).requires_grad_(False)
        model.vision.to(memory_format=torch.channels_last)
        return (model, info) if with_info else model

    def forward(
        self,
        pixels_BHWC: Tensor | None = None,
        output_attention: bool = False,
        image_mask_B: Tensor | None = None,
        features_BF: Tensor | None = None,
        image_place_B: Tensor | None = None,
        **fields: Any,
    ) -> VLOutput:
        """Encode B images once; for each task encode its texts, fuse each row with its image, decode.

        Args:
            pixels_BHWC: uint8 RGB images.
            image_mask_B: False where there is no image; such an image changes nothing. All are real if not given.
            features_BF: what ``vision.features`` has given of the images, in place of them.
            image_place_B: where the image of each sample is among the P that are given, and P of a sample without
                one, whose rows have no vision stream. Such a sample costs the vision encoder nothing, and does not
                enter its batch statistics. The images are those of the samples, one each, if not given.
            output_attention: return ``attention_LNQS`` and ``spans`` of the first task; costs nothing otherwise.
            fields: what ``VLProcessor`` makes of the texts, by the names that it gives (of several tasks
                ``task.name``): ``text_image_N``, for each row its image; ``input_ids_NT`` and ``text_mask_NT``; with
                ``distinct_U`` and ``text_distinct_N`` a text that is asked of several images is encoded once too, and
                with ``distinct_groups_G3``, which stays on the host, together with texts of like length;
                ``text_features_UTF`` and ``text_features_mask_UT``, what ``language.features`` has given of these
                distinct texts, in place of which their tokens are then not encoded;
                and targets such as ``labels_N`` and ``weights_N``.

        Raises:
            ValueError: neither images nor features were given, or both.
        """
        vision = self.encode_images(pixels_BHWC, image_mask_B, features_BF, image_place_B)
        decoded: dict[str, parts.DecoderOutput] = {}
        shown: Fused | None = None
        for task, head in self.decoder.task_decoders().items():
            given = split(fields, task)
            encoded = self.encode_task(head, vision, given, output_attention and not decoded)
            decoded[task] = head(encoded, **{name: value for name, value in given.items() if name not in INPUTS})
            shown = shown or encoded.joint
        result = self.decoder.combine(decoded)
        loss = None
        if result.loss_sum is not None and result.count is not None:
            # Where nothing is counted the sum is zero too, whatever it is divided by.
            loss = result.loss_sum / result.count.clamp_min(torch.finfo(result.count.dtype).tiny)
        return VLOutput(
            loss=loss,
            loss_sum=result.loss_sum,
            count=result.count,
            correct=result.correct,
            total=result.total,
            tasks={task: _sums(d) for task, d in decoded.items()} if len(decoded) > 1 and loss is not None else None,
            logits_NK=result.logits_NK,
            attention_LNQS=shown.attention_LBQS if shown is not None else None,
            spans=shown.spans if shown is not None and output_attention else None,
        )

    def encode_images(
        self,
        pixels_BHWC: Tensor | None = None,
        image_mask_B: Tensor | None = None,
        features_BF: Tensor | None = None,
        image_place_B: Tensor | None = None,
    ) -> Tokens:
        """The encoded images, of which either the pixels or the features are given; see ``forward``."""
        if (pixels_BHWC is None) == (features_BF is None):
            given = "neither" if pixels_BHWC is None else "both"
            raise ValueError(f"images come as pixels_BHWC or as features_BF, and {given} of them were given; give one")
        vision: Tokens = self.vision(pixels_BHWC) if features_BF is None else self.vision.from_features(features_BF)
        if image_place_B is not None:
            vision = vision.with_missing_rows(image_place_B)
        if image_mask_B is None:
            return vision
        return Tokens(vision.x_BTD, vision.mask_BT & image_mask_B[:, None], vision.pooled_BD)

    def encode_texts(self, input_ids_NT: Tensor, text_mask_NT: Tensor, groups: Groups = ()) -> Tokens:
        """The encoded texts.

        Args:
            groups: how many texts, one after the other, are encoded together, and the first column of their tokens and
                the one after the last; all together if none are given.
        """
        assert self.language is not None
        if len(groups) < 2:
            language: Tokens = self.language(input_ids_NT, text_mask_NT)
            return language
        encoded, first = [], 0
        for count, start, end in groups:
            texts, columns = slice(first, first + count), slice(start, end)
            encoded.append(self.language(input_ids_NT[texts, columns], text_mask_NT[texts, columns]))
            first += count
        return Tokens.concatenate(encoded)

    def encode_task(
        self, head: parts.Decoder, vision: Tokens, given: Mapping[str, Any], output_attention: bool = False
    ) -> DecoderInput:
        """All that ``head`` is given: encoded texts and, if it reads it, the joint stream.

        Args:
            given: the arrays of the head's task, by their plain names.
        """
        image_N = given["text_image_N"]
        assert image_N is not None
        streams, rows = {"vision": vision}, {"vision": image_N}
        if head.spec.text:
            streams["language"], rows["language"] = self._encode_task_texts(given)
        if not head.reads_joint or self.topology is None:
            return DecoderInput(streams, rows, None)
        if head.spec.text:
            joint = self.topology(streams, rows, pooled_only=head.pooled_only, output_attention=output_attention)
        else:
            # Without a text of its own a row shares all of its image's: fused once, repeated afterwards.
            joint = self.topology(streams, {}, pooled_only=head.pooled_only, output_attention=output_attention).select(
                image_N
            )
        return DecoderInput(streams, rows, joint)

    def _encode_task_texts(self, given: Mapping[str, Any]) -> tuple[Tokens, Tensor]:
        """The encoded distinct texts of a task, and the one of each row."""
        features_UTF, row_N = given.get("text_features_UTF"), given.get("text_distinct_N")
        if features_UTF is not None:
            assert self.language is not None
            assert row_N is not None
            return self.language.from_features(features_UTF, given["text_features_mask_UT"]), row_N
        ids_NT, mask_NT, distinct_U = (given.get(n) for n in ("input_ids_NT", "text_mask_NT", "distinct_U"))
        assert ids_NT is not None
        assert mask_NT is not None
        groups = given.get("distinct_groups_G3")
        if distinct_U is not None and row_N is not None:
            ids_NT, mask_NT = ids_NT.index_select(0, distinct_U), mask_NT.index_select(0, distinct_U)
        else:
            groups = None  # of the distinct texts
            row_N = torch.arange(len(ids_NT), device=ids_NT.device)
        return self.encode_texts(ids_NT, mask_NT, _as_numbers(groups)), row_N

    def encoders(self) -> Iterator[parts.Encoder]:
        """Those that there are."""
        yield from (encoder for encoder in (self.vision, self.language) if encoder is not None)

    def pretrainable_parts(self) -> Iterator[parts.Encoder | parts.Decoder]:
        """The parts whose weights may come from elsewhere."""
        yield from self.encoders()
        yield from self.decoder.task_decoders().values()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Trained parameters that came from pretrained encoders and decoders."""
        for source in self.pretrainable_parts():
            yield from source.pretrained_parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """All other trained parameters."""
        backbone = {id(parameter) for parameter in self.backbone_parameters()}
        yield from (p for p in self.parameters() if p.requires_grad and id(p) not in backbone)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each part draws its weights when it is built, and ``from_pretrained`` refuses missing ones."""


def _vocabulary(config: VLConfig) -> parts.Vocabulary:
    labels = len(config.id2label or {})
    return parts.Vocabulary(config.vocab_size, config.pad_token_id, labels, config.begin_token_id, config.end_token_id)


def _as_numbers(groups: Groups | Tensor | None) -> Groups:
    if groups is None:
        return ()
    return groups.tolist() if isinstance(groups, Tensor) else groups


def _sums(decoded: parts.DecoderOutput) -> Tensor:
    sums = [decoded.loss_sum, decoded.count, decoded.correct, decoded.total]
    return torch.stack([value.detach().double() for value in sums if value is not None])


AutoConfig.register("vlmodel", VLConfig, exist_ok=True)
AutoModel.register(VLConfig, VLModel, exist_ok=True)
