"""Decoding of good, odd and broken pictures; tokenizing; collating; saving."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from pipelines.data.texts.corpus import train_tokenizer
from tests.vlmodel.tiny import collate
from vlmodel.config import ConfigError, parse_config
from vlmodel.images.errors import ImageError
from vlmodel.images.preprocessing import ImagePreprocessing
from vlmodel.images.resize import PADDING, ImageResizing
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
LABELS = ["yes", "no", "red", "blue"]
RED, GREEN = (255, 0, 0), (0, 255, 0)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def encode(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    return saved(Image.fromarray(pixels), format, **options)


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


def near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_of_the_right_size_come_through_untouched(processor: VLProcessor, format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    decoded = processor.decode_image(encode(PICTURE, format, **options))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, PICTURE)


def test_a_large_jpeg_is_hardly_changed_by_being_decoded_smaller(processor: VLProcessor) -> None:
    smooth = Image.fromarray(PICTURE).resize((800, 600), Image.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(processor.decode_image(data).astype(int) - np.asarray(whole))
    assert difference.mean() < 2


def test_squash_keeps_all_and_crop_the_center(processor: VLProcessor, tokenizer: PreTrainedTokenizerFast) -> None:
    image = Image.new("RGB", (96, 32), RED)
    image.paste(GREEN, (32, 0, 64, 32))
    squashed = processor.decode_image(saved(image))
    assert near(squashed[16, 1], RED)
    assert near(squashed[16, 16], GREEN)
    assert near(squashed[16, 30], RED)
    cropping = VLProcessor(ProcessorConfig(image_size=32, resize="crop"), tokenizer, LABELS)
    assert (cropping.decode_image(saved(image)) == GREEN).all()
    inner = VLProcessor(ProcessorConfig(image_size=32, crop=0.25), tokenizer, LABELS)
    assert (inner.decode_image(saved(image)) == GREEN).all()


def test_pad_keeps_the_shape_beside_bars(tokenizer: PreTrainedTokenizerFast) -> None:
    padding = VLProcessor(ProcessorConfig(image_size=30, resize="pad"), tokenizer, LABELS)
    for turned in (False, True):
        image = Image.new("RGB", (90, 30), RED)
        image.paste(GREEN, (30, 0, 60, 30))
        decoded = padding.decode_image(saved(image.transpose(Image.Transpose.ROTATE_90) if turned else image))
        decoded = decoded.transpose(1, 0, 2) if turned else decoded
        assert (decoded[:10] == PADDING).all()
        assert (decoded[20:] == PADDING).all()
        assert near(decoded[15, 1], RED)
        assert near(decoded[15, 15], GREEN)
        assert near(decoded[15, 28], RED)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_extreme_shapes(size: tuple[int, int], resize: str, tokenizer: PreTrainedTokenizerFast) -> None:
    processor = VLProcessor(parse_config(ProcessorConfig, {"image_size": 32, "resize": resize}), tokenizer, LABELS)
    decoded = processor.decode_image(saved(Image.new("RGB", size, GREEN)))
    assert decoded.shape == (32, 32, 3)
    shown = (decoded == GREEN).all(2)
    assert (shown | (decoded == PADDING).all(2)).all()
    longer = max(size)
    assert shown.any(1).sum() * shown.any(0).sum() == (
        32 * 32 if resize != "pad" else max(1, round(32 * size[0] / longer)) * max(1, round(32 * size[1] / longer))
    )


@pytest.mark.parametrize(
    ("resize", "expected"),
    [("squash", [RED, GREEN, RED]), ("crop", [RED, GREEN, RED]), ("pad", [(PADDING,) * 3, GREEN, (PADDING,) * 3])],
)
def test_images_that_are_not_square(
    resize: str, expected: list[tuple[int, int, int]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Of a square of three stripes: squashed, cut above and below, or with bars at its sides."""
    settings = parse_config(ProcessorConfig, {"image_size": [20, 60], "resize": resize})
    processor = VLProcessor(settings, tokenizer, LABELS)
    processor.save_pretrained(tmp_path)
    processor = VLProcessor.from_pretrained(tmp_path)
    assert processor.config.image_size == (20, 60)
    image = Image.new("RGB", (60, 60), RED)
    image.paste(GREEN, (20, 0, 40, 60))
    decoded = processor.decode_image(saved(image))
    assert decoded.shape == processor.blank_inputs()["image"]["pixels_HWC"].shape == (20, 60, 3)
    assert all(near(decoded[10, column], colour) for column, colour in zip((5, 30, 55), expected, strict=True))
    assert processor.collate_inputs([{}])["image.pixels_BHWC"].shape == (0, 20, 60, 3)


