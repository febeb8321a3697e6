"""Reads the samples of one indexed source, or of several: their texts, and their inputs or cached features.

A ``Source`` is small and picklable. What is large (the index, the readers, the processor) is opened once a process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.data.index.index import Index, IndexedShard
from pipelines.data.index.present import mask_of_usable_samples
from pipelines.data.stream.config import PixelCacheConfig
from pipelines.data.stream.feature_cache import FeatureCache, hash_token_ids, shorten_input_hash
from pipelines.data.stream.pixel_cache import PixelCache, is_cache_faster_than_decoding, open_pixel_cache
from pipelines.data.stream.plan import Ints, SampleIndices, ShufflePlan
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.opened import FactSource, open_fact_linker
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.trained_facts import TrainedFacts
from vlmodel.array_names import prefix_array_names, select_task_arrays
from vlmodel.encoder_parts import IMAGE, TEXT, stream_of_input
from vlmodel.media.base import MediumError
from vlmodel.processor import VLProcessor, input_indices
from vlmodel.sample import Sample

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRIED = 32
"""Samples of which those with an image are decoded to compare that with the pixel cache."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """A split of an indexed data set that is read, and how its inputs are decoded.

    Attributes:
        tars: folder or URI of the tars and their index.
        index_hash: the version of the index that the plan was made of.
        split: train, val or test; "" takes all.
        processor: folder of the saved VLProcessor, whose tasks decide which samples are read.
        facts: the store of which a model that reads facts gets them; others do without.
        answering: the task for which samples are read that it can answer; None reads those that training uses.
        teacher: folder of the processor of a model that is learned from, for which batches of training have the rows,
            too; "" for none.
        features: feature caches, of each stream at most one. With that of an input, a batch has features in place of
            its arrays, and it is not read; with one of "language" each task has ``text_features_UTF`` and
            ``text_features_mask_UT`` of its distinct texts.
        pixels: cache of decoded images on this node's disk.
        gpu: CUDA device of this process that decodes the images; "" decodes on the CPU.
    """

    tars: str
    index_hash: str
    split: str
    processor: str
    features: tuple[FeatureCache, ...] = ()
    pixels: PixelCache | None = None
    gpu: str = ""
    answering: str | None = None
    facts: FactSource | None = None
    teacher: str = ""

    def plan_order(self, *, seed: int = 0, window: int = 65536, block: int = 1, shuffle: bool) -> ShufflePlan:
        """Plan the order in which this source's samples are read.

        Raises:
            DataError: the split has no sample that is read.
        """
        return ShufflePlan(self.index_hash, _open_source(self).counts, seed, window, shuffle, block)


@dataclass(frozen=True)
class SourceMixture:
    """Several sources that are read as one, in the order of a ``MixturePlan``.

    Attributes:
        members: the sources, of one processor and with the same feature caches.
    """

    members: tuple[Source, ...]

    def __post_init__(self) -> None:
        same = ("processor", "features", "facts", "teacher")
        assert len({tuple(getattr(member, name) for name in same) for member in self.members}) == 1

    @property
    def processor(self) -> str:
        return self.members[0].processor

    @property
    def features(self) -> tuple[FeatureCache, ...]:
        return self.members[0].features

    @property
    def facts(self) -> FactSource | None:
        return self.members[0].facts

    @property
    def teacher(self) -> str:
        return self.members[0].teacher


def enable_gpu_decoding(source: Source | SourceMixture, gpu: str) -> Source | SourceMixture:
    """Return a copy of a source whose images are decoded by a CUDA device of this process."""
    if isinstance(source, Source):
        return replace(source, gpu=gpu)
    return SourceMixture(tuple(replace(member, gpu=gpu) for member in source.members))


def enable_pixel_cache(source: Source | SourceMixture, config: PixelCacheConfig, epochs: int) -> Source | SourceMixture:
    """Return a copy of a source whose decoded images are cached on this node if the settings ask for it.

    The sources of a mixture share the cache's size in proportion to their samples.
    """
    if isinstance(source, Source):
        return _enable_pixel_cache_of_source(source, config, epochs)
    opened = [_open_source(member) for member in source.members]
    sizes = [member.size if member.has_images else 0 for member in opened]
    configs = [config.model_copy(update={"max_gb": config.max_gb * size / max(1, sum(sizes))}) for size in sizes]
    return SourceMixture(
        tuple(_enable_pixel_cache_of_source(*pair, epochs) for pair in zip(source.members, configs, strict=True))
    )


def _enable_pixel_cache_of_source(source: Source, config: PixelCacheConfig, epochs: int) -> Source:
    if config.keep == "never" or _has_cached_features(source, IMAGE) or (config.keep == "auto" and epochs < 2):
        return source
    if not _open_source(source).has_images:
        return source
    samples = open_samples(source)
    if (pixels := open_pixel_cache(samples.sources[0].index, samples.processor.config, config)) is None:
        return source
    if config.keep == "auto":
        tried = source.plan_order(shuffle=True).samples_between(0, _TRIED)
        tried = select_samples_with_input(tried, samples.places_of_inputs_in_batch(samples.read_texts(tried)), IMAGE)
        if not len(tried):
            return source
        is_faster, decode_s, read_s = is_cache_faster_than_decoding(
            lambda n: samples.load_input(IMAGE, tried[np.array([n % len(tried)])])["pixels_BHWC"][0], pixels.folder
        )
        log.info("an image takes %.2f ms to decode, %.2f ms to read from the cache", 1e3 * decode_s, 1e3 * read_s)
        if not is_faster:
            return source
    return replace(source, pixels=pixels)


SampleGenerators = Callable[[int, str, str], np.random.Generator]
"""A generator for an epoch, the key of a sample and a use of it."""


class OpenedSamples:
    """Reads the samples of opened sources. Threads may share it."""

    def __init__(self, source: Source | SourceMixture) -> None:
        members = source.members if isinstance(source, SourceMixture) else (source,)
        self.sources = [_open_source(member) for member in members]
        self.processor = _load_processor_with_facts(source.processor, source.facts)
        self.teacher = _load_processor_with_facts(source.teacher, source.facts) if source.teacher else None
        self._features = {cache.stream: cache for cache in source.features}
        self.size = sum(opened.size for opened in self.sources)
        self.tasks_with_samples_without_targets = [
            task for task in self.processor.tasks if self._has_samples_without_targets(task)
        ]

    def read_texts(self, indices: SampleIndices) -> list[Sample]:
        """Read samples without their inputs, in the order of ``indices``; each shard is opened once."""
        records: list[Sample | None] = [None] * len(indices)
        for opened, shard, rows, positions in self._group_indices_by_shard(indices):
            for position, record in zip(positions, opened.read(shard, rows), strict=True):
                records[position] = record
        return [record for record in records if record is not None]

    def places_of_inputs_in_batch(self, records: Sequence[Sample]) -> Arrays:
        """Build, for each input that some samples lack, the array ``INPUT.place_B``, which says which samples
        have it.
        """
        present = {record.present for record in records}
        return {
            f"{name}.place_B": input_indices(name in record.present for record in records)
            for name in self.processor.input_names
            if any(name not in of_some for of_some in present)
        }

    def sample_keys(self, indices: SampleIndices) -> list[str]:
        keys = [""] * len(indices)
        for opened, shard, rows, positions in self._group_indices_by_shard(indices):
            for position, key in zip(positions, opened.reader.keys(shard.name, rows), strict=True):
                keys[position] = key
        return keys

    def load_inputs(
        self, indices: SampleIndices, places: Arrays, augmentation: SampleGenerators | None = None
    ) -> Arrays:
        """Load the arrays of all inputs that the processor reads, by their names in a batch.

        Args:
            places: of ``places_of_inputs_in_batch``, among other arrays.
            augmentation: what the augmentation of further inputs draws from, in training.

        Raises:
            DataError: a shard cannot be read, or an input of it cannot be decoded.
        """
        arrays: Arrays = {}
        for name in self.processor.input_names:
            of_input = self.load_input(name, select_samples_with_input(indices, places, name), augmentation)
            arrays |= prefix_array_names(name, of_input)
        return arrays

    def load_input(self, name: str, indices: SampleIndices, augmentation: SampleGenerators | None = None) -> Arrays:
        """Load the arrays of one input, or its cached features, of samples that all have it; raises the errors of
        ``load_inputs``.
        """
        if (cache := self._features.get(stream_of_input(name))) is not None:
            return self._read_features(name, cache, indices)
        if name == IMAGE:
            return {"pixels_BHWC": self._load_images(indices)}
        decoded: list[Mapping[str, np.ndarray]] = [{}] * len(indices)
        part = self.processor.inputs[name]
        for opened, shard, rows, positions in self._group_indices_by_shard(indices):
            for position, record in zip(positions, opened.read(shard, rows, name), strict=True):
                decode: Callable[[bytes], Mapping[str, np.ndarray]] = part.decode
                if augmentation is not None and part.has_augmentation():
                    rng = augmentation(int(indices.epoch[position]), record.key, name)
                    decode = partial(part.decode_augmented, rng=rng)
                decoded[position] = opened.decode_input(shard, record, decode, name)
        return part.collate(decoded)

    def _read_features(self, name: str, cache: FeatureCache, indices: SampleIndices) -> Arrays:
        features: list[np.ndarray] = [np.zeros(0)] * len(indices)
        for opened, shard, rows, positions in self._group_indices_by_shard(indices):
            hashes = [shorten_input_hash(sha256) for sha256 in opened.input_sha256s(shard, rows, name)]
            found = cache.read([cache.file_name_of_shard(opened.index, shard)], hashes)
            for position, features_TF in zip(positions, found, strict=True):
                features[position] = features_TF
        if name == IMAGE:
            return {
                "features_BF": np.concatenate(features) if features else np.empty((0, cache.width), cache.precision)
            }
        features_BTF, mask_BT = pad_features(features, cache.width, cache.precision)
        return {"features_BTF": features_BTF, "features_mask_BT": mask_BT}

    def _load_images(self, indices: SampleIndices) -> NDArray[np.uint8]:
        pixels_BHWC = np.empty((len(indices), *self.processor.config.image_resizing.size, 3), np.uint8)
        shards = [
            (opened, shard, rows, [pixels_BHWC[position] for position in positions])
            for opened, shard, rows, positions in self._group_indices_by_shard(indices)
        ]
        if gpu := self.sources[0].source.gpu:
            self._decode_on_gpu(gpu, shards)
        else:
            for opened, shard, rows, out in shards:
                opened.load_pixels(shard, rows, out, self.processor)
        return pixels_BHWC

    def read_text_features(self, indices: SampleIndices, rows: Arrays) -> Arrays:
        """Read ``text_features_UTF`` and ``text_features_mask_UT`` of each task's distinct texts; {} without a cache of
        them.

        Args:
            indices: the samples that the texts are of.
            rows: the tokens of the texts (``VLProcessor.collate_rows``).

        Raises:
            DataError: they cannot be read.
        """
        arrays: Arrays = {}
        if (cache := self._features.get(stream_of_input(TEXT))) is None:
            return arrays
        files = [
            cache.file_name_of_shard(opened.index, shard)
            for opened, shard, _, _ in self._group_indices_by_shard(indices)
        ]
        for task in self.processor.tasks:
            of_task = select_task_arrays(rows, task)
            if "distinct_U" not in of_task:
                continue
            ids_UT, mask_UT = (of_task[name][of_task["distinct_U"]] for name in ("input_ids_NT", "text_mask_NT"))
            features = cache.read(files, hash_token_ids(ids_UT, mask_UT))
            features_UTF, mask_UT = pad_features(features, cache.width, cache.precision)
            arrays |= dict(
                prefix_array_names(task, {"text_features_UTF": features_UTF, "text_features_mask_UT": mask_UT})
            )
        return arrays

    def _has_samples_without_targets(self, name: str) -> bool:
        """Whether a source has samples that the task uses although it cannot learn from them, such as unpaired
        images.
        """
        task = self.processor.tasks[name]
        return any(
            opened.index.count(lambda present: task.is_used_in_training(present) and not task.can_learn(present))
            for opened in self.sources
        )

    def _decode_on_gpu(
        self, gpu: str, shards: Sequence[tuple[_OpenedSource, IndexedShard, list[int], list[NDArray[np.uint8]]]]
    ) -> None:
        """Decode all images at once, as a GPU is fast with many; the CPU decodes what the GPU cannot."""
        files = [
            (opened, shard, record, out)
            for opened, shard, rows, outs in shards
            for record, out in zip(opened.read(shard, rows, IMAGE), outs, strict=True)
        ]
        decoded = self.processor.decode_on_gpu(
            gpu, [file[2].inputs[IMAGE] for file in files], [file[3] for file in files]
        )
        for (opened, shard, record, out), is_decoded in zip(files, decoded, strict=True):
            if not is_decoded:
                opened.decode_input(shard, record, partial(self.processor.decode_image, out=out), IMAGE)

    def _group_indices_by_shard(
        self, indices: SampleIndices
    ) -> Iterator[tuple[_OpenedSource, IndexedShard, list[int], list[int]]]:
        """Group sample indices by shard: (source, shard, rows of the shard, their positions in ``indices``)."""
        for number, shard in np.unique(np.stack([indices.source, indices.shard]), axis=1).T.tolist():
            opened = self.sources[number]
            positions = np.flatnonzero((indices.source == number) & (indices.shard == shard))
            rows = opened.rows(shard)[indices.row[positions]].tolist()
            yield opened, opened.index.shards[shard], rows, positions.tolist()


@lru_cache(maxsize=8)
def open_samples(source: Source | SourceMixture) -> OpenedSamples:
    """Open the samples of a source, once in each process.

    Raises:
        DataError: that version of the index is gone, the split has no sample that a task can use, or the model reads
            facts and none are given.
    """
    return OpenedSamples(source)


class _OpenedSource:
    """The opened index of a source and the reader of its tars."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.index = Index.open(source.tars, source.index_hash)
        self.reader = ShardReader(self.index)
        # Of those that are decoded.
        self.has_images = IMAGE in self.index.inputs and _load_processor(source.processor).reads_images
        self.counts: Ints = np.array(
            [shard.count(self.is_sample_read, source.split) for shard in self.index.shards], np.int64
        )
        self.size = int(self.counts.sum())
        if not self.size:
            self._raise_no_samples()
        self.rows = lru_cache(maxsize=256)(self._find_rows_to_read)

    def is_sample_read(self, present: frozenset[str]) -> bool:
        """Whether samples with these inputs and texts are read, because a task can use them."""
        tasks = _load_processor(self.source.processor).tasks
        if self.source.answering is not None:
            return tasks[self.source.answering].can_answer(present)
        return any(task.is_used_in_training(present) for task in tasks.values())

    def _raise_no_samples(self) -> None:
        counts = {name: n for name, n in self.index.counts().items() if n}
        wanted = sorted({task.learning_requirement for task in _load_processor(self.source.processor).tasks.values()})
        raise DataError(
            f"{self.source.tars} has no {self.source.split or 'indexed'} sample with {' or '.join(wanted)} (it has "
            f"{counts}); leave this source out, choose another split, or raise data.index.validation_fraction and "
            "index again"
        )

    def load_pixels(
        self, shard: IndexedShard, rows: Sequence[int], out: Sequence[NDArray[np.uint8]], processor: VLProcessor
    ) -> None:
        """Load images of a shard into ``out``: from the pixel cache, or decoded and then added to it."""
        cache = self.source.pixels
        missing = range(len(rows)) if cache is None else np.flatnonzero(~cache.read(shard, rows, out)).tolist()
        if not missing:
            return
        missing_rows, missing_out = [rows[n] for n in missing], [out[n] for n in missing]
        for record, image in zip(self.read(shard, missing_rows, IMAGE), missing_out, strict=True):
            self.decode_input(shard, record, partial(processor.decode_image, out=image), IMAGE)
        if cache is not None:
            cache.write(shard, missing_rows, missing_out)

    def read(self, shard: IndexedShard, rows: Sequence[int], name: str = "") -> list[Sample]:
        """Read one input of samples without their texts; if no input is named, their texts without inputs."""
        return self.reader.read(shard.name, rows, inputs=(name,), texts=not name)

    def input_sha256s(self, shard: IndexedShard, rows: Sequence[int], name: str) -> list[str]:
        """Return the SHA-256 hashes of an input of samples that have it."""
        return [sha256 for sha256 in self.reader.input_sha256s(shard.name, rows, name) if sha256 is not None]

    def decode_input(self, shard: IndexedShard, record: Sample, decode: Callable[[bytes], T], name: str) -> T:
        """Read an input of a sample and decode it by the function ``decode``.

        Raises:
            DataError: it cannot be decoded.
        """
        try:
            return decode(record.inputs[name])
        except MediumError as error:
            raise DataError(
                f"{name} of sample {record.key!r} in shard {shard.name!r} of {self.source.tars!r}: {error}; index the "
                "data again with data.index.verify=decode, which leaves such samples out"
            ) from error

    def _find_rows_to_read(self, shard: int) -> Ints:
        """The rows of a shard that belong to the split and that a task can use."""
        table = self.index.rows(self.index.shards[shard].name)
        chosen = mask_of_usable_samples(table, self.is_sample_read)
        if self.source.split:
            chosen &= np.asarray(table["split"].to_pylist()) == self.source.split
        return np.flatnonzero(chosen).astype(np.int64)


