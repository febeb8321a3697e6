"""Pictures of sounds, series, videos and rows: each says what it is of."""

from __future__ import annotations

import io

import numpy as np

from pipelines.report.input_pictures import HEIGHT, WIDTH, draw_inputs
from tests.vlmodel.media_files import saved_sound, saved_video

WHITE = 255


def picture_of(medium: str, data: bytes, attention_T: list[float] | None = None) -> np.ndarray:
    weights = {} if attention_T is None else {"x": np.array(attention_T, np.float32)}
    picture = draw_inputs({"x": data}, {"x": medium}, weights)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (WIDTH, 3)
    return picture


def drawn_heights(picture: np.ndarray) -> np.ndarray:
    """How many pixels of each column are drawn on."""
    return np.asarray((picture != WHITE).any(2).sum(0))


def test_a_waveform_is_as_high_as_the_sound_is_loud() -> None:
    tone_T = np.sin(np.arange(8000.0))
    heights = drawn_heights(picture_of("audio", saved_sound(tone_T * np.repeat([0.0, 0.5, 1.0, 0.0], 2000))))
    quarters = heights.reshape(4, -1)[:, 4:-4]
    assert (quarters[0] == 1).all()
    assert np.allclose(quarters[1], HEIGHT / 2, atol=4)
    assert np.allclose(quarters[2], HEIGHT, atol=4)
    assert (drawn_heights(picture_of("audio", saved_sound(np.zeros(3)))) == 1).all()


def test_each_channel_of_a_series_has_a_lane() -> None:
    file = io.BytesIO()
    np.save(file, np.stack([np.arange(50.0), np.full(50, 7.0)], 1))
    picture = picture_of("series", file.getvalue())
    upper, lower = picture[: HEIGHT // 2], picture[HEIGHT // 2 :]
    rising = (upper != WHITE).any(2).argmax(0)
    assert rising[4] > rising[-4] + HEIGHT / 3
    assert len(set((lower != WHITE).any(2).argmax(0).tolist())) == 1


def test_frames_are_side_by_side_in_their_order() -> None:
    shades = [20, 90, 160, 230]
    frames_THWC = np.stack([np.full((32, 32, 3), shade, np.uint8) for shade in shades])
    picture = picture_of("video", saved_video(frames_THWC))
    middles = [int(picture[HEIGHT // 2, WIDTH * (2 * n + 1) // 8, 0]) for n in range(4)]
    assert np.allclose(middles, shades, atol=6)


def test_a_row_is_written() -> None:
    short, long = (picture_of("row", f'{{"age": 4{text}}}'.encode()) for text in ("", ', "a": null, "b": "x"'))
    assert 0 < (short != WHITE).sum() < (long != WHITE).sum()


def test_attention_is_a_strip_below_lightest_where_it_is_most() -> None:
    sound = saved_sound(np.ones(100) * 0.1)
    plain, with_strip = picture_of("audio", sound), picture_of("audio", sound, [0.1, 0.7, 0.2])
    np.testing.assert_array_equal(with_strip[:HEIGHT], plain)
    light = with_strip[HEIGHT:].sum((0, 2)).reshape(-1)
    thirds = [light[WIDTH * (2 * n + 1) // 6] for n in range(3)]
    assert thirds[1] > thirds[2] > thirds[0]
    assert (picture_of("audio", sound, [0.5, 0.5])[HEIGHT:] == with_strip[HEIGHT:, :1]).all()
    assert len(picture_of("audio", sound, [])) == HEIGHT


def test_inputs_are_one_below_the_other_by_their_names() -> None:
    data = {"b": saved_sound(np.ones(9)), "a": b'{"age": 4}', "c": b"?"}
    picture = draw_inputs(data, {"a": "row", "b": "audio", "c": "cloud"}, {})
    assert picture.shape == (3 * HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(picture[HEIGHT : 2 * HEIGHT], picture_of("audio", data["b"]))
