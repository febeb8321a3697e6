"""The one way from image bytes and texts to a batch, used by training, evaluation, offline prediction and serving.

Neither torch nor transformers is imported by importing this module: processes that only decode stay small.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from vlmodel.answers import Normalizer, normal_form
from vlmodel.config import ConfigError, Section, dump, parse
from vlmodel.images.decoders.cpu import decode
from vlmodel.images.pillow import FORMATS
from vlmodel.images.resize import Resize
from vlmodel.lengths import group_by_length
from vlmodel.task_spec import TaskSpec, is_match, join

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_FILE = "processor.json"
_LIMIT, _MOST = 32, 512
"""Tokens of a text where the limit follows the data: at least, and at most where the model has no limit."""


class ProcessorConfig(Section):
    """From image bytes and texts to a batch."""

    image_size: int = Field(224, ge=1)
    """Side of the square image, in pixels."""
    resize: Resize = "squash"
    """"squash" keeps the whole picture and bends its shape; "crop" keeps its shape and the middle square."""
    max_tokens: int = Field(0, ge=0)
    """Longer texts are cut to this many tokens, special tokens included. 0 follows the data: the longest text of the
    training split, at least 32 and at most what the model takes (512 where it has no limit)."""
    max_target_tokens: int = Field(0, ge=0)
    """Longer texts to be written are cut to this many tokens, those that begin and end them included. 0 follows the
    data in the same way."""
    length_groups: int = Field(1, ge=1)
    """The texts of a batch are encoded in at most so many groups of like length, each padded to its own longest text;
    1 pads all to the longest of the batch."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Pictures of more pixels are refused before they are decoded."""

    @field_validator("max_tokens", "max_target_tokens")
    @classmethod
    def _room(cls, limit: int, info: ValidationInfo) -> int:
        least = 2 if info.field_name == "max_tokens" else 3
        if 0 < limit < least:
            raise ValueError(
                f"{limit}: special tokens alone take as many; set at least {least}, or 0 to follow the data"
            )
        return limit

    def resolve(
        self, longest: int = 0, longest_target: int = 0, most: int | None = None, most_target: int | None = None
    ) -> ProcessorConfig:
        """The settings with limits in the place of those that follow the data.

        Args:
            longest, longest_target: tokens of the longest text, and of the longest one to be written.
            most, most_target: tokens that the model takes, and that it can write; None where it has no limit.
        """
        limits = {"max_tokens": (longest, most), "max_target_tokens": (longest_target, most_target)}
        following = {
            name: min(max(length, _LIMIT), limit or _MOST)
            for name, (length, limit) in limits.items()
            if not getattr(self, name)
        }
        return self.model_copy(update=following)


@dataclass(frozen=True)
class Example:
    """One image with the rows that a task makes of it.

    Attributes:
        image: the encoded image.
        texts: the text of each row; "" where the task is given none.
        targets: what should come out of each row, None where it is unknown; empty if nothing is known at all.
        weights: weight of each row in loss and metrics; one if not given.
    """

    image: bytes
    texts: tuple[str, ...]
    targets: tuple[str | None, ...] = ()
    weights: tuple[float, ...] | None = None