@lru_cache(maxsize=64)
def _open_source(source: Source) -> _OpenedSource:
    return _OpenedSource(source)


@lru_cache(maxsize=8)
def _load_processor(folder: str) -> VLProcessor:
    return VLProcessor.from_pretrained(folder)


@lru_cache(maxsize=8)
def _load_processor_with_facts(folder: str, facts: FactSource | None) -> VLProcessor:
    processor = VLProcessor.from_pretrained(folder)
    connect_fact_lookup(processor, facts)
    return processor


def connect_fact_lookup(processor: VLProcessor, facts: FactSource | None, model: str | Path = "") -> None:
    """Connect a processor to the store in which its model looks facts up, if it reads any.

    Args:
        model: folder of a trained one, which may say with which facts it was trained.

    Raises:
        KnowledgeError: it does, and there is no store, or none that can be searched in the model's way or as in its
            training.
    """
    if not processor.knowledge.reads_facts:
        return
    if facts is None:
        raise KnowledgeError(
            f"the model reads facts (knowledge.kind={processor.knowledge.kind!r}); name their store in knowledge.store"
        )
    linker = open_fact_linker(facts)
    linker.check_linking(processor.knowledge.link)
    if model and processor.knowledge.link.by != "names" and (trained := TrainedFacts.load(model)) is not None:
        trained.check_encoder(FactStore(facts.store).encoder)
    processor.finder = linker


def _has_cached_features(source: Source, name: str) -> bool:
    """Whether features of an input are cached."""
    return any(cache.stream == stream_of_input(name) for cache in source.features)


def select_samples_with_input(indices: SampleIndices, arrays: Mapping[str, np.ndarray], name: str) -> SampleIndices:
    """Select the indices of the samples that have an input.

    Args:
        arrays: of the batch, with its ``places_of_inputs_in_batch``.
    """
    place_B = arrays.get(f"{name}.place_B")
    # A place past the last one is that of all samples without the input, of which there is one at least.
    return indices if place_B is None else indices[np.flatnonzero(place_B < place_B.max())]


def pad_features(
    features: Sequence[NDArray[np.floating]], width: int, precision: str
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Pad the features (T, F) of B inputs to (B, T, F), T at least 1, and build a mask (B, T)."""
    counts_B = np.array([len(features_TF) for features_TF in features], np.int64)
    mask_BT = np.arange(max(1, counts_B.max(initial=1))) < counts_B[:, None]
    features_BTF = np.zeros((*mask_BT.shape, width), precision)
    if len(features):
        features_BTF[mask_BT] = np.concatenate(features)
    return features_BTF, mask_BT
