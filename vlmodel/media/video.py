"""Decodes videos from MP4, MOV, MKV and WebM files by FFmpeg (PyAV): exact frames with their times."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from vlmodel.media.base import CheckLimits, DisplayCopy, Fact, Medium, MediumError, check_file_size

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from numpy.typing import NDArray

_SHOWN_BYTES = 4 << 20
# Of a container that says how long it is, the last frame may lie so much earlier, in seconds and as a share.
_SLACK_SECONDS, _SLACK = 1.0, 0.05


class VideoTimeline(NamedTuple):
    """The times of all frames of a video, in the order in which they are shown.

    Attributes:
        pts_T: their time stamps, in units of ``time_base``.
        is_key_T: whether a decoder can begin at each.
        seconds_T: when each is shown, from the first one on.
        time_base: seconds of a unit of ``pts_T``.
        duration: of the whole video, in seconds.
    """

    pts_T: NDArray[np.int64]
    is_key_T: NDArray[np.bool_]
    seconds_T: NDArray[np.float64]
    time_base: float
    duration: float

    def __len__(self) -> int:
        return len(self.pts_T)

    def frames_shown_at(self, seconds: Sequence[float]) -> NDArray[np.int64]:
        """Find the frame that is shown at each of these times: the last one that began."""
        at_T = np.searchsorted(self.seconds_T, np.asarray(seconds) + 1e-9, side="right") - 1
        return np.clip(at_T, 0, len(self) - 1)

    def evenly_spaced_frames(self, count: int, shift: float | Sequence[float] = 0.5) -> NDArray[np.int64]:
        """Choose at most ``count`` different frames, one from each of ``count`` equally long parts of the video;
        returns their numbers.

        Args:
            shift: place of the frame within its part, from 0 to 1; or a number for each part.
        """
        shifts = np.broadcast_to(shift, count)
        return np.unique(self.frames_shown_at(((np.arange(count) + shifts) * self.duration / count).tolist()))


class VideoMedium(Medium):
    """The medium of video files. ``CheckLimits.verify="header"`` reads the times of all frames and decodes only the
    first frame; "decode" decodes all.

    A frame's width and height are those of the upright picture: files of telephones say how it is to be turned.
    """

    name: ClassVar[str] = "video"
    extensions: ClassVar[tuple[str, ...]] = ("mp4", "mkv", "webm", "mov", "m4v")
    columns: ClassVar[Mapping[str, str]] = {
        "format": "string", "codec": "string", "length": "int32", "width": "int32", "height": "int32",
        "seconds": "float64", "rotation": "int32", "variable_rate": "bool",
    }  # fmt: skip
    """``length`` is in frames; ``rotation`` in degrees counterclockwise."""

    def check_file(self, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
        check_file_size(data, limits, self.name)
        with _open_video_file(data, limits) as (container, stream):
            timeline = _read_frame_times(container, stream, limits)
            wanted = np.arange(len(timeline) if limits.verify == "decode" else 1)
            first: av.VideoFrame | None = None
            for frame in _decode_frames(container, stream, timeline, wanted, strict=limits.verify == "decode"):
                first = first or frame
            assert first is not None
            height, width = _upright_size(first.height, first.width, first.rotation)
            return {
                "format": container.format.name.split(",")[0],
                "codec": stream.codec_context.name,
                "length": len(timeline),
                "width": width,
                "height": height,
                "seconds": timeline.duration,
                "rotation": int(first.rotation),
                "variable_rate": _has_variable_frame_rate(timeline),
            }

    def display_copy(self, data: bytes) -> DisplayCopy | None:
        """Copy the pictures without re-encoding into an MP4 file without sound; None for a rotated video, whose
        rotation would be lost, and for more than 4 MB.
        """
        import av

        if len(data) > _SHOWN_BYTES or self.check_file(data, CheckLimits(verify="header"))["rotation"]:
            return None
        file = io.BytesIO()
        with _open_video_file(data, CheckLimits()) as (container, stream), av.open(file, "w", format="mp4") as copy:
            copied = copy.add_stream_from_template(stream)
            copied.metadata.clear()
            for packet in container.demux(stream):
                if packet.dts is not None:
                    packet.stream = copied
                    copy.mux(packet)
        return DisplayCopy(file.getvalue(), "video/mp4")


def read_video_timeline(data: bytes, limits: CheckLimits) -> VideoTimeline:
    """Read the times of all frames without decoding any. Raises the errors of ``decode_video``."""
    with _open_video_file(data, limits) as (container, stream):
        return _read_frame_times(container, stream, limits)


def decode_video(
    data: bytes, limits: CheckLimits, choose: Callable[[VideoTimeline], NDArray[np.int64]]
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Decode chosen frames of a video: for each its time in seconds and its upright RGB pixels (H, W, 3), in order.

    For each frame decoding starts at the last key frame before it, and stops at exactly that frame. One frame is in
    memory at a time.

    Args:
        choose: gets the times of all frames, and returns the numbers of the frames to decode.

    Raises:
        MediumError: undecodable; no_track: a file without a video; truncated: fewer frames than the file announces;
            empty: no frame; too_large: beyond ``max_seconds``, ``max_frames`` or ``max_pixels``.
    """
    check_file_size(data, limits, "video")
    with _open_video_file(data, limits) as (container, stream):
        timeline = _read_frame_times(container, stream, limits)
        wanted = np.unique(choose(timeline))
        seconds = iter(timeline.seconds_T[wanted].tolist())
        for frame in _decode_frames(container, stream, timeline, wanted, strict=False):
            yield next(seconds), _frame_to_rgb(frame)


