"""Indexed samples as a training or evaluation sees them: their texts, their images, of one source or of several.

A Source is small and picklable and only says where samples are. What is heavy, the index, the readers, the processor,
is opened once a process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.data.index.index import Index, Shard
from pipelines.data.stream.features import Features, image_hashes, text_hashes
from pipelines.data.stream.pixel_cache import PixelCache, PixelCacheConfig, is_cache_faster, open_pixel_cache
from pipelines.data.stream.plan import Ints, Plan, SampleIndices
from pipelines.data.tars.reader import Record, ShardReader
from pipelines.data.tars.sample import Members
from pipelines.errors import DataError
from vlmodel.images.errors import ImageError
from vlmodel.processor import VLProcessor
from vlmodel.task_spec import TaskSpec, join, split

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Where samples come from and what makes them examples.

    Attributes:
        tars: folder or URI of the tars and their index.
        index_hash: the version of the index of which the plan was made; newer ones do not matter.
        split: train, val or test; "" takes all.
        processor: folder of the saved VLProcessor. It knows which texts the tasks read; a sample without any is left
            out.
        features: kept features, of each stream once. Of "vision" a batch then has ``features_BF`` (B, F) in place of
            ``pixels_BHWC``, and no image is read; of "language" each task has ``text_features_UTF`` and
            ``text_features_mask_UT`` of its distinct texts.
        pixels: images that this node keeps once they are decoded.
        gpu: CUDA device of this process that decodes the images; "" leaves that to the CPU.
    """

    tars: str
    index_hash: str
    split: str
    processor: str
    features: tuple[Features, ...] = ()
    pixels: PixelCache | None = None
    gpu: str = ""

    def plan(self, *, seed: int = 0, window: int = 65536, run: int = 1, shuffle: bool) -> Plan:
        """The plan over this source's samples.

        Raises:
            DataError: the split has no sample with such texts.
        """
        return Plan(self.index_hash, _open_member(self).counts, seed, window, shuffle, run)


@dataclass(frozen=True)
class Mixture:
    """Several sources that are read as one; their numbers are those of an order over them (mixture.py).

    Attributes:
        members: the sources, of one processor, and with the same kept features.
    """

    members: tuple[Source, ...]

    def __post_init__(self) -> None:
        assert len({(member.processor, member.features) for member in self.members}) == 1

    @property
    def processor(self) -> str:
        """Folder of the saved VLProcessor."""
        return self.members[0].processor

    @property
    def features(self) -> tuple[Features, ...]:
        """The kept features."""
        return self.members[0].features


def kept_of(features: Sequence[Features], stream: str) -> Features | None:
    """The kept features of a stream; None where there are none."""
    return next((kept for kept in features if kept.stream == stream), None)


def decoding_on(source: Source | Mixture, gpu: str) -> Source | Mixture:
    """The source, whose images a CUDA device of this process decodes."""
    if isinstance(source, Source):
        return replace(source, gpu=gpu)
    return Mixture(tuple(replace(member, gpu=gpu) for member in source.members))


def keeping_pixels(source: Source | Mixture, config: PixelCacheConfig, epochs: int) -> Source | Mixture:
    """The source, whose images this node keeps once they are decoded if that is wanted. Of several each has a share of
    the room, by its samples.
    """
    if isinstance(source, Source):
        return _keeping_pixels(source, config, epochs)
    opened = [_open_member(member) for member in source.members]
    sizes = [member.size if member.pictured else 0 for member in opened]
    rooms = [config.model_copy(update={"max_gb": config.max_gb * size / max(1, sum(sizes))}) for size in sizes]
    members = zip(source.members, rooms, strict=True)
    return Mixture(tuple(_keeping_pixels(member, room, epochs) for member, room in members))


def _keeping_pixels(source: Source, config: PixelCacheConfig, epochs: int) -> Source:
    if config.keep == "never" or kept_of(source.features, "vision") or (config.keep == "auto" and epochs < 2):
        return source
    if not _open_member(source).pictured:
        return source
    samples = open_samples(source)
    index = samples.members[0].index
    if (pixels := open_pixel_cache(index, samples.processor.config, config)) is None:
        return source
    if config.keep == "auto":
        some = source.plan(shuffle=True)
        worth, decoding, reading = is_cache_faster(
            lambda n: samples.see(some.take(n, n + 1))["pixels_BHWC"][0], pixels.folder
        )
        log.info("an image takes %.2f ms to decode, %.2f ms to read back", 1e3 * decoding, 1e3 * reading)
        if not worth:
            return source
    return replace(source, pixels=pixels)


