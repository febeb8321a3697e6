"""The model: encoders, a topology (with its fusion) and a decoder, composed as one transformers model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor, PreTrainedModel
from transformers.utils import ModelOutput

from vlmodel import bases, parts
from vlmodel.array_names import select_task_arrays
from vlmodel.config import ConfigError, dump_config, parse_config
from vlmodel.encoder_parts import TEXT
from vlmodel.images.preprocessing import as_height_and_width
from vlmodel.model_config import ModelConfig, vocabulary_of_processor
from vlmodel.processor import VLProcessor
from vlmodel.saved_config import AUTO_FILE, AUTO_MAP, VLConfig
from vlmodel.task import Task
from vlmodel.tokens import DecoderInput, FusedStream, Prompts, Streams, Tokens
from vlmodel.weights import refuse_mismatched_weights

if TYPE_CHECKING:
    from vlmodel.knowledge._memory import FactMemory

TASK_INPUTS = (
    "sample_N", "input_ids_NT", "text_mask_NT", "distinct_U", "text_distinct_N", "distinct_groups_G3",
    "text_features_UTF", "text_features_mask_UT", "text_positions_NT", "text_visible_NTT",
    "fact_ids_MT", "fact_mask_MT", "fact_rows_NJ", "fact_right_NJ", "prompt_ids_NT", "prompt_mask_NT",
)  # fmt: skip
"""Arrays of a task that are read before its decoder; the others are the decoder's targets."""

KNOWLEDGE = "knowledge"
"""The stream of facts."""

FEATURES = ("features_BF", "features_BTF", "features_mask_BT")
"""Arrays of cached features, in the order in which ``tokens_from_features`` takes them."""


