"""Drill: tars on an S3-compatible store that answers badly now and then, from writing them to batches of tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import ray
import s3fs

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream import dataset
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.loader import MicroBatches
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from tests.pipelines.data.tar_maker import photo
from tests.pipelines.storage.stores import S3Store, s3_store
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import Question, SampleTexts

SAMPLES, A_SHARD = 240, 80
TARS = "s3://store/sets/noise"
CONFIG = IndexConfig(validation_fraction=0.0)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """The store, and a cluster of which every process has its credentials."""
    with s3_store() as running:
        running.client.create_bucket(Bucket="store")
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        ray.init(
            address="local", num_cpus=2, object_store_memory=150 << 20, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
        yield running
        ray.shutdown()
    s3fs.S3FileSystem.clear_instance_cache()


def write(folder: Path, first: int, count: int) -> list[Path]:
    """Tars of noise, on the disk; 27 KB an image, so that a tar is not read at once."""
    folder.mkdir()
    with ShardWriter(folder, "train", max_samples=A_SHARD) as writer:
        for n in range(first, first + count):
            texts = SampleTexts((), (Question("what is it?", "noise"),))
            writer.add(f"{n:03d}", {"image": (photo(n, (96, 96), "PNG"), "png")}, texts)
    return sorted(folder.glob("*.tar"))


def parts(source: Source) -> MicroBatches:
    return MicroBatches(source, StepSchedule(source.plan_order(shuffle=True), 16, 1), 0, 1, 1, AugmentConfig())


def test_from_tars_to_batches(tmp_path: Path, store: S3Store) -> None:
    bucket, local = StorageFolder(TARS), tmp_path / "tars"
    for path in write(local, 0, SAMPLES):
        bucket.write(path.name, path.read_bytes())
    expected = build_index(str(local), CONFIG)
    store.faults.kinds = cycle([500, "", "", "cut", "", "", "", 503, "", "", ""])
    index = build_index(TARS, CONFIG)
    assert index.hash == expected.hash
    assert index.quarantine().num_rows == 0
    assert len(store.faults.seen) == 3

    records = ShardReader(index).read(index.shards[1].name, [7, 0])
    assert [(record.key, record.inputs["image"]) for record in records] == [
        (f"{n:03d}", photo(n, (96, 96), "PNG")) for n in (A_SHARD + 7, A_SHARD)
    ]

    processor = VLProcessor(ProcessorConfig(image_size=16), train_tokenizer(["what is it ?"], 64), ["noise"])
    processor.save_pretrained(tmp_path / "processor")
    sources = [Source(tars, index.hash, "train", str(tmp_path / "processor")) for tars in (TARS, str(local))]
    remote, plain = map(parts, sources)
    met = store.faults.seen.total()
    delivered = list(stream_batches(remote, StreamConfig()))
    assert len(delivered) == len(plain) == SAMPLES // 16
    for number, arrays in enumerate(delivered):
        for name, array in plain[number].items():
            np.testing.assert_array_equal(arrays[name], array)
    assert store.faults.seen.total() > met

    # One more tar: it alone is read.
    [more] = write(tmp_path / "more", SAMPLES, 8)
    store.faults.kinds = iter(())
    part = {file.name: file for file in bucket.files("_index/samples")}
    bucket.write("train-000009.tar", more.read_bytes())
    index = build_index(TARS, CONFIG)
    assert index.counts()["train"] == SAMPLES + 8
    assert part.items() <= {file.name: file for file in bucket.files("_index/samples")}.items()

    # An object overwritten since: refused by who reads it, also once it is indexed.
    [other] = write(tmp_path / "other", SAMPLES + 8, 8)
    bucket.write("train-000009.tar", other.read_bytes())
    with pytest.raises(DataError, match=r"in shard 'train-000009.tar' .* run the index job again"):
        ShardReader(Index.open(TARS)).read("train-000009.tar", [0])
    assert build_index(TARS, CONFIG).hash != index.hash
    dataset._open_source.cache_clear()  # as a process that starts now, with what the job was started with
    assert sources[0].plan_order(shuffle=True).size == SAMPLES, "the version without that object is what it was"
    with pytest.raises(DataError, match=r"'train-000009.tar' was changed or removed since the index was made"):
        index.rows("train-000009.tar")