class Samples:
    """Opened sources and their processor. Threads may share it."""

    def __init__(self, source: Source | Mixture) -> None:
        members = source.members if isinstance(source, Mixture) else (source,)
        self.members = [_open_member(member) for member in members]
        self.processor = _processor(source.processor)
        self._images, self._texts = (kept_of(source.features, stream) for stream in ("vision", "language"))
        self.size = sum(member.size for member in self.members)
        self._pictured = np.array([member.pictured for member in self.members])
        self._lone = np.array([member.index.members == "images" for member in self.members])

    def read_texts(self, taken: SampleIndices) -> list[Record]:
        """The samples of a slice without their images, in its order; each shard is opened once."""
        records: list[Record | None] = [None] * len(taken)
        for member, shard, rows, places in self._by_shard(taken):
            for place, record in zip(places, member.reader.read(shard.name, rows, images=False), strict=True):
                records[place] = record
        return [record for record in records if record is not None]

    def pictured(self, taken: SampleIndices) -> SampleIndices:
        """The samples of a slice that have an image."""
        return taken if self._pictured.all() else taken[np.flatnonzero(self._pictured[taken.source])]

    def image_places(self, taken: SampleIndices) -> Arrays:
        """``image_place_B`` (see ``VLModel.forward``) of a slice; nothing where each sample has an image."""
        if self._pictured.all():
            return {}
        has_image_B = self._pictured[taken.source]
        place_B = np.where(has_image_B, np.cumsum(has_image_B) - 1, has_image_B.sum())
        return {"image_place_B": place_B.astype(np.int64, copy=False)}

    def lone_images(self, taken: SampleIndices, weight: float) -> Arrays:
        """``unpaired_image_mask_B`` of contrastive tasks: which images of a slice of that weight are without texts;
        nothing where every source has texts.
        """
        if not self._lone.any():
            return {}
        lone = {"unpaired_image_mask_B": self._lone[taken.source] & (weight > 0)}
        comparing = [task for task, fields in self.processor.tasks.items() if fields.target == "none"]
        return {name: array for task in comparing for name, array in join(task, lone)}

    def keys(self, taken: SampleIndices) -> list[str]:
        """The keys of the samples of a slice, in its order."""
        keys = [""] * len(taken)
        for member, shard, rows, places in self._by_shard(taken):
            for place, key in zip(places, member.reader.keys(shard.name, rows), strict=True):
                keys[place] = key
        return keys

    def see(self, taken: SampleIndices) -> Arrays:
        """What the model is to see of the samples of a slice, all with an image: kept features or, where there are
        none, the images.

        Raises:
            DataError: a shard cannot be read, or an image of it cannot be decoded.
        """
        if self._images is not None:
            features_BF = np.empty((len(taken), self._images.width), self._images.precision)
            for member, shard, rows, places in self._by_shard(taken):
                hashes = image_hashes(member.reader.image_sha256s(shard.name, rows))
                read = self._images.read([self._images.file_of(member.index, shard)], hashes)
                features_BF[places] = np.concatenate(read)
            return {"features_BF": features_BF}
        size = self.processor.config.image_size
        pixels_BHWC = np.empty((len(taken), size, size, 3), np.uint8)
        shards = [
            (member, shard, rows, [pixels_BHWC[place] for place in places])
            for member, shard, rows, places in self._by_shard(taken)
        ]
        if gpu := self.members[0].source.gpu:
            self._fill_on(gpu, shards)
        else:
            for member, shard, rows, out in shards:
                member.fill(shard, rows, out, self.processor)
        return {"pixels_BHWC": pixels_BHWC}

    def read_text_features(self, taken: SampleIndices, rows: Arrays) -> Arrays:
        """``text_features_UTF`` and ``text_features_mask_UT`` of each task's distinct texts, where they are kept.

        Args:
            taken: the samples that the texts are of.
            rows: the tokens of the texts (``VLProcessor.collate_rows``).

        Raises:
            DataError: they cannot be read.
        """
        found: Arrays = {}
        if (kept := self._texts) is None:
            return found
        files = [kept.file_of(member.index, shard) for member, shard, _, _ in self._by_shard(taken)]
        for task in self.processor.tasks:
            given = split(rows, task)
            if "distinct_U" not in given:
                continue
            ids_UT, mask_UT = (given[name][given["distinct_U"]] for name in ("input_ids_NT", "text_mask_NT"))
            read = kept.read(files, text_hashes(ids_UT, mask_UT))
            counts_U = np.array([len(of_text) for of_text in read], np.int64)
            # A stream has one token at least.
            real_UT = np.arange(max(1, counts_U.max(initial=1))) < counts_U[:, None]
            features_UTF = np.zeros((*real_UT.shape, kept.width), kept.precision)
            if len(read):
                features_UTF[real_UT] = np.concatenate(read)
            arrays = {"text_features_UTF": features_UTF, "text_features_mask_UT": real_UT}
            found |= dict(join(task, arrays))
        return found

    def _fill_on(self, gpu: str, shards: Sequence[tuple[_Member, Shard, list[int], list[NDArray[np.uint8]]]]) -> None:
        """All images of a slice at once, as a GPU is fast with many; what it leaves the CPU decodes."""
        files = [
            (member, shard, record, place)
            for member, shard, rows, out in shards
            for record, place in zip(member.reader.read(shard.name, rows, texts=False), out, strict=True)
        ]
        done = self.processor.decode_on_gpu(gpu, [file[2].image for file in files], [file[3] for file in files])
        for (member, shard, record, place), is_done in zip(files, done, strict=True):
            if not is_done:
                member.decode(shard, record, place, self.processor)

    def _by_shard(self, taken: SampleIndices) -> Iterator[tuple[_Member, Shard, list[int], list[int]]]:
        """(source, shard, rows of it, their places in the slice) for each shard of a slice."""
        for number, shard in np.unique(np.stack([taken.source, taken.shard]), axis=1).T.tolist():
            member = self.members[number]
            places = np.flatnonzero((taken.source == number) & (taken.shard == shard))
            yield member, member.index.shards[shard], member.rows(shard)[taken.row[places]].tolist(), places.tolist()


