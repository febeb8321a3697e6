"""Draws inputs that are no images, for pages of examples: a waveform, the lines of a series, frames of a video side by
side, the values of a row. A strip under what has a time shows the attention over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from vlmodel.media.audio import decode_audio
from vlmodel.media.base import CheckLimits
from vlmodel.media.row import decode_json_row
from vlmodel.media.series import decode_series
from vlmodel.media.video import decode_video

WIDTH, HEIGHT = 256, 128
"""Of a picture, in pixels."""
_STRIP, _FRAMES, _LANES, _LINES = 12, 4, 6, 8
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#666666")

Picture = NDArray[np.uint8]


def draw_inputs(
    inputs: Mapping[str, bytes], media: Mapping[str, str], attention: Mapping[str, NDArray[np.float32]]
) -> Picture:
    """Draw inputs one below the other, in the order of their names: (H, ``WIDTH``, 3).

    Args:
        inputs: one valid file or more.
        media: the medium of each by its name.
        attention: weights of equal parts of the time of some of them.
    """
    drawn = []
    for name, data in sorted(inputs.items()):
        drawn.append(_DRAWN_BY.get(media[name], _draw_nothing)(data))
        if name in attention and len(attention[name]):
            drawn.append(_draw_attention(attention[name]))
    return np.concatenate(drawn)


def _draw_attention(weights_T: NDArray[np.float32]) -> Picture:
    """Draw weights as a strip, from dark (least) to light (most)."""
    from matplotlib import colormaps

    low, high = float(weights_T.min()), float(weights_T.max())
    shares_T = (weights_T - low) / (high - low) if high > low else np.zeros_like(weights_T)
    colours_TC = (colormaps["plasma"](shares_T)[:, :3] * 255).round().astype(np.uint8)
    of_column = np.arange(WIDTH) * len(weights_T) // WIDTH
    return np.broadcast_to(colours_TC[of_column], (_STRIP, WIDTH, 3))


def _draw_waveform(data: bytes) -> Picture:
    """Draw the range of a sound's samples, averaged over its channels, within each column of pixels."""
    x_T = decode_audio(data, CheckLimits()).x_TC.mean(1)
    loudest = float(np.abs(x_T).max()) or 1.0
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    edges = np.arange(WIDTH + 1) * len(x_T) // WIDTH
    for column in range(WIDTH):
        part = x_T[edges[column] : max(edges[column] + 1, edges[column + 1])] / loudest
        top, bottom = ((1 - value) / 2 * (HEIGHT - 1) for value in (float(part.max()), float(part.min())))
        pen.line((column, top, column, bottom), fill=_COLOURS[0])
    return np.asarray(canvas)


def _draw_series(data: bytes) -> Picture:
    """Draw a line for each of the first channels, in a lane of its own, between its least and its greatest number."""
    x_TC = decode_series(data, CheckLimits().max_values)[:, :_LANES]
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    lane = HEIGHT / x_TC.shape[1]
    times_T = np.arange(len(x_TC)) / max(1, len(x_TC) - 1) * (WIDTH - 1)
    for channel, (values_T, colour) in enumerate(zip(x_TC.T, _COLOURS, strict=False)):
        span = float(np.ptp(values_T))
        heights_T = (values_T - values_T.min()) / span if span else np.full(len(values_T), 0.5)
        points = zip(times_T.tolist(), ((channel + 0.95 - 0.9 * heights_T) * lane).tolist(), strict=True)
        pen.line(list(points), fill=colour)
    return np.asarray(canvas)


def _draw_frames(data: bytes) -> Picture:
    """Draw frames at equal distances side by side, the first on the left."""
    frames = decode_video(data, CheckLimits(), lambda timeline: timeline.evenly_spaced_frames(_FRAMES))
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    side = WIDTH // _FRAMES
    for place, (_, rgb_HWC) in enumerate(frames):
        frame = ImageOps.contain(Image.fromarray(rgb_HWC), (side - 2, HEIGHT))
        canvas.paste(frame, (place * side, (HEIGHT - frame.height) // 2))
    return np.asarray(canvas)


def _draw_nothing(data: bytes) -> Picture:
    """Say how long a file of a medium is that has no picture here."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    ImageDraw.Draw(canvas).text((6, 6), f"{len(data):,} bytes", fill="black")
    return np.asarray(canvas)


def _draw_row(data: bytes) -> Picture:
    """Write the first columns with their values."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    for line, (column, value) in enumerate(list(decode_json_row(data, CheckLimits().max_values).items())[:_LINES]):
        said = f"{column}: {'missing' if value is None else value}"
        pen.text((6, 6 + line * (HEIGHT - 8) // _LINES), said[:40].encode("ascii", "replace").decode(), fill="black")
    return np.asarray(canvas)


_DRAWN_BY: Mapping[str, Callable[[bytes], Picture]] = {
    "audio": _draw_waveform, "series": _draw_series, "video": _draw_frames, "row": _draw_row,
}  # fmt: skip