class VLProcessor:
    """Decodes, tokenizes and collates.

    Args:
        config: limits that follow the data are 32 here, where there are no data.
        tokenizer: any fast tokenizer of transformers' with a padding token.
        labels: the answers that a classifier chooses among, in the order of the model's scores.
        normalizer: by which rules a target is one of the labels, and answers are compared.
        tasks: what each task reads, by its name; a model with one task calls it "".

    Raises:
        ConfigError: labels that repeat or mean the same, or a tokenizer that lacks a token which the tasks need.
    """

    def __init__(
        self,
        config: ProcessorConfig,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
        tasks: Mapping[str, TaskSpec] | None = None,
        normalizer: Normalizer = "none",
    ) -> None:
        self.normalizer: Normalizer = normalizer
        self.config, self.tokenizer, self.labels = config.resolve(), tokenizer, list(labels)
        self.tasks = dict(tasks) if tasks is not None else {"": TaskSpec(reads="questions")}
        forms = [normal_form(label, normalizer) for label in self.labels]
        self._label_ids = {form: i for i, form in enumerate(forms)}
        if len(self._label_ids) != len(self.labels):
            numbers = Counter(forms)
            repeated = sorted({label for label, form in zip(self.labels, forms, strict=True) if numbers[form] > 1})
            raise ConfigError(f"labels must differ, and these repeat: {', '.join(repeated[:5])}")
        if tokenizer.pad_token_id is None:
            raise ConfigError(f"the tokenizer {type(tokenizer).__name__} has no padding token; set its pad_token")
        self.begin_id = _first_of(tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.end_id = _first_of(tokenizer.eos_token_id, tokenizer.sep_token_id)
        if None in (self.begin_id, self.end_id) and any(f.target == "tokens" for f in self.tasks.values()):
            raise ConfigError(
                f"the tokenizer {type(tokenizer).__name__} has no token that begins or ends a text to be written; set "
                "its bos_token and eos_token (or cls_token and sep_token)"
            )

    @property
    def fields(self) -> TaskSpec:
        """What the only, or the first, task reads."""
        return next(iter(self.tasks.values()))

    def label_id(self, answer: str) -> int:
        """The number of the label that means the same as an answer, -1 where there is none."""
        return self._label_ids.get(normal_form(answer, self.normalizer), -1)

    def decode(
        self, data: bytes, out: NDArray[np.uint8] | None = None, formats: Collection[str] = FORMATS
    ) -> NDArray[np.uint8]:
        """An image as (image_size, image_size, 3) uint8 RGB: upright, on white where it is transparent.

        Args:
            out: where to put the pixels; new memory if not given.
            formats: those that are taken, of ``FORMATS``.

        Raises:
            ImageError: the bytes are cut off, are no image of these formats, or are one of too many pixels.
        """
        config = self.config
        return decode(data, config.image_size, config.resize, config.max_pixels, out, formats)

    def decode_on_gpu(self, gpu: str, files: Sequence[bytes], out: Sequence[NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """Decode what a CUDA device can of the files, into a place for each; which ones were."""
        import torch

        from vlmodel.images.decoders.gpu import decode_jpegs

        config = self.config
        return decode_jpegs(files, config.image_size, config.resize, config.max_pixels, torch.device(gpu), out)

    def collate(self, examples: Sequence[Example]) -> dict[str, NDArray[np.generic]]:
        """A batch of B images and all the N rows that the first task makes of them.

        Returns:
            ``pixels_BHWC`` uint8, ``text_image_N`` int64 (the image of each row), ``weights_N`` float32;
            where the task is given texts, what ``tokenize`` returns;
            and by the task's target ``labels_N`` int64 (-1 without a target, or with one outside the labels),
            ``target_ids_NT`` int64 and ``target_mask_NT`` bool (all False without a target), or, with none to be given,
            ``text_key_N`` int64, which is equal for texts that are equal to the model, in whatever batch.

        Raises:
            ImageError: an image cannot be decoded.
        """
        return self.collate_tasks(self.images(examples), {next(iter(self.tasks)): examples})

    def images(self, examples: Sequence[Example]) -> list[NDArray[np.uint8]]:
        """The examples' images, decoded.

        Raises:
            ImageError: an image cannot be decoded.
        """
        return [self.decode(example.image) for example in examples]

    def collate_tasks(
        self, images: Sequence[NDArray[np.uint8]], examples: Mapping[str, Sequence[Example]]
    ) -> dict[str, NDArray[np.generic]]:
        """Images, and the rows of several tasks over them."""
        size = self.config.image_size
        pixels_BHWC = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
        return {"pixels_BHWC": pixels_BHWC, **self.collate_rows(examples)}

    def collate_rows(self, examples: Mapping[str, Sequence[Example]]) -> dict[str, NDArray[np.generic]]:
        """The rows of several tasks, without the images; a task's arrays are called ``task.name`` (see fields.py)."""
        rows: dict[str, NDArray[np.generic]] = {}
        for task, of_task in examples.items():
            rows |= join(task, self._rows(self.tasks[task], of_task))
        return rows

    def _rows(self, fields: TaskSpec, examples: Sequence[Example]) -> dict[str, NDArray[np.generic]]:
        counts = [len(example.texts) for example in examples]
        targets = list(chain.from_iterable(map(_targets, examples)))
        rows: dict[str, NDArray[np.generic]] = {
            "text_image_N": np.repeat(np.arange(len(examples), dtype=np.int64), counts),
            "weights_N": np.array(list(chain.from_iterable(map(_weights, examples))), dtype=np.float32),
        }
        if fields.text:
            rows |= self.tokenize([text for example in examples for text in example.texts])
        if fields.target == "answer":
            found = (-1 if target is None else self.label_id(target) for target in targets)
            rows["labels_N"] = np.fromiter(found, np.int64, len(targets))
        elif fields.target == "match":
            found = (-1 if target is None else int(is_match(target)) for target in targets)
            rows["labels_N"] = np.fromiter(found, np.int64, len(targets))
        elif fields.target == "tokens":
            rows |= self.tokenize_targets(targets)
        elif fields.text:
            rows["text_key_N"] = _keys(rows["input_ids_NT"], rows["text_mask_NT"])
        return rows

    def tokenize(self, texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        """Token ids of N texts, U of them distinct: pictures often share a question.

        Returns:
            ``input_ids_NT`` int64 and ``text_mask_NT`` bool, padded to the longest text; ``distinct_U`` int64, the rows
            of these that hold each distinct text once; ``text_distinct_N`` int64, for each text its place among those.
            With ``length_groups`` above 1 the distinct texts go from short to long, and ``distinct_groups_G3`` int64
            tells how many of them, one after the other, are encoded together, and which columns hold their tokens
            (``lengths.group_by_length``).
        """
        if not texts:
            none = np.zeros(0, np.int64)
            ids_NT = np.zeros((0, 1), np.int64)
            mask_NT = ids_NT.astype(np.bool_)
            return {"input_ids_NT": ids_NT, "text_mask_NT": mask_NT} | self._distinct(none, none, mask_NT)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encoded = self.tokenizer(
            list(rows), padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="np"
        )
        row_N = np.array([rows[text] for text in texts], dtype=np.int64)
        mask_UT = encoded["attention_mask"].astype(np.bool_)
        distinct_U = np.unique(row_N, return_index=True)[1].astype(np.int64, copy=False)
        return {
            "input_ids_NT": encoded["input_ids"].astype(np.int64, copy=False)[row_N],
            "text_mask_NT": mask_UT[row_N],
        } | self._distinct(distinct_U, row_N, mask_UT)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Which of the texts ``tokenize`` cuts."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), padding=False, truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) > self.config.max_tokens for ids in encoded["input_ids"]]

    def tokenize_targets(self, targets: Sequence[str | None]) -> dict[str, NDArray[np.generic]]:
        """Token ids of N texts to be written, each between the tokens that begin and end it, padded on the right.

        Built by hand, as tokenizers differ in the special tokens they add, and in the side that they pad.

        Returns:
            ``target_ids_NT`` int64 and ``target_mask_NT`` bool; all False for a target that is None.
        """
        room = self.config.max_target_tokens - 2
        known = [target for target in targets if target is not None]
        encoded = iter(self.tokenizer(known, add_special_tokens=False)["input_ids"] if known else ())
        ids = [[] if t is None else [self.begin_id, *next(encoded)[:room], self.end_id] for t in targets]
        length = max(map(len, ids), default=0) or 2
        ids_NT = np.full((len(ids), length), self.tokenizer.pad_token_id, np.int64)
        mask_NT = np.zeros((len(ids), length), np.bool_)
        for n, row in enumerate(ids):
            ids_NT[n, : len(row)], mask_NT[n, : len(row)] = row, True
        return {"target_ids_NT": ids_NT, "target_mask_NT": mask_NT}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and ``processor.json`` (settings, labels and tasks) into ``folder``."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(str(folder))
        tasks = {task: dump(fields) for task, fields in self.tasks.items()}
        tree = {"processor": dump(self.config), "labels": self.labels, "normalizer": self.normalizer, "tasks": tasks}
        (folder / _FILE).write_text(json.dumps(tree, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VLProcessor:
        """Read what ``save_pretrained`` wrote.

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
        if missing := {"processor", "labels", "tasks"} - set(tree):
            raise ConfigError(
                f"{str(file)!r} lacks {', '.join(sorted(missing))}; train the model anew with this version"
            )
        tasks = {task: parse(TaskSpec, fields) for task, fields in tree["tasks"].items()}
        # Models of earlier versions have labels that were compared as they are.
        normalizer = tree.get("normalizer", "none")
        return cls(parse(ProcessorConfig, tree["processor"]), tokenizer, tree["labels"], tasks, normalizer)

    def _distinct(
        self, distinct_U: NDArray[np.int64], row_N: NDArray[np.int64], mask_UT: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.generic]]:
        if self.config.length_groups == 1:
            return {"distinct_U": distinct_U, "text_distinct_N": row_N}
        order_U, groups_G3 = group_by_length(mask_UT, self.config.length_groups)
        place_U = np.argsort(order_U)
        return {
            "distinct_U": distinct_U[order_U],
            "text_distinct_N": place_U[row_N],
            "distinct_groups_G3": groups_G3,
        }


def _targets(example: Example) -> Sequence[str | None]:
    if not example.targets:
        return [None] * len(example.texts)
    if len(example.targets) != len(example.texts):
        raise ValueError(f"{len(example.texts)} texts have {len(example.targets)} targets: {example.texts[:3]!r}...")
    return example.targets


def _weights(example: Example) -> Sequence[float]:
    if example.weights is None:
        return [1.0] * len(example.texts)
    if len(example.weights) != len(example.texts):
        raise ValueError(f"{len(example.texts)} texts have {len(example.weights)} weights: {example.texts[:3]!r}...")
    return example.weights


def _keys(ids_NT: NDArray[np.generic], mask_NT: NDArray[np.generic]) -> NDArray[np.int64]:
    """A multilinear hash of each text's tokens, padded on whichever side (Lemire & Kaser 2014): the same anywhere."""
    place_NT = np.cumsum(mask_NT, axis=1) - 1
    factors_T = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, (ids_NT.shape[1],), np.uint64)
    terms_NT = (ids_NT.astype(np.uint64) + 1) * factors_T[place_NT]
    return np.where(mask_NT, terms_NT, np.uint64(0)).sum(axis=1, dtype=np.uint64).view(np.int64)


def _first_of(*ids: int | None) -> int | None:
    return next((number for number in ids if number is not None), None)
