"""Sounds and videos, written for tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import soundfile
from numpy.typing import NDArray


def saved_sound(x: NDArray[np.floating], rate: int = 8000, format: str = "WAV", subtype: str | None = None) -> bytes:
    """A sound (T,) or (T, C) as the bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=format, subtype=subtype)
    return file.getvalue()


def saved_video(
    frames_THWC: NDArray[np.uint8],
    rate: int = 10,
    container: str = "mp4",
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    key_every: int = 4,
) -> bytes:
    """Frames as the bytes of a file, with a key frame every so many.

    Args:
        times: of the frames, in units of 1/rate seconds; one after the other if not given.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
        stream.codec_context.gop_size = key_every
        stream.options = {"crf": "10"}
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        for number, pixels_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()
