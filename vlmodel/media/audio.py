"""Decodes sounds from WAV, FLAC, MP3 and Ogg files by libsndfile (soundfile)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from vlmodel.media.base import CheckLimits, Defect, DisplayCopy, Fact, Medium, MediumError, check_file_size

if TYPE_CHECKING:
    import soundfile
    from numpy.typing import NDArray

_FORMATS = {"WAV": "wav", "WAVEX": "wav", "RF64": "wav", "FLAC": "flac", "MPEG": "mp3", "MP3": "mp3", "OGG": "ogg"}
_BLOCK = 1 << 16
_SHOWN_SECONDS, _FLAC_CHANNELS = 20.0, 8
# What libsndfile notes of a WAV whose header announces more bytes than there are.
_ANNOUNCED = re.compile(r"data : (\d+) \(should be (\d+)\)")
# What programs write that do not know yet how long a sound will be.
_UNKNOWN_SIZES = (0x7FFFFFFF, 0xFFFFFFFF)
_UNKNOWN_LENGTH = 1 << 62
# The length of an MP3 is rounded to blocks of 1152 samples, and encoders count their delay otherwise.
_MP3_SLACK = 3 * 1152


class Sound(NamedTuple):
    """A decoded sound: T samples of C channels, between -1 and 1 if the file stores integers, and the sampling rate in
    samples a second.
    """

    x_TC: NDArray[np.float32]
    rate: int


class AudioMedium(Medium):
    """The medium of sound files. ``CheckLimits.verify="decode"`` decodes a whole file, block by block; "header" reads
    only its header, and checks that a WAV file is not cut off.
    """

    name: ClassVar[str] = "audio"
    extensions: ClassVar[tuple[str, ...]] = ("wav", "flac", "mp3", "ogg")
    columns: ClassVar[Mapping[str, str]] = {
        "format": "string", "length": "int64", "channels": "int32", "rate": "int32", "seconds": "float64",
    }  # fmt: skip
    """``length`` is in samples, ``rate`` in samples a second."""

    def check_file(self, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
        check_file_size(data, limits, self.name)
        with _open_audio_file(data, limits) as file:
            length = file.frames
            if limits.verify == "decode":
                length = sum(len(block_TC) for block_TC in _read_audio_blocks(file, file.frames))
                _check_not_truncated(file, length)
            return {
                "format": _FORMATS[file.format],
                "length": length,
                "channels": file.channels,
                "rate": file.samplerate,
                "seconds": length / file.samplerate,
            }

    def display_copy(self, data: bytes) -> DisplayCopy:
        """Encode the first 20 seconds as FLAC with 16 bits."""
        import soundfile

        sound = decode_audio(data, CheckLimits(), _SHOWN_SECONDS)
        file = io.BytesIO()
        x_TC = sound.x_TC[:, :_FLAC_CHANNELS].clip(-1, 1)
        soundfile.write(file, x_TC, sound.rate, format="FLAC", subtype="PCM_16")
        return DisplayCopy(file.getvalue(), "audio/flac")


def decode_audio(data: bytes, limits: CheckLimits, seconds: float | None = None) -> Sound:
    """Decode a sound file, or only its first ``seconds``.

    No more memory is taken than ``limits.max_values`` numbers need, whatever the header says.

    Raises:
        MediumError: undecodable; truncated: fewer samples than the header announces; empty: no sample; too_large:
            beyond ``max_seconds``, ``max_channels`` or ``max_values``; not_finite: a sample that is no number.
    """
    check_file_size(data, limits, "audio")
    with _open_audio_file(data, limits) as file:
        wanted = file.frames if seconds is None else min(file.frames, max(1, int(seconds * file.samplerate)))
        blocks = list(_read_audio_blocks(file, wanted))
        length = sum(map(len, blocks))
        if wanted == file.frames:
            _check_not_truncated(file, length)
        elif length < wanted:
            raise _truncated_audio_error(wanted, length)
        return Sound(blocks[0] if len(blocks) == 1 else np.concatenate(blocks), file.samplerate)


def to_mono(sound: Sound, rate: int) -> NDArray[np.float32]:
    """Average the channels and resample the result to ``rate`` samples a second (libswresample), (T,)."""
    x_T = sound.x_TC.mean(axis=1, dtype=np.float32) if sound.x_TC.shape[1] > 1 else sound.x_TC[:, 0]
    if sound.rate == rate:
        return np.ascontiguousarray(x_T)
    import av

    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    frame = av.AudioFrame.from_ndarray(x_T[None], format="fltp", layout="mono")
    frame.sample_rate = sound.rate
    pieces = [piece.to_ndarray()[0] for piece in (*resampler.resample(frame), *resampler.resample(None))]
    length = -(-len(x_T) * rate // sound.rate)
    resampled_T = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return np.pad(resampled_T, (0, max(0, length - len(resampled_T))))[:length].astype(np.float32, copy=False)


@contextmanager
def _open_audio_file(data: bytes, limits: CheckLimits) -> Iterator[soundfile.SoundFile]:
    """Open a sound file and check that its header is within the limits.

    Raises:
        MediumError: as ``decode_audio``, also for errors while it is read.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_audio_header(file, limits)
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        detail = str(error).partition(">: ")[2] or str(error)
        reason: Defect = "truncated" if "lost sync" in detail else "undecodable"
        raise MediumError(reason, f"no sound that can be decoded: {detail}") from None