@lru_cache(maxsize=8)
def open_samples(source: Source | Mixture) -> Samples:
    """The samples of a source, opened once a process.

    Raises:
        DataError: that version of the index is gone, or the split has no sample with texts of the tasks.
    """
    return Samples(source)


class _Member:
    """An opened source: its index and reader."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.index = Index.open(source.tars, source.index_hash)
        self.reader = ShardReader(self.index)
        self.pictured = self.index.members != "texts"
        tasks = _processor(source.processor).tasks
        able = [fields for fields in tasks.values() if _is_of_use(self.index.members, fields)]
        if not able:
            raise DataError(
                f"{source.tars} holds {self.index.members} alone (data.index.members), and the model's tasks make "
                "nothing of them; leave this source out"
            )
        # A sample of images alone has nothing else to be chosen by.
        self.reads = sorted({fields.reads for fields in able}) if self.index.members != "images" else []
        # Every sample of the others has a caption or a question.
        counted = f"with_{self.reads[0]}" if len(self.reads) == 1 else "samples"
        self.counts: Ints = np.array(
            [_in_split(getattr(shard, counted), source.split) for shard in self.index.shards], np.int64
        )
        self.size = int(self.counts.sum())
        if not self.size:
            found = {split: n for split, n in self.index.counts().items() if n}
            raise DataError(
                f"{source.tars} has no {source.split or 'indexed'} sample with {' or '.join(self.reads)} "
                f"(it has {found}); choose another split, or raise data.index.validation_fraction and index again"
            )
        self.rows = lru_cache(maxsize=256)(self._eligible_rows)

    def fill(self, shard: Shard, rows: Sequence[int], out: Sequence[NDArray[np.uint8]], processor: VLProcessor) -> None:
        """Images of a shard into the places given for them: kept ones, and those that are decoded now."""
        kept = self.source.pixels
        missing = range(len(rows)) if kept is None else np.flatnonzero(~kept.read(shard, rows, out)).tolist()
        if not missing:
            return
        here, places = [rows[n] for n in missing], [out[n] for n in missing]
        for record, place in zip(self.reader.read(shard.name, here, texts=False), places, strict=True):
            self.decode(shard, record, place, processor)
        if kept is not None:
            kept.write(shard, here, places)

    def decode(self, shard: Shard, record: Record, place: NDArray[np.uint8], processor: VLProcessor) -> None:
        """One image into its place."""
        try:
            processor.decode(record.image, place)
        except ImageError as error:
            raise DataError(
                f"sample {record.key!r} in shard {shard.name!r} of {self.source.tars!r}: {error}; index the data "
                "again with data.index.verify=decode, which leaves such samples out"
            ) from error

    def _eligible_rows(self, shard: int) -> Ints:
        table = self.index.rows(self.index.shards[shard].name)
        eligible = np.ones(table.num_rows, np.bool_)
        if self.reads:
            eligible = np.logical_or.reduce([table[reads].to_numpy() > 0 for reads in self.reads])
        if self.source.split:
            eligible &= np.asarray(table["split"].to_pylist()) == self.source.split
        return np.flatnonzero(eligible).astype(np.int64)


@lru_cache(maxsize=64)
def _open_member(source: Source) -> _Member:
    return _Member(source)


@lru_cache(maxsize=8)
def _processor(folder: str) -> VLProcessor:
    return VLProcessor.from_pretrained(folder)


def _is_of_use(members: Members, fields: TaskSpec) -> bool:
    """Whether a task makes anything of such samples."""
    return {"pairs": True, "texts": not fields.needs_image, "images": fields.uses_unpaired_images}[members]


def _in_split(counts: Mapping[str, int], split: str) -> int:
    return counts.get(split, 0) if split else sum(counts.values())
