"""Turns the bytes of inputs and texts into a batch, in the same way for training, evaluation, offline prediction and
serving.

torch and transformers are imported on first use: processes that only decode stay small.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from vlmodel.answers import Normalizer, normalize_for_comparison
from vlmodel.array_names import prefix_array_names
from vlmodel.config import ConfigError, ConfigSection, dump_config, parse_config, parse_part_config
from vlmodel.conversation import extract_question, is_conversation_text
from vlmodel.encoder_parts import IMAGE, ModalityPart
from vlmodel.facts import FactFinder, LinkedFact
from vlmodel.images.decoders.cpu import decode_image
from vlmodel.images.pillow import FORMATS
from vlmodel.images.preprocessing import (
    ImagePreprocessing,
    SideOrSize,
    as_height_and_width,
    as_side_or_size,
    describe_size,
)
from vlmodel.images.resize import ImageResizing, Interpolation, Resize
from vlmodel.knowledge.none import Config as NoKnowledge
from vlmodel.knowledge_parts import KnowledgePart
from vlmodel.lengths import group_texts_by_length
from vlmodel.tasks import DEFAULT

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vlmodel.task import Task

TRAINED_ON_DATA = "trained_on_data"
"""Keyword of a tokenizer that was trained on the texts of the data, stored with it."""
_FILE = "processor.json"
_MIN_LIMIT, _MAX_LIMIT = 32, 512
"""The range of token limits that follow the data; the model's own limit takes the place of the upper one."""
_USUAL_SIZE = 224