@dataclass
class VLOutput(ModelOutput):
    """The output of ``VLModel``: scores of K classes for each of N rows, and sums over counted units (texts or tokens).

    Attributes:
        loss: mean loss of the units that have a target (zero if there is none).
        loss_sum, count, correct, total: sums over units, by their weights (see ``parts.DecoderOutput``); add them over
            batches and workers. Of several tasks they are the sums by the tasks' weights.
        tasks: the four sums of each task, (4,) float64, if there are several.
        logits_NK: scores, if the task has classes.
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
    """A vision-language model, composed of encoders, topology and decoder by a ``ModelConfig``.

    ``create_from_config`` makes a new model with pretrained encoders; ``from_pretrained`` loads a saved one.
    """

    config_class = VLConfig
    base_model_prefix = ""
    main_input_name = "sample_N"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["TransformerLayer", "BasicBlock", "Bottleneck"]

    def __init__(self, config: VLConfig) -> None:
        super().__init__(config)
        stored = config.checked_model_settings(str(config.name_or_path))
        try:
            tree = parse_config(ModelConfig, stored)
        except ConfigError as error:
            raise ConfigError(
                f"the configuration {config.name_or_path!r} is of another version ({error}); train the model anew with "
                "this one"
            ) from None
        encodings = tree.encoders_by_stream()
        self.vision: parts.VisionEncoder | None = tree.vision.build() if "vision" in encodings else None
        self.language: parts.LanguageEncoder | None = None
        if "language" in encodings:
            self.language = tree.language.build(config.vocabulary)
        self.inputs = nn.ModuleDict({name: tree.inputs[name].build() for name in encodings if name in tree.inputs})
        self.streams_of_inputs = {stream: e.input for stream, e in encodings.items() if e.input != TEXT}
        widths = {name: self.encoder_of_stream(name).width for name in encodings}
        self.memory: FactMemory | None = None
        if tree.knowledge.gives_stream:
            self.memory = tree.knowledge.build(widths)
            widths[KNOWLEDGE] = self.memory.width
        self.topology: parts.Topology | None = None
        if tree.task.reads_joint_stream():
            fusion = tree.fusion.build(tree.topology.fusion_widths(widths))
            self.topology = tree.topology.build(fusion, widths)
            widths["joint"] = self.topology.width
        self.tasks: dict[str, Task] = tree.task.tasks_by_name()
        self.decoder: parts.Decoder = tree.task.build(widths, config.vocabulary)
        self._untrained = tuple(name for name, p in self.named_parameters() if not p.requires_grad)
        self.post_init()
        # transformers looks for tied weights among the direct children only.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    @classmethod
    def create_from_config(cls, tree: ModelConfig, processor: VLProcessor) -> VLModel:
        """Create a model for the tokenizer and the labels of ``processor``, with the pretrained weights that ``tree``
        names.

        Raises:
            ConfigError: parts that do not fit each other or the processor.
            WeightsError: pretrained weights that do not exist or do not fit.
        """
        tree.check_processor(processor.config)
        tree.task.check_tokenizer(processor.tokenizer)
        tree.knowledge.check_tokenizer(processor.tokenizer)
        resolved = tree.resolve_settings(
            vocabulary_of_processor(processor), as_height_and_width(processor.config.image_size)
        )
        resolved.check_processor(processor.config)  # again, as only now the limits of pretrained parts are known
        model = cls(VLConfig.from_processor(dump_config(resolved), processor))
        for part in model.pretrainable_parts():
            part.load_pretrained()
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        stored: bases.Bases | None = None,
        trained: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the model as transformers does, in one file of weights; frozen weights are stored separately, see
        ``vlmodel.bases``.

        Args:
            stored: the model's bases, if they are stored (``bases.store_base_weights``); by default they are stored
                within the folder, which then is complete.
            trained: all tensors but the frozen ones, by name, where this model holds shards of them; needs ``stored``.
        """
        folder = Path(save_directory)
        named = bases.store_base_weights(self, folder / bases.FOLDER) if stored is None else stored
        if others := sorted(named.keys() ^ bases.frozen_tensors_by_part(self).keys()):
            raise ValueError(
                f"stored={dict(named)} are not this model's bases: {', '.join(others)}; use bases.store_base_weights"
            )
        if trained is None:
            frozen = bases.frozen_tensor_names(self)
            trained = {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}
        self.config.auto_map = AUTO_MAP
        super().save_pretrained(folder, state_dict=dict(trained), max_shard_size=sys.maxsize, **kwargs)
        shutil.copy(AUTO_FILE, folder)
        bases.write_base_weights_list(named, folder)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: ``AUTO_MAP`` is always stored, and transformers would store another one and copy this file."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        base_folder: str | Path | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model that ``save_pretrained`` wrote.

        Args:
            pretrained_model_name_or_path: its folder.
            base_folder: where its bases are searched for first, see ``vlmodel.bases``.
            args, output_loading_info, kwargs: as transformers'.

        Raises:
            ConfigError: the folder's configuration is none of a VLModel, or of an earlier version of this program.
            WeightsError: the weights cannot be read, or are not exactly those that the configuration describes.
            BaseWeightsError: a base is missing, or another one.
        """
        folder = str(pretrained_model_name_or_path)
        config = kwargs.pop("config", None) or VLConfig.from_pretrained(folder, local_files_only=True)
        config.checked_model_settings(folder)
        # ``refuse_mismatched_weights`` names weights of another shape, transformers' own error would not.
        kwargs |= {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with bases.open_model_weights(Path(folder), Path(base_folder) if base_folder else None) as weights:
            loaded: Any = super().from_pretrained(None, *args, state_dict=weights, **kwargs)
        model, info = loaded
        model.name_or_path = model.config.name_or_path = folder
        refuse_mismatched_weights(folder, info)
        for part in model.pretrainable_parts():
            part.restore_buffers()
        # transformers replaces the parameters of ``__init__`` by trained, contiguous ones.
        for name in model._untrained:
            model.get_parameter(name).requires_grad_(False)
        if model.vision is not None:
            model.vision.to(memory_format=torch.channels_last)
        return (model, info) if output_loading_info else model

    def forward(self, output_attention: bool = False, **arrays: Any) -> VLOutput:
        """Encode each input of B samples once; then, for each task, encode its texts, fuse each row with its sample,
        and decode.

        Args:
            output_attention: return ``attention_LNQS`` and ``spans`` of the first task; costs nothing otherwise.
            arrays: ``VLProcessor``'s, by their names.
                Of each input ``INPUT.array``: ``image.pixels_BHWC`` uint8, or cached ``image.features_BF`` in its
                place; of a further input the arrays of its part, or ``features_BTF`` with ``features_mask_BT``.
                ``INPUT.place_B``: for each sample the index of its input among the P given ones, or P for a sample
                without it: its rows lack that stream, and it costs the encoder nothing and does not change its batch
                statistics. If not given, each sample has the input, in order.
                Of each task, with ``task.`` before them if there are several: ``sample_N``: the sample of each row.
                ``input_ids_NT``, ``text_mask_NT``: its tokens. ``distinct_U``, ``text_distinct_N``: equal texts, which
                are then encoded once. ``distinct_groups_G3``, on the host: distinct texts of similar length that are
                encoded together. ``text_positions_NT``, ``text_visible_NTT``: where tokens stand and which attend to
                which, if that is not their order and all (``parts.TokenLayout``). ``text_features_UTF``,
                ``text_features_mask_UT``: cached ``language.compute_features`` of the distinct texts, in place of their
                tokens. ``fact_ids_MT``, ``fact_mask_MT``, ``fact_rows_NJ``, ``fact_right_NJ``: the facts of a memory
                (``knowledge.memory``).
                ``prompt_ids_NT``, ``prompt_mask_NT``: what a language model reads, see ``tokens.Prompts``.
                All others, such as ``labels_N`` and ``weights_N``, are targets of the decoder.

        Raises:
            ValueError: an input that the model reads was not given, or both it and its features.
        """
        encoded = self.encode_inputs(arrays)
        decoded: dict[str, parts.DecoderOutput] = {}
        joint: FusedStream | None = None
        for task, decoder in self.decoder.task_decoders().items():
            of_task = select_task_arrays(arrays, task)
            inputs = self.encode_task(task, encoded, of_task, output_attention and not decoded)
            decoded[task] = self._add_selection_loss(
                decoder(inputs, **{name: value for name, value in of_task.items() if name not in TASK_INPUTS}),
                inputs, of_task,
            )  # fmt: skip
            joint = joint or inputs.joint
        result = self.decoder.combine_task_outputs(decoded)
        loss = None
        if result.loss_sum is not None and result.count is not None:
            # If nothing is counted the sum is zero, too.
            loss = result.loss_sum / result.count.clamp_min(torch.finfo(result.count.dtype).tiny)
        return VLOutput(
            loss=loss,
            loss_sum=result.loss_sum,
            count=result.count,
            correct=result.correct,
            total=result.total,
            tasks={task: _stack_loss_sums(d) for task, d in decoded.items()}
            if len(decoded) > 1 and loss is not None
            else None,
            logits_NK=result.logits_NK,
            attention_LNQS=joint.attention_LBQS if joint is not None else None,
            spans=joint.spans if joint is not None and output_attention else None,
        )

    def _add_selection_loss(
        self, decoded: parts.DecoderOutput, inputs: DecoderInput, arrays: Mapping[str, Any]
    ) -> parts.DecoderOutput:
        """Add to the output of a task, in training, the loss by which a memory learns to select facts."""
        right_NJ, weights_NJ = arrays.get("fact_right_NJ"), inputs.fact_weights_NJ
        if self.memory is None or not self.training or right_NJ is None or weights_NJ is None:
            return decoded
        assert decoded.loss_sum is not None
        loss = self.memory.selection_loss(weights_NJ, right_NJ, arrays.get("weights_N"))
        return replace(decoded, loss_sum=decoded.loss_sum + loss)

    def encode_inputs(self, arrays: Mapping[str, Any]) -> dict[str, Tokens]:
        """Encode all inputs but the texts to streams of B rows each; see ``forward``."""
        return {
            stream: self._encode_input(stream, name, select_task_arrays(arrays, name))
            for stream, name in self.streams_of_inputs.items()
        }

    def _encode_input(self, stream: str, name: str, arrays: dict[str, Any]) -> Tokens:
        """Encode one input to a stream, given its arrays by their plain names."""
        place_B = arrays.pop("place_B", None)
        features = {array: arrays.pop(array) for array in FEATURES if array in arrays}
        if bool(arrays) == bool(features):
            given = "both were" if arrays else "neither was"
            raise ValueError(f"the input {name!r} comes as it is or as features, and {given} given; give one")
        encoder: Any = self.encoder_of_stream(stream)
        tokens: Tokens = encoder.tokens_from_features(*features.values()) if features else encoder(**arrays)
        return tokens if place_B is None else tokens.select_rows_or_missing(place_B)

    def encode_texts(
        self,
        input_ids_NT: Tensor,
        text_mask_NT: Tensor,
        groups: Tensor | Sequence[Sequence[int]] | None = None,
        layout: parts.TokenLayout | None = None,
    ) -> Tokens:
        """Encode texts to the language stream.

        Args:
            groups: (texts, first column, end column) of each group of consecutive texts that are encoded together; all
                texts are one group if not given.
            layout: of the tokens, if it is not their order.
        """
        assert self.language is not None
        if groups is None or len(groups) < 2:
            language: Tokens = self.language(input_ids_NT, text_mask_NT, **_layout_argument(layout))
            return language
        encoded, first = [], 0
        for count, start, end in groups.tolist() if isinstance(groups, Tensor) else groups:
            texts, columns = slice(first, first + count), slice(start, end)
            of_group = _layout_argument(layout and layout.slice_texts(texts, columns))
            encoded.append(self.language(input_ids_NT[texts, columns], text_mask_NT[texts, columns], **of_group))
            first += count
        return Tokens.concatenate(encoded)

    def encode_task(
        self, task: str, encoded: Streams, arrays: Mapping[str, Any], output_attention: bool = False
    ) -> DecoderInput:
        """Compute what the head of a task reads: the encoded streams and, if it reads it, the joint stream.

        Args:
            encoded: the streams of the inputs.
            arrays: of the task, by their plain names.
        """
        decoder, encodes_text = self.decoder.task_decoders()[task], self.tasks[task].encodes_text()
        sample_N = arrays["sample_N"]
        streams, rows = dict(encoded), dict.fromkeys(encoded, sample_N)
        if encodes_text:
            streams["language"], rows["language"] = self._encode_task_texts(arrays)
        prompts = None
        if (ids_NT := arrays.get("prompt_ids_NT")) is not None:
            prompts = Prompts(ids_NT, arrays["prompt_mask_NT"])
        if not decoder.reads_joint_stream or self.topology is None:
            return DecoderInput(streams, rows, None, prompts=prompts)
        weights_NJ = None
        if self.memory is not None:
            facts = self.encode_texts(arrays["fact_ids_MT"], arrays["fact_mask_MT"])
            streams[KNOWLEDGE], weights_NJ = self.memory(streams, rows, facts, arrays["fact_rows_NJ"])
        options = {"pooled_only": decoder.pooled_only, "output_attention": output_attention}
        if encodes_text:
            return DecoderInput(streams, rows, self.topology(streams, rows, **options), weights_NJ, prompts)
        # Rows without texts of their own share all of their sample's: fused once, repeated afterwards.
        return DecoderInput(streams, rows, self.topology(streams, {}, **options).select_rows(sample_N), prompts=prompts)

    def _encode_task_texts(self, arrays: Mapping[str, Any]) -> tuple[Tokens, Tensor]:
        """Encode the distinct texts of a task, and return for each row the index of its text."""
        row_N = arrays.get("text_distinct_N")
        if (features_UTF := arrays.get("text_features_UTF")) is not None:
            assert self.language is not None
            assert row_N is not None
            return self.language.tokens_from_features(features_UTF, arrays["text_features_mask_UT"]), row_N
        ids_NT, mask_NT, distinct_U = arrays["input_ids_NT"], arrays["text_mask_NT"], arrays.get("distinct_U")
        layout = None
        if (positions_NT := arrays.get("text_positions_NT")) is not None:
            layout = parts.TokenLayout(positions_NT, arrays["text_visible_NTT"])
        if distinct_U is None or row_N is None:
            rows_N = torch.arange(len(ids_NT), device=ids_NT.device)
            return self.encode_texts(ids_NT, mask_NT, layout=layout), rows_N
        ids_UT, mask_UT = ids_NT.index_select(0, distinct_U), mask_NT.index_select(0, distinct_U)
        layout = layout and layout.select_texts(distinct_U)
        return self.encode_texts(ids_UT, mask_UT, arrays.get("distinct_groups_G3"), layout), row_N

    def encoder_of_stream(self, stream: str) -> parts.Encoder:
        """Return the encoder of a stream: ``vision``, ``language`` or one of ``inputs``."""
        encoder: Any = self.inputs[stream] if stream in self.inputs else getattr(self, stream)
        return encoder

    def list_encoders(self) -> Iterator[parts.Encoder]:
        """List the encoders that the tasks need."""
        yield from (encoder for encoder in (self.vision, self.language) if encoder is not None)
        yield from self.inputs.values()  # type: ignore[misc]

    def pretrainable_parts(self) -> Iterator[parts.Pretrainable]:
        """List the parts that may load pretrained weights."""
        yield from self.list_encoders()
        yield from self.decoder.task_decoders().values()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """List the trained parameters that came from pretrained encoders and decoders."""
        for part in self.pretrainable_parts():
            yield from part.pretrained_parameters()

    def backbone_layers(self) -> Iterator[list[list[nn.Parameter]]]:
        """Group ``backbone_parameters`` by part and layer (``Pretrainable.pretrained_layers``)."""
        yield from (part.pretrained_layers() for part in self.pretrainable_parts())

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """List all trained parameters that did not come from pretrained parts."""
        backbone = {id(parameter) for parameter in self.backbone_parameters()}
        yield from (p for p in self.parameters() if p.requires_grad and id(p) not in backbone)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: each part initializes its weights when it is built, and ``from_pretrained`` refuses
        missing ones.
        """


def _layout_argument(layout: parts.TokenLayout | None) -> dict[str, parts.TokenLayout]:
    """Build the keyword argument ``layout``, which only encoders that can arrange tokens have."""
    return {} if layout is None else {"layout": layout}


def _stack_loss_sums(decoded: parts.DecoderOutput) -> Tensor:
    sums = [decoded.loss_sum, decoded.count, decoded.correct, decoded.total]
    return torch.stack([value.detach().double() for value in sums if value is not None])


AutoModel.register(VLConfig, VLModel, exist_ok=True)
AutoProcessor.register(VLConfig, VLProcessor, exist_ok=True)