def test_a_square_has_one_number() -> None:
    assert parse_config(ProcessorConfig, {"image_size": [96, 96]}) == ProcessorConfig(image_size=96)
    for bad in (-1, [96], [0, 96], [96, 96, 3]):
        with pytest.raises(ConfigError, match="image_size"):
            parse_config(ProcessorConfig, {"image_size": bad})


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(processor: VLProcessor, orientation: int, format: str) -> None:
    """A picture stored turned shows as it was: red on the left."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = halves(64, 32)
    image.paste((0, 0, 255), (0, 0, 32, 16))  # the upper left is blue, so that flips differ from turns
    if format == "PNG":
        image.putalpha(255)  # transparency is laid on white by another path
    stored = image if orientation == 1 else image.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = processor.decode_image(saved(stored, format, exif=exif, quality=95))
    assert near(decoded[5, 8], (0, 0, 255), 30)
    assert near(decoded[26, 8], RED, 30)
    assert near(decoded[5, 24], GREEN, 30)


def test_broken_exif_is_ignored(processor: VLProcessor) -> None:
    data = saved(halves(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert near(processor.decode_image(data)[16, 4], RED, 30)


def test_cmyk_palette_grey_and_one_bit(processor: VLProcessor) -> None:
    cmyk = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    assert near(processor.decode_image(saved(cmyk, "JPEG"))[16, 16], RED, 30)
    palette = halves().quantize(4)
    assert near(processor.decode_image(saved(palette))[16, 4], RED)
    assert near(processor.decode_image(saved(palette, "GIF"))[16, 28], GREEN)
    assert (processor.decode_image(saved(Image.new("L", (9, 9), 77))) == 77).all()
    assert (processor.decode_image(saved(Image.new("1", (9, 9), 1))) == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(processor: VLProcessor) -> None:
    grey = Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16))
    assert (processor.decode_image(saved(grey)) == 127).all()
    # RGB with 16 bits a channel: written by hand, as Pillow cannot.
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 4
    data = png(struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0), row * 4)
    assert near(processor.decode_image(data)[16, 16], (255, 128, 0), 1)


def png(header: bytes, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparent_is_white(processor: VLProcessor, mode: str) -> None:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (16, 0, 32, 32))
    if mode == "P":
        data = saved(image.convert("RGB").quantize(2), transparency=0)
        decoded = processor.decode_image(data)
        assert {tuple(decoded[16, 4]), tuple(decoded[16, 28])} & {(255, 255, 255)}
        return
    decoded = processor.decode_image(saved(image if mode in ("RGBA", "PA") else image.convert(mode)))
    assert tuple(decoded[16, 4]) == (255, 255, 255)
    assert tuple(decoded[16, 28]) == (0, 0, 0)


def test_first_frame_of_an_animation(processor: VLProcessor) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert near(processor.decode_image(data)[0, 0], RED)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.95, 0.5, 0.1])
def test_truncated_images(processor: VLProcessor, format: str, kept: float) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, format)
    with pytest.raises(ImageError) as caught:
        processor.decode_image(data[: int(len(data) * kept)])
    assert caught.value.reason in ("truncated", "undecodable")
    if format in ("JPEG", "PNG", "BMP") and kept == 0.5:
        assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"<html><body>404 Not Found</body></html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + b"\0" * 50],
    ids=["empty", "zero", "html", "jpeg marker", "png of zeros"],
)
def test_bytes_that_are_no_image(processor: VLProcessor, data: bytes) -> None:
    with pytest.raises(ImageError, match=rf"image \({len(data)} bytes") as caught:
        processor.decode_image(data)
    assert caught.value.reason in ("undecodable", "truncated")


def test_formats_beyond_the_list_are_not_read(processor: VLProcessor) -> None:
    for format in ("PPM", "ICO", "TGA"):
        with pytest.raises(ImageError) as caught:
            processor.decode_image(encode(PICTURE, format))
        assert caught.value.reason == "undecodable"


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_bomb_is_refused_before_it_is_decoded(
    processor: VLProcessor, monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match="max_pixels") as caught:
        processor.decode_image(png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"\0" * 100))
    assert caught.value.reason == "too_large"


def test_max_pixels_is_a_setting(tokenizer: PreTrainedTokenizerFast) -> None:
    small = VLProcessor(ProcessorConfig(image_size=8, max_pixels=32 * 32), tokenizer, LABELS)
    small.decode_image(encode(PICTURE))
    with pytest.raises(ImageError, match=r"33 x 32.*max_pixels allows 1024"):
        small.decode_image(saved(Image.new("RGB", (33, 32))))


def test_image_error_survives_pickling(processor: VLProcessor) -> None:
    import pickle

    with pytest.raises(ImageError) as caught:
        processor.decode_image(b"no")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - of our own, as between workers
    assert (again.reason, str(again)) == (caught.value.reason, str(caught.value))


def test_collate(processor: VLProcessor, examples: list[Example]) -> None:
    batch = collate(
        processor, [*examples, Example(examples[0].inputs, ()), Example(examples[0].inputs, ("green?",), ("green",))]
    )
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image.pixels_BHWC": ((4, 32, 32, 3), "uint8"),
        "input_ids_NT": ((4, 8), "int64"),
        "text_mask_NT": ((4, 8), "bool"),
        "sample_N": ((4,), "int64"),
        "labels_N": ((4,), "int64"),
        "weights_N": ((4,), "float32"),
        "distinct_U": ((4,), "int64"),
        "text_distinct_N": ((4,), "int64"),
    }
    assert batch["sample_N"].tolist() == [0, 0, 1, 3]
    assert batch["labels_N"].tolist() == [2, 0, 1, -1]
    assert batch["weights_N"].tolist() == [1.0, 0.5, 1.0, 1.0]
    assert batch["input_ids_NT"][2].tolist() == [2, 9, 11, 13, 3, 0, 0, 0]
    assert batch["text_mask_NT"].sum(1).tolist() == [8, 8, 5, 4]


def test_collate_of_little(processor: VLProcessor, examples: list[Example]) -> None:
    nothing = collate(processor, [])
    assert nothing["image.pixels_BHWC"].shape == (0, 32, 32, 3)
    silent = collate(processor, [Example(examples[0].inputs, ())])
    assert silent["image.pixels_BHWC"].shape == (1, 32, 32, 3)
    assert silent["input_ids_NT"].shape[0] == silent["labels_N"].size == 0


def test_targets_and_weights_must_match_the_texts(processor: VLProcessor, examples: list[Example]) -> None:
    image = examples[0].inputs
    with pytest.raises(ValueError, match="2 texts have 1 targets"):
        collate(processor, [Example(image, ("a", "b"), ("red",))])
    with pytest.raises(ValueError, match="1 texts have 2 weights"):
        collate(processor, [Example(image, ("a",), ("red",), (1.0, 2.0))])


def test_texts_of_every_kind(processor: VLProcessor) -> None:
    texts = ["", " ", "red " * 500, "何色ですか", "a\0b", "🙂", "red"]
    tokens = processor.tokenize(texts)
    assert tokens["input_ids_NT"].shape == (7, 12)
    assert tokens["input_ids_NT"][0, :2].tolist() == [2, 3]
    long = tokens["input_ids_NT"][2]
    assert (long[0], long[-1], set(long[1:-1].tolist())) == (2, 3, {10})
    alone = processor.tokenize(["red"])["input_ids_NT"]
    assert alone.tolist() == [[2, 10, 3]]


def test_truncated_texts_are_reported(processor: VLProcessor) -> None:
    """Of 12 tokens two are special."""
    assert processor.are_texts_truncated(["red " * 10, "red " * 11, "", "what color is it?"]) == [
        False,
        True,
        False,
        False,
    ]
    assert processor.are_texts_truncated([]) == []
    cut = processor.tokenize(["red " * 11])["input_ids_NT"]
    assert cut.shape == (1, 12)


def test_images_follow_the_weights() -> None:
    weights = ImagePreprocessing((240, 240), interpolation="bicubic", resize="crop", crop=0.9, stated=True)
    followed = ProcessorConfig().fill_in_preprocessing(weights)
    assert followed.image_resizing == ImageResizing((240, 240), "crop", 0.9, "bicubic")
    assert followed.resolve_settings().image_resizing == followed.image_resizing
    assert followed.preprocessing_differences(weights) == ""
    whole = parse_config(ProcessorConfig, {"image_size": 96, "resize": "squash"}).fill_in_preprocessing(weights)
    assert whole.image_resizing == ImageResizing((96, 96), "squash", 1.0, "bicubic")
    assert whole.preprocessing_differences(weights) == (
        "images are prepared as image_size=96, resize='squash', and the weights were trained with image_size=240, "
        "resize='crop' (crop=0.9)"
    )
    assert ProcessorConfig().resolve_settings().image_resizing == ImageResizing((224, 224))
    wide = ProcessorConfig().fill_in_preprocessing(ImagePreprocessing((96, 384)))
    assert wide.image_resizing.size == wide.resolve_settings().image_size == (96, 384)


def test_images_that_contradict_the_weights() -> None:
    bilinear = ProcessorConfig(interpolation="bilinear")
    with pytest.raises(ConfigError, match=r"interpolation='bilinear', and .* trained with 'bicubic'; leave it out"):
        bilinear.fill_in_preprocessing(ImagePreprocessing((240, 240), interpolation="bicubic", stated=True))
    assumed = ImagePreprocessing((240, 240), interpolation="bicubic")
    assert bilinear.fill_in_preprocessing(assumed).image_resizing.interpolation == "bilinear"
    with pytest.raises(ConfigError, match=r"crop=0\.5 cuts off the edges that resize='pad' keeps"):
        parse_config(ProcessorConfig, {"resize": "pad", "crop": 0.5})


def test_limits_that_follow_the_data() -> None:
    following = ProcessorConfig()
    assert (following.max_tokens, following.max_target_tokens) == (0, 0)
    found = following.resolve_settings(longest=70, longest_target=5, model_limit=64, target_limit=16)
    assert (found.max_tokens, found.max_target_tokens) == (64, 16)
    found = following.resolve_settings(longest=70, longest_target=9000)
    assert (found.max_tokens, found.max_target_tokens) == (70, 512)
    assert following.resolve_settings().max_tokens == 32
    assert ProcessorConfig(max_tokens=12).resolve_settings(longest=70).max_tokens == 12
    for name, limit in (("max_tokens", 1), ("max_target_tokens", 2)):
        with pytest.raises(ConfigError, match="special tokens alone take as many"):
            parse_config(ProcessorConfig, {name: limit})


def test_a_target_is_the_label_that_means_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rules = VLProcessor(ProcessorConfig(), tokenizer, ["yes", "two cats", "New York"], normalizer="vqa")
    rules.save_pretrained(tmp_path)
    loaded = VLProcessor.from_pretrained(tmp_path)
    for processor in (rules, loaded):
        answers = ("Yes.", "2 cats", "the two cats", "new york", "no")
        assert [processor.label_id(answer) for answer in answers] == [0, 1, 1, 2, -1]
    letters = VLProcessor(ProcessorConfig(), tokenizer, ["yes", "Yes"])
    assert [letters.label_id(answer) for answer in ("yes", "Yes", "YES")] == [0, 1, -1]
    with pytest.raises(ConfigError, match="these repeat: Yes, yes"):
        VLProcessor(ProcessorConfig(), tokenizer, ["yes", "no", "Yes"], normalizer="vqa")


def test_a_processor_of_an_earlier_version_is_refused(processor: VLProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    tree = json.loads((tmp_path / "processor.json").read_text())
    del tree["inputs"], tree["normalizer"]
    (tmp_path / "processor.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"lacks inputs, normalizer, as an earlier version wrote it; train .* anew"):
        VLProcessor.from_pretrained(tmp_path)


def test_distinct_texts(processor: VLProcessor) -> None:
    tokens = processor.tokenize(["red", "a", "red", "the", "a"])
    assert tokens["input_ids_NT"].tolist() == [[2, 10, 3], [2, 9, 3], [2, 10, 3], [2, 7, 3], [2, 9, 3]]
    assert tokens["distinct_U"].tolist() == [0, 1, 3]
    assert tokens["text_distinct_N"].tolist() == [0, 1, 0, 2, 1]


def test_saved_and_loaded_is_the_same(processor: VLProcessor, examples: list[Example], tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    assert all(file.suffix == ".json" for file in tmp_path.iterdir())
    loaded = VLProcessor.from_pretrained(tmp_path)
    assert (loaded.config, loaded.labels) == (processor.config, processor.labels)
    actual, reference = collate(processor, examples), collate(loaded, examples)
    assert all(np.array_equal(actual[name], reference[name]) for name in actual)


def test_folder_without_a_processor(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no processor\.json"):
        VLProcessor.from_pretrained(tmp_path)


def test_labels_must_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="these repeat: red"):
        VLProcessor(ProcessorConfig(), tokenizer, ["red", "blue", "red"])


def test_decoding_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, vlmodel.processor; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_processor_of_another_version_is_refused(processor: VLProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    tree = json.loads((tmp_path / "processor.json").read_text())
    del tree["tasks"]
    (tmp_path / "processor.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"processor\.json' lacks tasks"):
        VLProcessor.from_pretrained(tmp_path)


def test_words_that_a_tokenizer_of_ones_own_data_does_not_know(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["what color is the star?", "how many circles are there?"])
    VLProcessor(ProcessorConfig(), tokenizer, LABELS).save_pretrained(tmp_path)
    processor = VLProcessor.from_pretrained(tmp_path)
    assert processor.unknown_words(["What colour is the STAR?", "how many squares, how many colour?"]) == [
        "colour",
        "squares",
    ]
    assert processor.unknown_words(["what color is the star", "", "?!"]) == []


def test_a_pretrained_tokenizer_knows_pieces_of_words(processor: VLProcessor) -> None:
    assert processor.unknown_words(["antidisestablishmentarianism"]) == []
