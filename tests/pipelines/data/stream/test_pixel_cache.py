"""Kept pixels are those that decoding gives, whatever is kept, lost, torn or full."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream import pixel_cache
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.config import PixelCacheConfig, StreamConfig
from pipelines.data.stream.dataset import Source, enable_pixel_cache
from pipelines.data.stream.loader import MicroBatches
from pipelines.data.stream.pixel_cache import is_cache_faster_than_decoding, open_pixel_cache
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.errors import DataError
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import SampleTexts
from vlmodel.tasks import contrastive

SAMPLES, SIDE = 12, 16  # whole batches: a batch of two epochs could have an image twice, and decode it twice
ROW = 3 * SIDE * SIDE


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Source:
    """Twelve random pictures in three shards."""
    folder, rng = tmp_path_factory.mktemp("tars"), np.random.default_rng(0)
    with ShardWriter(folder, "train", max_samples=5) as writer:
        for number in range(SAMPLES):
            image = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(image, "JPEG")
            writer.add(f"{number:03d}", {"image": (image.getvalue(), "jpg")}, SampleTexts(("a picture",), ()))
    index = build_index(str(folder), IndexConfig(validation_fraction=0.0))
    reads = {"": contrastive.Config()}
    processor = VLProcessor(ProcessorConfig(image_size=SIDE), train_tokenizer(["a picture"], 64), [], reads)
    processor.save_pretrained(folder / "processor")
    return Source(str(folder), index.hash, "train", str(folder / "processor"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by one for each image that is decoded."""
    count: list[int] = []
    decode = VLProcessor.decode_image

    def counting(self: VLProcessor, data: bytes, out: np.ndarray) -> np.ndarray:
        count.append(len(data))
        return decode(self, data, out)

    monkeypatch.setattr(VLProcessor, "decode_image", counting)
    yield count
    pixel_cache._disabled.clear()


def config(folder: Path, **more: object) -> PixelCacheConfig:
    return PixelCacheConfig(keep="always", folder=str(folder), **more)


def epochs(source: Source, count: int = 1) -> MicroBatches:
    schedule = StepSchedule(source.plan_order(seed=1, shuffle=True, window=6), batch=4, epochs=count)
    return MicroBatches(source, schedule, 0, 1, 1, AugmentConfig(flip=0.5))


