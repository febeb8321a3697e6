"""Reading the samples of one indexed source, or of several: their texts, and their images or cached features.

A ``Source`` is small and picklable. What is large (the index, the readers, the processor) is opened once a process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.data.index.index import Index, Shard
from pipelines.data.stream.feature_cache import FeatureCache, image_hashes, text_hashes
from pipelines.data.stream.pixel_cache import PixelCache, PixelCacheConfig, is_cache_faster, open_pixel_cache
from pipelines.data.stream.plan import Ints, Plan, SampleIndices
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from vlmodel.images.errors import ImageError
from vlmodel.processor import VLProcessor
from vlmodel.sample import Sample
from vlmodel.task_spec import TaskSpec, join, split

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        tars: folder or URI of the tars and their index.
        index_hash: the version of the index that the plan was made of.
        split: train, val or test; "" takes all.
        processor: folder of the saved VLProcessor, whose tasks decide which samples are read: those with a text that
            a task uses.
        features: feature caches, of each stream at most one. With one of "vision" a batch has ``features_BF`` (B, F)
            in place of ``pixels_BHWC``, and no image is read; with one of "language" each task has
            ``text_features_UTF`` and ``text_features_mask_UT`` of its distinct texts.
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

    def plan(self, *, seed: int = 0, window: int = 65536, block: int = 1, shuffle: bool) -> Plan:
        """The plan over this source's samples.

        Raises:
            DataError: the split has no sample with such texts.
        """
        return Plan(self.index_hash, _open_source(self).counts, seed, window, shuffle, block)


@dataclass(frozen=True)
class Mixture:
    """Several sources that are read as one, in the order of a ``MixturePlan``.

    Attributes:
        members: the sources, of one processor and with the same feature caches.
    """

    members: tuple[Source, ...]

    def __post_init__(self) -> None:
        assert len({(member.processor, member.features) for member in self.members}) == 1

    @property
    def processor(self) -> str:
        return self.members[0].processor

    @property
    def features(self) -> tuple[FeatureCache, ...]:
        return self.members[0].features


def with_gpu_decoding(source: Source | Mixture, gpu: str) -> Source | Mixture:
    """The source, its images decoded by a CUDA device of this process."""
    if isinstance(source, Source):
        return replace(source, gpu=gpu)
    return Mixture(tuple(replace(member, gpu=gpu) for member in source.members))


def with_pixel_cache(source: Source | Mixture, config: PixelCacheConfig, epochs: int) -> Source | Mixture:
    """The source, its decoded images cached on this node where the settings ask for it.

    The sources of a mixture share the cache's size in proportion to their samples.
    """
    if isinstance(source, Source):
        return _with_pixel_cache(source, config, epochs)
    opened = [_open_source(member) for member in source.members]
    sizes = [member.size if member.has_images else 0 for member in opened]
    configs = [config.model_copy(update={"max_gb": config.max_gb * size / max(1, sum(sizes))}) for size in sizes]
    return Mixture(tuple(_with_pixel_cache(*pair, epochs) for pair in zip(source.members, configs, strict=True)))


def _with_pixel_cache(source: Source, config: PixelCacheConfig, epochs: int) -> Source:
    if config.keep == "never" or _cache_of(source.features, "vision") or (config.keep == "auto" and epochs < 2):
        return source
    if not _open_source(source).has_images:
        return source
    samples = open_samples(source)
    if (pixels := open_pixel_cache(samples.sources[0].index, samples.processor.config, config)) is None:
        return source
    if config.keep == "auto":
        plan = source.plan(shuffle=True)
        is_faster, decode_s, read_s = is_cache_faster(
            lambda n: samples.load_images(plan.samples_between(n, n + 1))["pixels_BHWC"][0], pixels.folder
        )
        log.info("an image takes %.2f ms to decode, %.2f ms to read from the cache", 1e3 * decode_s, 1e3 * read_s)
        if not is_faster:
            return source
    return replace(source, pixels=pixels)


class Samples:
    """Opened sources and their processor. Threads may share it."""

    def __init__(self, source: Source | Mixture) -> None:
        members = source.members if isinstance(source, Mixture) else (source,)
        self.sources = [_open_source(member) for member in members]
        self.processor = _load_processor(source.processor)
        self._image_features, self._text_features = (_cache_of(source.features, s) for s in ("vision", "language"))
        self.size = sum(opened.size for opened in self.sources)
        self._has_images = np.array([opened.has_images for opened in self.sources])
        self._has_images_alone = np.array([opened.index.modality == "images" for opened in self.sources])

    def read_texts(self, indices: SampleIndices) -> list[Sample]:
        """The samples without their images, in the order of ``indices``; each shard is opened once."""
        records: list[Sample | None] = [None] * len(indices)
        for opened, shard, rows, positions in self._by_shard(indices):
            for position, record in zip(positions, opened.reader.read(shard.name, rows, inputs=()), strict=True):
                records[position] = record
        return [record for record in records if record is not None]

    def with_image(self, indices: SampleIndices) -> SampleIndices:
        """Those of the samples that have an image."""
        return indices if self._has_images.all() else indices[np.flatnonzero(self._has_images[indices.source])]

    def image_places(self, indices: SampleIndices) -> Arrays:
        """``image_place_B`` (see ``VLModel.forward``); {} where each sample has an image."""
        if self._has_images.all():
            return {}
        has_image_B = self._has_images[indices.source]
        place_B = np.where(has_image_B, np.cumsum(has_image_B) - 1, has_image_B.sum())
        return {"image_place_B": place_B.astype(np.int64, copy=False)}

    def unpaired_image_mask(self, indices: SampleIndices, weight: float) -> Arrays:
        """``unpaired_image_mask_B`` of contrastive tasks: which images come without texts, of samples of that weight;
        {} where every source has texts.
        """
        if not self._has_images_alone.any():
            return {}
        mask = {"unpaired_image_mask_B": self._has_images_alone[indices.source] & (weight > 0)}
        contrastive = [task for task, spec in self.processor.tasks.items() if spec.target == "none"]
        return {name: array for task in contrastive for name, array in join(task, mask)}

    def keys(self, indices: SampleIndices) -> list[str]:
        keys = [""] * len(indices)
        for opened, shard, rows, positions in self._by_shard(indices):
            for position, key in zip(positions, opened.reader.keys(shard.name, rows), strict=True):
                keys[position] = key
        return keys

    def load_images(self, indices: SampleIndices) -> Arrays:
        """``features_BF`` where features are cached, else ``pixels_BHWC``, of samples that all have an image.

        Raises:
            DataError: a shard cannot be read, or an image of it cannot be decoded.
        """
        if (cache := self._image_features) is not None:
            features_BF = np.empty((len(indices), cache.width), cache.precision)
            for opened, shard, rows, positions in self._by_shard(indices):
                hashes = image_hashes(opened.reader.image_sha256s(shard.name, rows))
                features_BF[positions] = np.concatenate(cache.read([cache.file_of(opened.index, shard)], hashes))
            return {"features_BF": features_BF}
        size = self.processor.config.image_size
        pixels_BHWC = np.empty((len(indices), size, size, 3), np.uint8)
        shards = [
            (opened, shard, rows, [pixels_BHWC[position] for position in positions])
            for opened, shard, rows, positions in self._by_shard(indices)
        ]
        if gpu := self.sources[0].source.gpu:
            self._decode_on_gpu(gpu, shards)
        else:
            for opened, shard, rows, out in shards:
                opened.load_pixels(shard, rows, out, self.processor)
        return {"pixels_BHWC": pixels_BHWC}

    def read_text_features(self, indices: SampleIndices, rows: Arrays) -> Arrays:
        """``text_features_UTF`` and ``text_features_mask_UT`` of each task's distinct texts; {} without such a cache.

        Args:
            indices: the samples that the texts are of.
            rows: the tokens of the texts (``VLProcessor.collate_rows``).

        Raises:
            DataError: they cannot be read.
        """
        arrays: Arrays = {}
        if (cache := self._text_features) is None:
            return arrays
        files = [cache.file_of(opened.index, shard) for opened, shard, _, _ in self._by_shard(indices)]
        for task in self.processor.tasks:
            of_task = split(rows, task)
            if "distinct_U" not in of_task:
                continue
            ids_UT, mask_UT = (of_task[name][of_task["distinct_U"]] for name in ("input_ids_NT", "text_mask_NT"))
            features = cache.read(files, text_hashes(ids_UT, mask_UT))
            counts_U = np.array([len(of_text) for of_text in features], np.int64)
            # A stream has at least one token.
            mask_UT = np.arange(max(1, counts_U.max(initial=1))) < counts_U[:, None]
            features_UTF = np.zeros((*mask_UT.shape, cache.width), cache.precision)
            if len(features):
                features_UTF[mask_UT] = np.concatenate(features)
            arrays |= dict(join(task, {"text_features_UTF": features_UTF, "text_features_mask_UT": mask_UT}))
        return arrays

    def _decode_on_gpu(
        self, gpu: str, shards: Sequence[tuple[_OpenedSource, Shard, list[int], list[NDArray[np.uint8]]]]
    ) -> None:
        """Decode all images at once, as a GPU is fast with many; the CPU decodes what the GPU cannot."""
        files = [
            (opened, shard, record, out)
            for opened, shard, rows, outs in shards
            for record, out in zip(opened.reader.read(shard.name, rows, texts=False), outs, strict=True)
        ]
        decoded = self.processor.decode_on_gpu(
            gpu, [file[2].inputs["image"] for file in files], [file[3] for file in files]
        )
        for (opened, shard, record, out), is_decoded in zip(files, decoded, strict=True):
            if not is_decoded:
                opened.decode(shard, record, out, self.processor)

    def _by_shard(self, indices: SampleIndices) -> Iterator[tuple[_OpenedSource, Shard, list[int], list[int]]]:
        """(source, shard, rows of the shard, their positions in ``indices``) for each shard."""
        for number, shard in np.unique(np.stack([indices.source, indices.shard]), axis=1).T.tolist():
            opened = self.sources[number]
            positions = np.flatnonzero((indices.source == number) & (indices.shard == shard))
            rows = opened.rows(shard)[indices.row[positions]].tolist()
            yield opened, opened.index.shards[shard], rows, positions.tolist()


@lru_cache(maxsize=8)
def open_samples(source: Source | Mixture) -> Samples:
    """The samples of a source, opened once a process.

    Raises:
        DataError: that version of the index is gone, or the split has no sample with texts of the tasks.
    """
    return Samples(source)


class _OpenedSource:
    """A source's index and reader."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.index = Index.open(source.tars, source.index_hash)
        self.reader = ShardReader(self.index)
        self.has_images = self.index.modality != "texts"
        specs = [
            spec for spec in _load_processor(source.processor).tasks.values() if _can_use(self.index.modality, spec)
        ]
        if not specs:
            raise DataError(
                f"{source.tars} holds {self.index.modality} alone (data.index.inputs), and the model's tasks cannot "
                "use them; leave this source out"
            )
        # All samples of images alone are read.
        self.reads = sorted({spec.reads for spec in specs}) if self.index.modality != "images" else []
        # Every other sample has a caption or a question, so with both kinds all are read too.
        reads = frozenset(self.reads)
        self.counts: Ints = np.array(
            [shard.count(lambda has: not reads or bool(reads & has), source.split) for shard in self.index.shards],
            np.int64,
        )
        self.size = int(self.counts.sum())
        if not self.size:
            counts = {split: n for split, n in self.index.counts().items() if n}
            raise DataError(
                f"{source.tars} has no {source.split or 'indexed'} sample with {' or '.join(self.reads)} "
                f"(it has {counts}); choose another split, or raise data.index.validation_fraction and index again"
            )
        self.rows = lru_cache(maxsize=256)(self._rows_of)

    def load_pixels(
        self, shard: Shard, rows: Sequence[int], out: Sequence[NDArray[np.uint8]], processor: VLProcessor
    ) -> None:
        """Images of a shard into ``out``: from the cache, or else decoded and added to it."""
        cache = self.source.pixels
        missing = range(len(rows)) if cache is None else np.flatnonzero(~cache.read(shard, rows, out)).tolist()
        if not missing:
            return
        missing_rows, missing_out = [rows[n] for n in missing], [out[n] for n in missing]
        records = self.reader.read(shard.name, missing_rows, texts=False)
        for record, image in zip(records, missing_out, strict=True):
            self.decode(shard, record, image, processor)
        if cache is not None:
            cache.write(shard, missing_rows, missing_out)

    def decode(self, shard: Shard, record: Sample, out: NDArray[np.uint8], processor: VLProcessor) -> None:
        try:
            processor.decode(record.inputs["image"], out)
        except ImageError as error:
            raise DataError(
                f"sample {record.key!r} in shard {shard.name!r} of {self.source.tars!r}: {error}; index the data "
                "again with data.index.verify=decode, which leaves such samples out"
            ) from error

    def _rows_of(self, shard: int) -> Ints:
        """The rows of a shard that are of the split and have a text that a task uses."""
        table = self.index.rows(self.index.shards[shard].name)
        chosen = np.ones(table.num_rows, np.bool_)
        if self.reads:
            chosen = np.logical_or.reduce([table[reads].to_numpy() > 0 for reads in self.reads])
        if self.source.split:
            chosen &= np.asarray(table["split"].to_pylist()) == self.source.split
        return np.flatnonzero(chosen).astype(np.int64)


@lru_cache(maxsize=64)
def _open_source(source: Source) -> _OpenedSource:
    return _OpenedSource(source)


@lru_cache(maxsize=8)
def _load_processor(folder: str) -> VLProcessor:
    return VLProcessor.from_pretrained(folder)


def _cache_of(features: Sequence[FeatureCache], stream: str) -> FeatureCache | None:
    return next((cache for cache in features if cache.stream == stream), None)


def _can_use(modality: str, spec: TaskSpec) -> bool:
    """Whether a task can use such samples."""
    return {"pairs": True, "texts": not spec.needs_image, "images": spec.uses_unpaired_images}[modality]