def _check_audio_header(file: soundfile.SoundFile, limits: CheckLimits) -> None:
    if file.format not in _FORMATS:
        raise MediumError("undecodable", f"a sound file of format {file.format}; WAV, FLAC, MP3 and Ogg are read")
    if (named := _ANNOUNCED.search(file.extra_info)) is not None:
        announced, there = map(int, named.groups())
        if announced not in _UNKNOWN_SIZES and announced > there:
            raise MediumError("truncated", f"{there} bytes of sound, where the header announces {announced}")
    if file.frames < 1:
        raise MediumError("empty", "a sound of 0 samples")
    if file.frames >= _UNKNOWN_LENGTH:
        raise MediumError("undecodable", "the file does not say how long the sound is; write it again, with its length")
    if file.channels > limits.max_channels:
        raise MediumError("too_large", f"{file.channels} channels; max_channels allows {limits.max_channels}")
    if (seconds := file.frames / file.samplerate) > limits.max_seconds:
        raise MediumError("too_large", f"a sound of {seconds:.1f} seconds; max_seconds allows {limits.max_seconds:g}")
    if (values := file.frames * file.channels) > limits.max_values:
        size = f"{file.frames} samples x {file.channels} channels = {values} numbers"
        raise MediumError("too_large", f"{size}; max_values allows {limits.max_values}")


def _read_audio_blocks(file: soundfile.SoundFile, wanted: int) -> Iterator[NDArray[np.float32]]:
    """Yield the next ``wanted`` samples in blocks (T, C), or fewer if the file ends.

    Raises:
        MediumError: not_finite.
    """
    while wanted > 0:
        block_TC = file.read(min(wanted, max(1, _BLOCK // file.channels)), dtype="float32", always_2d=True)
        if not len(block_TC):
            return
        if not np.isfinite(block_TC).all():
            raise MediumError("not_finite", "a sample of the sound is not finite in float32")
        wanted -= len(block_TC)
        yield block_TC


def _check_not_truncated(file: soundfile.SoundFile, length: int) -> None:
    slack = _MP3_SLACK if _FORMATS[file.format] == "mp3" else 0
    if length < file.frames - slack:
        raise _truncated_audio_error(file.frames, length)
    if not length:
        raise MediumError("empty", "a sound of 0 samples")


def _truncated_audio_error(announced: int, length: int) -> MediumError:
    return MediumError("truncated", f"{length} samples, where the header announces {announced}")


MEDIUM = AudioMedium()