def same(source: Source, kept: Source) -> None:
    for expected, got in zip(epochs(source, 2), epochs(kept, 2), strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_each_image_is_decoded_once_and_is_the_same(source: Source, tmp_path: Path, decoded: list[int]) -> None:
    kept = enable_pixel_cache(source, config(tmp_path), 2)
    assert kept.pixels is not None
    list(epochs(kept, 3))
    assert len(decoded) == SAMPLES
    same(source, kept)
    again = enable_pixel_cache(source, config(tmp_path), 2)
    before = len(decoded)
    list(epochs(again))
    assert len(decoded) == before, "another process finds them"


def test_through_the_stream(source: Source, tmp_path: Path, decoded: list[int]) -> None:
    kept = enable_pixel_cache(source, config(tmp_path), 2)
    made = list(stream_batches(epochs(kept, 3), StreamConfig(workers=3)))
    for expected, got in zip(epochs(source, 3), made, strict=True):
        np.testing.assert_array_equal(got["image.pixels_BHWC"], expected["image.pixels_BHWC"])


def test_what_is_torn_is_decoded_again(source: Source, tmp_path: Path, decoded: list[int]) -> None:
    kept = enable_pixel_cache(source, config(tmp_path), 2)
    list(epochs(kept))
    # A crash of the machine: one row's pixels never reached the disk, a file lost its end, another its checksums.
    files = sorted(tmp_path.glob("*/*/*.pixels"))
    with files[0].open("r+b") as file:
        file.seek(2 * ROW)
        file.write(bytes(ROW))
    os.truncate(files[1], ROW + 7)
    os.truncate(files[2].with_suffix(".checksums"), 0)
    decoded.clear()
    same(source, kept)
    lost = 1 + 4 + 2
    assert len(decoded) == 2 * SAMPLES + lost


def test_no_more_than_allowed_is_kept(source: Source, tmp_path: Path, decoded: list[int]) -> None:
    kept = enable_pixel_cache(source, config(tmp_path, max_gb=11 * ROW / 1e9), 2)
    list(epochs(kept, 2))
    assert len(decoded) == SAMPLES + 2, "two of three shards fit"
    same(source, kept)
    assert enable_pixel_cache(source, config(tmp_path, max_gb=4 * ROW / 1e9), 2).pixels is None


def test_longest_unused_pixels_make_room(source: Source, tmp_path: Path) -> None:
    index = Index.open(source.tars)
    enough = config(tmp_path, max_gb=24_000 / 1e9)  # of two on a disk with blocks of 4 KiB, not of three
    opened = []
    for number, size in enumerate((16, 17, 18)):
        cache = open_pixel_cache(index, ProcessorConfig(image_size=size), enough)
        assert cache is not None
        image = np.full((size, size, 3), number, np.uint8)
        cache.write(index.shards[0], range(5), [image] * 5)
        os.utime(cache.folder, (number, number))
        opened.append(cache)
    out = [np.zeros((18, 18, 3), np.uint8)]
    assert not Path(opened[0].folder).exists()
    assert opened[2].read(index.shards[0], [4], out).all()
    assert (out[0] == 2).all()


def test_a_full_disk_ends_the_keeping_and_nothing_else(
    source: Source,
    tmp_path: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = enable_pixel_cache(source, config(tmp_path), 2)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    same(source, kept)
    assert [record.message for record in caplog.records] == [
        f"the pixel cache {kept.pixels.folder} is no longer used: [Errno 28] No space left on device; set "
        "stream.cache.folder to another disk"
    ]


def test_a_disk_that_cannot_be_read_costs_decoding_alone(
    source: Source, tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = enable_pixel_cache(source, config(tmp_path), 2)
    list(epochs(kept))
    decoded.clear()

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    same(source, kept)
    assert len(decoded) == 4 * SAMPLES


def test_it_is_chosen_by_what_it_saves(source: Source, tmp_path: Path) -> None:
    auto = PixelCacheConfig(folder=str(tmp_path))
    assert enable_pixel_cache(source, auto, 1).pixels is None
    assert enable_pixel_cache(source, replace_keep(auto, "never"), 9).pixels is None
    image = np.zeros((64, 64, 3), np.uint8)
    small = is_cache_faster_than_decoding(lambda _: image, str(tmp_path))
    assert not small[0], "nothing is faster than an image that is there"

    def slow(_: int) -> np.ndarray:
        for _ in range(300):
            np.sort(np.arange(10_000)[::-1])
        return image

    assert is_cache_faster_than_decoding(slow, str(tmp_path))[0]
    assert list(tmp_path.glob("**/.trial*")) == []


def replace_keep(config: PixelCacheConfig, keep: str) -> PixelCacheConfig:
    return config.model_copy(update={"keep": keep})


def test_an_image_that_cannot_be_decoded_is_named(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmodel.images.errors import ImageError

    def broken(self: VLProcessor, data: bytes, out: np.ndarray) -> np.ndarray:
        raise ImageError("undecodable", "undecodable image")

    monkeypatch.setattr(VLProcessor, "decode_image", broken)
    with pytest.raises(DataError, match=r"sample '\d+' in shard 'train-00000\d.tar'.*index the data again"):
        epochs(replace(source))[0]


def others_on_the_disk(disk: Path) -> list[Path]:
    """Files that are no kept pixels, some of which look like them."""
    places = ["thesis/chapter1.txt", "0123456789abcdef0123456789abcdef/a.pixels", "raylm-pixels/notes/a.pixels"]
    files = [disk / place for place in places]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"years of work")
        os.utime(file.parent, (1, 1))
    return files


def test_nothing_but_kept_pixels_makes_room(source: Source, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    index, files = Index.open(source.tars), others_on_the_disk(disk)
    little = config(disk, max_gb=14_000 / 1e9)
    for size in (16, 17, 18):
        cache = open_pixel_cache(index, ProcessorConfig(image_size=size), little)
        assert cache is not None
        cache.write(index.shards[0], range(5), [np.zeros((size, size, 3), np.uint8)] * 5)
        assert Path(cache.folder).parent == disk / "raylm-pixels"
    assert [file.read_bytes() for file in files] == [b"years of work"] * 3
    assert len(list((disk / "raylm-pixels").glob(f"*/{pixel_cache.MARK}"))) == 1, "the older ones made room"


def test_links_are_not_followed(source: Source, tmp_path: Path) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    index, little = Index.open(source.tars), config(disk, max_gb=14_000 / 1e9)
    first = open_pixel_cache(index, ProcessorConfig(image_size=16), little)
    assert first is not None
    # A folder of kept pixels that was moved, and a link in its place.
    Path(first.folder).rename(elsewhere)
    Path(first.folder).symlink_to(elsewhere)
    (elsewhere / "a.pixels").write_bytes(bytes(100_000))
    os.utime(elsewhere, (1, 1))
    assert open_pixel_cache(index, ProcessorConfig(image_size=17), little) is not None
    assert (elsewhere / "a.pixels").exists()
    assert open_pixel_cache(index, ProcessorConfig(image_size=16), little) is None
    pixel_cache._disabled.clear()
    # The cache's own folder is no link, and neither are its files.
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "raylm-pixels").symlink_to(elsewhere)
    assert open_pixel_cache(index, ProcessorConfig(image_size=16), config(linked)) is None
    assert not list(elsewhere.glob("*/*"))
    pixel_cache._disabled.clear()


def test_what_else_lies_in_a_folder_of_kept_pixels_stays(source: Source, tmp_path: Path) -> None:
    index, little = Index.open(source.tars), config(tmp_path, max_gb=14_000 / 1e9)
    first = open_pixel_cache(index, ProcessorConfig(image_size=16), little)
    assert first is not None
    first.write(index.shards[0], range(5), [np.zeros((16, 16, 3), np.uint8)] * 5)
    note = Path(first.folder) / "note.txt"
    note.write_text("mine")
    os.utime(first.folder, (1, 1))
    assert open_pixel_cache(index, ProcessorConfig(image_size=17), little) is not None
    assert note.read_text() == "mine"
    assert not list(Path(first.folder).glob("*.pixels"))


def test_pictures_are_their_users_alone(source: Source, tmp_path: Path) -> None:
    root = tmp_path / "raylm-pixels"
    root.mkdir(mode=0o755)
    cache = open_pixel_cache(Index.open(source.tars), ProcessorConfig(image_size=16), config(tmp_path))
    assert cache is not None
    assert [Path(place).stat().st_mode & 0o777 for place in (root, cache.folder)] == [0o700, 0o700]
