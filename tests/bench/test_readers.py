"""Each reader of a medium beside its library in a bare loop: what checks, limits and exactness cost.

Reader and library take turns, so that whatever else runs on the machine slows both; the figure is the median of the
turns. The library does what a program that trusts its files would do.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tests.bench.conftest import Figure
from tests.vlmodel.media_files import saved_sound
from vlmodel.media.audio import decode_audio
from vlmodel.media.base import CheckLimits
from vlmodel.media.series import decode_series
from vlmodel.media.video import decode_video

pytestmark = pytest.mark.bench

CLIPS = Path(__file__).resolve().parents[3] / "shared" / "data" / "video-clips"
LIMITS = CheckLimits()
TURNS, LEAST_S = 15, 0.02


def rates(reader: Callable[[], Any], library: Callable[[], Any]) -> tuple[float, float]:
    """Calls a second of each, medians of alternating turns."""
    repeats = 1
    while _seconds(library, repeats) < LEAST_S:
        repeats *= 2
    turns = [(_seconds(reader, repeats), _seconds(library, repeats)) for _ in range(TURNS)]
    return tuple(repeats / statistics.median(side) for side in zip(*turns, strict=True))  # type: ignore[return-value]


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        call()
    return time.process_time() - begun


@pytest.mark.parametrize("seconds", [0.5, 10])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3"])
def test_sounds(kind: str, seconds: float, figure: Figure) -> None:
    x_T = np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds))
    data = saved_sound(x_T, 16_000, format=kind)
    ours, theirs = rates(
        lambda: decode_audio(data, LIMITS), lambda: soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    )
    figure(f"{kind} of {seconds:g} s", ours, "sounds/s", peer="soundfile.read", peer_value=theirs)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="shared/data/video-clips is not here")
@pytest.mark.parametrize("name", ["nasa_13013.mp4", "h265_video.mp4", "av1_video.mkv"])
def test_all_frames_of_a_clip(name: str, figure: Figure) -> None:
    data = (CLIPS / name).read_bytes()

    def bare() -> int:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            found = 0
            for frame in container.decode(stream):
                frame.to_ndarray(format="rgb24")
                found += 1
            return found

    ours, theirs = rates(
        lambda: sum(1 for _ in decode_video(data, LIMITS, lambda timeline: np.arange(len(timeline)))), bare
    )
    figure(f"all frames of {name}", ours, "clips/s", peer="PyAV", peer_value=theirs)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="shared/data/video-clips is not here")
def test_eight_frames_of_a_clip(figure: Figure) -> None:
    """The library seeks the key frame before each time, and goes on to the frame that is shown then."""
    data = (CLIPS / "nasa_13013.mp4").read_bytes()

    def bare() -> int:
        found = 0
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            duration = float(stream.duration * stream.time_base)
            for part in range(8):
                at = int((part + 0.5) * duration / 8 / stream.time_base)
                container.seek(at, stream=stream, backward=True)
                frame = next(f for f in container.decode(stream) if f.pts + (f.duration or 0) > at)
                found += len(frame.to_ndarray(format="rgb24"))
        return found

    ours, theirs = rates(
        lambda: sum(1 for _ in decode_video(data, LIMITS, lambda line: line.evenly_spaced_frames(8))), bare
    )
    figure("8 frames of nasa_13013.mp4", ours, "clips/s", peer="PyAV with seek", peer_value=theirs)


@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_series(kind: str, figure: Figure) -> None:
    x_TC = np.random.default_rng(0).normal(size=(1000, 6)).astype(np.float32)
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, x_TC)
    else:
        np.savetxt(file, x_TC, delimiter=",", fmt="%.6f")
    data = file.getvalue()
    library: Callable[[], Any] = lambda: np.load(io.BytesIO(data))  # noqa: E731
    if kind == "csv":
        library = lambda: np.loadtxt(io.BytesIO(data), np.float32, delimiter=",", ndmin=2)  # noqa: E731
    ours, theirs = rates(lambda: decode_series(data, LIMITS.max_values), library)
    figure(f"{kind} of 1000 x 6", ours, "series/s", peer=f"numpy.{'load' if kind == 'npy' else 'loadtxt'}",
           peer_value=theirs)  # fmt: skip