@contextmanager
def _open_video_file(data: bytes, limits: CheckLimits) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open a video file and check that its header is within the limits; yields the container and its video stream.

    Raises:
        MediumError: as ``decode_video``, also for errors while it is read.
    """
    import av

    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise MediumError("no_track", f"a file without a video; it holds {kinds}")
            _check_video_header(container, stream, limits)
            yield container, stream
    except (av.FFmpegError, ValueError, IndexError) as error:
        if isinstance(error, MediumError):
            raise
        if _is_truncated_mp4(data):
            raise MediumError("truncated", f"{len(data)} bytes of an MP4 file, whose last part is cut off") from None
        raise MediumError("undecodable", f"no video that can be decoded: {error.__class__.__name__}") from None


def _is_truncated_mp4(data: bytes) -> bool:
    """Whether an MP4 file ends within one of its top-level boxes."""
    at = 0
    while data[4:8] == b"ftyp" and at + 16 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:  # to the end of the file
            return False
        if size < 8:
            return False
        at += size
    return data[4:8] == b"ftyp" and at != len(data)


def _check_video_header(container: InputContainer, stream: av.VideoStream, limits: CheckLimits) -> None:
    height, width = stream.height, stream.width
    if height < 1 or width < 1:
        raise MediumError("undecodable", f"the header says {width} x {height} pixels")
    if height * width > limits.max_pixels:
        pixels = f"frames of {width} x {height} = {width * height} pixels"
        raise MediumError("too_large", f"{pixels}; max_pixels allows {limits.max_pixels}")
    if (seconds := _duration_in_header(container, stream)) > limits.max_seconds:
        raise MediumError("too_large", f"a video of {seconds:.1f} seconds; max_seconds allows {limits.max_seconds:g}")
    if stream.frames > limits.max_frames:
        raise MediumError("too_large", f"a video of {stream.frames} frames; max_frames allows {limits.max_frames}")


def _duration_in_header(container: InputContainer, stream: av.VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _read_frame_times(container: InputContainer, stream: av.VideoStream, limits: CheckLimits) -> VideoTimeline:
    time_base = float(stream.time_base or 1)
    frames: dict[int, tuple[bool, int]] = {}
    for packet in container.demux(stream):
        if packet.pts is None or packet.is_discard:  # the last, empty one, and what an edit list hides
            continue
        frames.setdefault(packet.pts, (packet.is_keyframe, packet.duration or 0))
        if len(frames) > limits.max_frames:
            raise MediumError("too_large", f"a video of more than max_frames={limits.max_frames} frames")
    if not frames and stream.frames:
        raise MediumError("undecodable", f"none of the {stream.frames} frames that the index names is there")
    if not frames:
        raise MediumError("empty", "a video of 0 frames")
    pts_T = np.array(sorted(frames), np.int64)
    seconds_T = (pts_T - pts_T[0]) * time_base
    last = frames[int(pts_T[-1])][1] * time_base
    if last <= 0:
        last = float(np.median(np.diff(seconds_T))) if len(pts_T) > 1 else 1 / float(stream.average_rate or 25)
    duration = float(seconds_T[-1]) + last
    if duration > limits.max_seconds:
        raise MediumError("too_large", f"a video of {duration:.1f} seconds; max_seconds allows {limits.max_seconds:g}")
    announced = _duration_in_header(container, stream)
    if len(pts_T) < stream.frames or announced - duration > max(_SLACK_SECONDS, _SLACK * announced):
        there = f"{len(pts_T)} frames in {duration:.2f} seconds"
        raise MediumError("truncated", f"{there}; the file announces {stream.frames or '?'} in {announced:.2f} seconds")
    is_key_T = np.array([frames[pts][0] for pts in pts_T.tolist()], np.bool_)
    return VideoTimeline(pts_T, is_key_T, seconds_T, time_base, duration)


def _decode_frames(
    container: InputContainer,
    stream: av.VideoStream,
    timeline: VideoTimeline,
    wanted_W: NDArray[np.int64],
    strict: bool,
) -> Iterator[av.VideoFrame]:
    """Decode the frames with these numbers, in order.

    Args:
        strict: also refuse frames that the decoder has repaired.
    """
    stream.thread_type = "NONE"
    keys = np.flatnonzero(timeline.is_key_T)
    decoder: Iterator[av.VideoFrame] = iter(())
    at = -1  # the last frame that was decoded
    for number in wanted_W.tolist():
        before = keys[keys <= number]
        key = int(before[-1]) if len(before) else 0
        if at < 0 or key > at:
            container.seek(int(timeline.pts_T[key]), stream=stream, backward=True)
            decoder = container.decode(stream)
        pts = int(timeline.pts_T[number])
        frame = next((frame for frame in decoder if frame.pts is not None and frame.pts >= pts), None)
        if frame is None or frame.pts != pts or (strict and frame.is_corrupt):
            raise MediumError("undecodable", f"frame {number} at {timeline.seconds_T[number]:.3f} seconds is not there")
        at = number
        yield frame


def _frame_to_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    rgb_HWC: NDArray[np.uint8] = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb_HWC, turns)) if turns else rgb_HWC


def _upright_size(height: int, width: int, rotation: float) -> tuple[int, int]:
    return (width, height) if round(rotation / 90) % 2 else (height, width)


def _has_variable_frame_rate(timeline: VideoTimeline) -> bool:
    """Whether frames are shown for unequal times, apart from rounding to the time base."""
    steps_T = np.diff(timeline.pts_T)
    return bool(len(steps_T)) and int(steps_T.max() - steps_T.min()) > 1


MEDIUM = VideoMedium()