class ProcessorConfig(ConfigSection):
    """Settings of how the bytes of images and texts become a batch."""

    image_size: SideOrSize = 0
    """Side of the square that each image becomes, in pixels, or [height, width]. 0 takes what the weights of
    model.vision were trained with, and without any what its architecture takes, or 224."""
    resize: Resize | None = None
    """"squash" distorts the whole image to this size; "crop" cuts out the largest region of its shape in the center;
    "pad" shrinks the whole image into it, and fills the bars beside it with grey. null takes what the weights of
    model.vision were trained with, and without any squash."""
    crop: float | None = Field(None, gt=0, le=1)
    """Share of height and width around the center that is kept (of the region, with "crop"). null takes what the
    weights of model.vision were trained with if resize is theirs too, else 1."""
    interpolation: Interpolation | None = None
    """Filter by which images are resized; null takes that of the weights of model.vision, and without any bilinear."""
    max_tokens: int = Field(0, ge=0)
    """Longer texts are cut to this many tokens, special tokens included. 0 follows the data: the longest text of the
    training split, at least 32 and at most what the model takes (512 if it has no limit)."""
    max_target_tokens: int = Field(0, ge=0)
    """Longer texts to be generated are cut to this many tokens, including those that begin and end them. 0 follows the
    data in the same way."""
    length_groups: int = Field(1, ge=1)
    """The texts of a batch are encoded in at most so many groups of similar length, each padded to its own longest
    text; 1 pads all to the longest of the batch."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Images of more pixels are refused before they are decoded."""

    @field_validator("max_tokens", "max_target_tokens")
    @classmethod
    def _check_token_limits(cls, limit: int, info: ValidationInfo) -> int:
        least = 2 if info.field_name == "max_tokens" else 3
        if 0 < limit < least:
            raise ValueError(
                f"{limit}: special tokens alone take as many; set at least {least}, or 0 to follow the data"
            )
        return limit

    @model_validator(mode="after")
    def _check_pad_without_crop(self) -> ProcessorConfig:
        if self.resize == "pad" and self.crop not in (None, 1):
            raise ValueError(f"crop={self.crop} cuts off the edges that resize='pad' keeps; leave one of them out")
        return self

    @property
    def image_resizing(self) -> ImageResizing:
        """Return how images become squares; settings that were to follow the weights, but are not filled in, take the
        usual values.
        """
        usual = self.fill_in_preprocessing(ImagePreprocessing((_USUAL_SIZE, _USUAL_SIZE)))
        assert usual.resize is not None
        assert usual.crop is not None
        assert usual.interpolation is not None
        return ImageResizing(as_height_and_width(usual.image_size), usual.resize, usual.crop, usual.interpolation)

    def fill_in_preprocessing(self, trained: ImagePreprocessing) -> ProcessorConfig:
        """Return the settings with those that follow the weights replaced by the preprocessing with which the vision
        encoder was trained.

        Raises:
            ConfigError: the interpolation is not that of the weights, which say it.
        """
        if trained.stated and self.interpolation not in (None, trained.interpolation):
            raise ConfigError(
                f"processor.interpolation={self.interpolation!r}, and the weights of model.vision were trained with "
                f"{trained.interpolation!r}; leave it out"
            )
        resize = self.resize or trained.resize
        return self.model_copy(
            update={
                "image_size": self.image_size or as_side_or_size(trained.size),
                "resize": resize,
                "crop": self.crop or (trained.crop if resize == trained.resize else 1.0),
                "interpolation": self.interpolation or trained.interpolation,
            }
        )

    def preprocessing_differences(self, trained: ImagePreprocessing) -> str:
        """Describe in which image settings the processor differs from the preprocessing with which the vision encoder
        was trained; "" if in none.
        """
        mine = self.image_resizing
        theirs = ImageResizing(trained.size, trained.resize, trained.crop, mine.interpolation)
        if not trained.stated or mine == theirs:
            return ""
        here, there = _describe_resizing(mine), _describe_resizing(theirs)
        return f"images are prepared as {here}, and the weights were trained with {there}"

    def resolve_settings(
        self,
        longest: int = 0,
        longest_target: int = 0,
        model_limit: int | None = None,
        target_limit: int | None = None,
    ) -> ProcessorConfig:
        """Return the settings with all inferred values filled in: limits that follow the data, and usual image settings
        for those that follow the weights (``fill_in_preprocessing``).

        Args:
            longest, longest_target: tokens of the longest text, and of the longest one to be generated.
            model_limit, target_limit: most tokens that the model takes and generates; None if it has no limit.
        """
        follows = {"max_tokens": (longest, model_limit), "max_target_tokens": (longest_target, target_limit)}
        limits = {
            name: min(max(length, _MIN_LIMIT), limit or _MAX_LIMIT)
            for name, (length, limit) in follows.items()
            if not getattr(self, name)
        }
        resizing = self.image_resizing
        images = {"image_size": as_side_or_size(resizing.size)} | {
            name: getattr(resizing, name) for name in ("resize", "crop", "interpolation")
        }
        return self.model_copy(update=limits | images)


@dataclass(frozen=True)
class Example:
    """One sample, with the rows that a task makes of it.

    Attributes:
        inputs: the encoded bytes of what the sample has, by the inputs' names.
        texts: the text of each row; "" if the task takes none.
        targets: the correct output for each row, None where it is unknown; empty if all are unknown.
        weights: weight of each row in loss and metrics; one if not given.
        facts: of each text, the best first; None where they are not looked up yet (``VLProcessor.link_facts``).
        knowledge_version: of the store that they are from; None without one.
    """

    inputs: Mapping[str, bytes]
    texts: tuple[str, ...]
    targets: tuple[str | None, ...] = ()
    weights: tuple[float, ...] | None = None
    facts: tuple[tuple[LinkedFact, ...], ...] | None = None
    knowledge_version: int | None = None


Decoded = Mapping[str, Mapping[str, "NDArray[Any]"]]
"""The decoded inputs of one sample: of each, by its name, its arrays."""


class VLProcessor:
    """Decodes inputs, tokenizes texts and collates both to batches.

    Args:
        config: limits that follow the data become 32, as there are no data here.
        tokenizer: any fast tokenizer of transformers' with a padding token.
        labels: the answers that a classifier chooses among, in the order of the model's scores.
        normalizer: the rules by which answers are compared with each other and with the labels.
        tasks: by their names; a single one is called "".
        inputs: the parts that decode and collate further inputs of a sample, by the inputs' names.
        reads_images: whether the input "image" is decoded too.
        knowledge: how facts are linked to texts and tokenized with them.

    Attributes:
        finder: where the facts are found; None finds none. It is not saved: a model does not depend on a store.

    Raises:
        ConfigError: labels that repeat or mean the same, or a tokenizer that lacks a token which the tasks need.
    """

    def __init__(
        self,
        config: ProcessorConfig,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
        tasks: Mapping[str, Task] | None = None,
        normalizer: Normalizer = "none",
        inputs: Mapping[str, ModalityPart] | None = None,
        reads_images: bool = True,
        knowledge: KnowledgePart | None = None,
    ) -> None:
        self.knowledge = knowledge or NoKnowledge()
        self.finder: FactFinder | None = None
        self.normalizer: Normalizer = normalizer
        self.inputs, self.reads_images = dict(inputs or {}), reads_images
        self.config, self.tokenizer, self.labels = config.resolve_settings(), tokenizer, list(labels)
        self.tasks = dict(tasks) if tasks is not None else {"": parse_part_config("vlmodel.tasks", {"kind": DEFAULT})}
        forms = [normalize_for_comparison(label, normalizer) for label in self.labels]
        self._label_ids = {form: i for i, form in enumerate(forms)}
        if len(self._label_ids) != len(self.labels):
            counts = Counter(forms)
            repeated = sorted({label for label, form in zip(self.labels, forms, strict=True) if counts[form] > 1})
            raise ConfigError(f"labels must differ, and these repeat: {', '.join(repeated[:5])}")
        if tokenizer.pad_token_id is None:
            raise ConfigError(f"the tokenizer {type(tokenizer).__name__} has no padding token; set its pad_token")
        self.begin_id = _first_not_none(tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.end_id = _first_not_none(tokenizer.eos_token_id, tokenizer.sep_token_id)
        if None in (self.begin_id, self.end_id) and any(
            task.needs_begin_and_end_tokens() for task in self.tasks.values()
        ):
            raise ConfigError(
                f"the tokenizer {type(tokenizer).__name__} has no token that begins or ends a text to be written; set "
                "its bos_token and eos_token (or cls_token and sep_token)"
            )

    def label_id(self, answer: str) -> int:
        """Return the index of the label that equals an answer after normalization; -1 if there is none."""
        return self._label_ids.get(normalize_for_comparison(answer, self.normalizer), -1)

    @property
    def default_task(self) -> Task:
        """The name of the task that answers if none is named."""
        return next(iter(self.tasks.values()))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that are decoded; a sample may lack some of them."""
        return ((IMAGE,) if self.reads_images else ()) + tuple(self.inputs)

    @property
    def media(self) -> dict[str, str]:
        """Map the names of the inputs to their media (``vlmodel.media``)."""
        return {name: IMAGE if name == IMAGE else self.inputs[name].medium for name in self.input_names}

    def decode_image(
        self, data: bytes, out: NDArray[np.uint8] | None = None, formats: Collection[str] = FORMATS
    ) -> NDArray[np.uint8]:
        """Decode an image to (height, width, 3) uint8 RGB, of the size that is set; see ``images.decoders.cpu``.

        Raises:
            ImageError: the bytes are cut off, are no image of these formats, or are one of too many pixels.
        """
        return decode_image(data, self.config.image_resizing, self.config.max_pixels, out, formats)

    def decode_input(self, name: str, data: bytes) -> Mapping[str, NDArray[Any]]:
        """Decode the bytes of one input to the arrays that its encoder takes.

        Raises:
            MediumError: the bytes cannot be decoded.
        """
        return {"pixels_HWC": self.decode_image(data)} if name == IMAGE else self.inputs[name].decode(data)

    def decode_inputs(self, example: Example) -> Decoded:
        """Decode those inputs of an example that the model reads; raises the errors of ``decode_input``."""
        return {
            name: self.decode_input(name, example.inputs[name]) for name in self.input_names if name in example.inputs
        }

    def blank_inputs(self) -> Decoded:
        """Return a decoded blank image; {} if the model reads no images."""
        blank_HWC = np.zeros((*self.config.image_resizing.size, 3), np.uint8)
        return {IMAGE: {"pixels_HWC": blank_HWC}} if self.reads_images else {}

    def decode_on_gpu(self, gpu: str, files: Sequence[bytes], out: Sequence[NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """Decode those files into ``out`` that a CUDA device can decode, and return which ones they are."""
        import torch

        from vlmodel.images.decoders.gpu import decode_jpegs_on_gpu

        return decode_jpegs_on_gpu(files, self.config.image_resizing, self.config.max_pixels, torch.device(gpu), out)

    def collate_tasks(
        self, decoded: Sequence[Decoded], examples: Mapping[str, Sequence[Example]]
    ) -> dict[str, NDArray[np.generic]]:
        """Collate the inputs of B samples (``collate_inputs``) and the rows of several tasks about them
        (``collate_rows``).
        """
        return {**self.collate_inputs(decoded), **self.collate_rows(examples)}

    def collate_inputs(self, decoded: Sequence[Decoded]) -> dict[str, NDArray[np.generic]]:
        """Collate the arrays of each input, named ``INPUT.array``: ``image.pixels_BHWC`` uint8, and those of the
        additional inputs' encoders. If some samples lack an input, its arrays contain only the samples that have it,
        and ``INPUT.place_B`` int64 is the index of each sample among these (see ``input_indices``).
        """
        arrays: dict[str, NDArray[np.generic]] = {}
        for name in self.input_names:
            given = [of_sample[name] for of_sample in decoded if name in of_sample]
            arrays |= prefix_array_names(name, self._collate_input(name, given))
            if len(given) < len(decoded):
                arrays[f"{name}.place_B"] = input_indices(name in of_sample for of_sample in decoded)
        return arrays

    def _collate_input(self, name: str, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        if name != IMAGE:
            return self.inputs[name].collate(decoded)
        images = [image["pixels_HWC"] for image in decoded]
        if not images:
            return {"pixels_BHWC": np.zeros((0, *self.config.image_resizing.size, 3), np.uint8)}
        return {"pixels_BHWC": np.stack(images)}

    def collate_rows(self, examples: Mapping[str, Sequence[Example]]) -> dict[str, NDArray[np.generic]]:
        """Collate the rows of each task about the examples, without inputs: ``Task.collate``. Arrays are named by
        ``array_names.prefix_array_names``. Facts are looked up if that was not done (``link_facts``).
        """
        rows: dict[str, NDArray[np.generic]] = {}
        for task, of_task in examples.items():
            rows |= prefix_array_names(task, self.tasks[task].collate(self.link_facts(of_task), self))
        return rows

    def link_facts(self, examples: Sequence[Example]) -> list[Example]:
        """Look up the facts of the examples' texts, all in one version of the store. Examples that have facts keep
        them; without a finder, or for a model that reads no facts, there are none.
        """
        waiting = [n for n, example in enumerate(examples) if example.facts is None]
        done = list(examples)
        if self.finder is None or not self.knowledge.reads_facts or not waiting:
            for n in waiting:
                done[n] = replace(done[n], facts=((),) * len(done[n].texts))
            return done
        asked = [extract_question(text) for n in waiting for text in examples[n].texts]
        found = self.finder.find_facts(asked, self.knowledge.link)
        of_texts = iter(found.by_text)
        for n in waiting:
            facts = tuple(next(of_texts) for _ in examples[n].texts)
            done[n] = replace(examples[n], facts=facts, knowledge_version=found.version)
        return done

    def tokenize_with_facts(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]]
    ) -> dict[str, NDArray[np.generic]]:
        """Tokenize texts with the facts of each, in the way that the model uses facts; otherwise as ``tokenize``."""
        return self.knowledge.tokenize(texts, facts, self) if texts else self.tokenize(texts)

    def tokenize(self, texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        """Tokenize N texts, of which U are distinct: images often share a question.

        Returns:
            ``input_ids_NT`` int64 and ``text_mask_NT`` bool, padded to the longest text; ``distinct_U`` int64, a row of
            these for each distinct text; ``text_distinct_N`` int64, for each text its index in ``distinct_U``. With
            ``length_groups`` above 1, ``distinct_U`` is ordered by length, and ``distinct_groups_G3`` int64 are its
            groups (``lengths.group_texts_by_length``).
        """
        if not texts:
            empty_N, ids_NT, mask_NT = np.zeros(0, np.int64), np.zeros((0, 1), np.int64), np.zeros((0, 1), np.bool_)
            return {"input_ids_NT": ids_NT, "text_mask_NT": mask_NT} | self._group_distinct_texts(
                empty_N, empty_N, mask_NT
            )
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encoded = self.tokenizer(
            list(rows), padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="np"
        )
        row_N = np.array([rows[text] for text in texts], dtype=np.int64)
        mask_UT = encoded["attention_mask"].astype(np.bool_)
        return {
            "input_ids_NT": encoded["input_ids"].astype(np.int64, copy=False)[row_N],
            "text_mask_NT": mask_UT[row_N],
        } | self.distinct_text_arrays(row_N, mask_UT)

    def are_texts_truncated(self, texts: Sequence[str]) -> list[bool]:
        """Tell which of the texts are too long for the model and get truncated; conversations never are."""
        lengths = zip(texts, self._untruncated_token_counts(texts), strict=True)
        return [length > self.config.max_tokens and not is_conversation_text(text) for text, length in lengths]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Count how many tokens of each text ``tokenize`` keeps."""
        return [min(length, self.config.max_tokens) for length in self._untruncated_token_counts(texts)]

    def _untruncated_token_counts(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text before truncation."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), padding=False, truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """List the words of texts that are no token of a tokenizer trained on the data: rare or absent in the training
        texts. None for a pretrained tokenizer, whose encoder has read far more.
        """
        if not self.tokenizer.init_kwargs.get(TRAINED_ON_DATA):
            return []
        backend = self.tokenizer.backend_tokenizer
        known = self.tokenizer.get_vocab()
        words = [
            word
            for text in texts
            for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        ]
        return [word for word in dict.fromkeys(words) if word not in known and any(map(str.isalnum, word))]

    def tokenize_targets(self, targets: Sequence[str | None]) -> dict[str, NDArray[np.generic]]:
        """Tokenize N texts to be generated, each between the begin and end tokens, padded on the right.

        Tokenizers differ in the special tokens that they add and the side that they pad, so neither is left to them.

        Returns:
            ``target_ids_NT`` int64 and ``target_mask_NT`` bool; all False for a target that is None.
        """
        longest = self.config.max_target_tokens - 2
        known = [target for target in targets if target is not None]
        # A text that names a special token has its letters: nothing but the text's end ends it.
        options = {"add_special_tokens": False, "split_special_tokens": True}
        encoded = iter(self.tokenizer(known, **options)["input_ids"] if known else ())
        ids = [[] if t is None else [self.begin_id, *next(encoded)[:longest], self.end_id] for t in targets]
        length = max(map(len, ids), default=0) or 2
        ids_NT = np.full((len(ids), length), self.tokenizer.pad_token_id, np.int64)
        mask_NT = np.zeros((len(ids), length), np.bool_)
        for n, row in enumerate(ids):
            ids_NT[n, : len(row)], mask_NT[n, : len(row)] = row, True
        return {"target_ids_NT": ids_NT, "target_mask_NT": mask_NT}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and ``processor.json`` (settings, labels, tasks and inputs) into ``folder``."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(str(folder))
        tasks = {name: dump_config(task) for name, task in self.tasks.items()}
        tree = {
            "processor": dump_config(self.config),
            "labels": self.labels,
            "normalizer": self.normalizer,
            "tasks": tasks,
            "inputs": {name: dump_config(encoder) for name, encoder in self.inputs.items()},
            "reads_images": self.reads_images,
            "knowledge": dump_config(self.knowledge),
        }
        (folder / _FILE).write_text(json.dumps(tree, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Do nothing: see ``VLModel.register_for_auto_class``."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> VLProcessor:
        """Load a processor that ``save_pretrained`` wrote.

        Args:
            _: what transformers' ``AutoProcessor`` adds.

        Raises:
            FileNotFoundError: the folder holds no processor.
            ConfigError: its settings are none of this version's.
        """
        from transformers import AutoTokenizer

        file = Path(folder) / _FILE
        if not file.is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no {_FILE}; name the `model` folder of a checkpoint")
        tree = json.loads(file.read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if missing := {"processor", "labels", "normalizer", "tasks", "inputs", "reads_images", "knowledge"} - set(tree):
            raise ConfigError(
                f"{str(file)!r} lacks {', '.join(sorted(missing))}, as an earlier version wrote it; train the model "
                "anew with this version"
            )
        try:
            tasks = {name: parse_part_config("vlmodel.tasks", task) for name, task in tree["tasks"].items()}
            inputs = {name: parse_part_config("vlmodel.modality", encoder) for name, encoder in tree["inputs"].items()}
            knowledge = parse_part_config("vlmodel.knowledge", tree["knowledge"])
        except ConfigError as error:
            raise ConfigError(f"{str(file)!r} is of another version ({error}); train anew with this one") from None
        return cls(
            parse_config(ProcessorConfig, tree["processor"]), tokenizer, tree["labels"], tasks, tree["normalizer"],
            inputs, tree["reads_images"], knowledge,
        )  # fmt: skip

    def distinct_text_arrays(
        self, row_N: NDArray[np.int64], mask_UT: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.generic]]:
        """Build the arrays of ``tokenize`` that describe distinct texts.

        Args:
            row_N: for each text its row among the distinct ones.
            mask_UT: of the distinct ones' tokens.
        """
        distinct_U = np.unique(row_N, return_index=True)[1].astype(np.int64, copy=False)
        return self._group_distinct_texts(distinct_U, row_N, mask_UT)

    def _group_distinct_texts(
        self, distinct_U: NDArray[np.int64], row_N: NDArray[np.int64], mask_UT: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.generic]]:
        if self.config.length_groups == 1:
            return {"distinct_U": distinct_U, "text_distinct_N": row_N}
        order_U, groups_G3 = group_texts_by_length(mask_UT, self.config.length_groups)
        return {
            "distinct_U": distinct_U[order_U],
            "text_distinct_N": np.argsort(order_U)[row_N],
            "distinct_groups_G3": groups_G3,
        }


def _describe_resizing(resizing: ImageResizing) -> str:
    of_sides = "" if resizing.crop == 1 else f" (crop={resizing.crop:g})"
    return f"image_size={describe_size(resizing.size)}, resize={resizing.resize!r}{of_sides}"


def input_indices(has_input: Iterable[bool]) -> NDArray[np.int64]:
    """For each of B samples, return the index of its input among the P present ones, or P for a sample that lacks it,
    (B,).
    """
    has_B = np.fromiter(has_input, np.bool_)
    return np.where(has_B, np.cumsum(has_B) - 1, has_B.sum()).astype(np.int64, copy=False)


def _first_not_none(*ids: int | None) -> int | None:
    return next((number for number in ids if number is not None), None)
