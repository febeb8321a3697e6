"""What a linear model makes of sounds, images, series and films: logistic regression on a vector for each sample."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from vlmodel.media.audio import decode_audio, to_mono
from vlmodel.media.base import CheckLimits
from vlmodel.media.series import decode_series
from vlmodel.media.video import decode_video

Vector = Callable[[Mapping[str, bytes]], NDArray[np.float32]]
LIMITS = CheckLimits()


def linear_accuracy(samples: Index, vector: Vector, split: str, needed: Sequence[str]) -> float:
    """Train on the samples of the training split that have all ``needed`` inputs, and return how many of ``split`` are
    then classified right, as a share.
    """
    vectors: dict[str, list[NDArray[np.float32]]] = {"train": [], split: []}
    answers: dict[str, list[str]] = {"train": [], split: []}
    for shard in samples.shards:
        splits = samples.rows(shard.name)["split"].to_pylist()
        for at, sample in enumerate(ShardReader(samples).read(shard.name, list(range(len(splits))))):
            if splits[at] in vectors and all(sample.inputs.get(name) for name in needed):
                vectors[splits[at]].append(vector(sample.inputs))
                asked = [question.answer or "" for question in sample.texts.questions]
                answers[splits[at]].append(sample.texts.label or asked[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    model.fit(np.stack(vectors["train"]), answers["train"])
    return float(model.score(np.stack(vectors[split]), answers[split]))


def spectrum_vector(inputs: Mapping[str, bytes]) -> NDArray[np.float32]:
    """Return the logarithm of the spectrum of a sound in 10 equally long parts, 32 bands each."""
    x_T = to_mono(decode_audio(inputs["audio"], LIMITS), 8000)
    x_TW = np.lib.stride_tricks.sliding_window_view(np.pad(x_T, (0, 256)), 256)[::80] * np.hanning(256)
    power_TF = np.abs(np.fft.rfft(x_TW))[:, 1:] ** 2
    bands_TM = np.log(power_TF.reshape(len(power_TF), 32, 4).mean(2) + 1e-6)
    parts = np.array_split(bands_TM, 10)
    return np.concatenate([part.mean(0) if len(part) else np.zeros(32) for part in parts]).astype(np.float32)


def pixel_vector(inputs: Mapping[str, bytes]) -> NDArray[np.float32]:
    """Return the grey values of an image."""
    return (np.asarray(Image.open(io.BytesIO(inputs["image"])).convert("L")).ravel() / 255).astype(np.float32)


def middle_frame_vector(inputs: Mapping[str, bytes]) -> NDArray[np.float32]:
    """Return every second pixel of a film's middle frame."""
    ((_, rgb_HWC),) = decode_video(inputs["video"], LIMITS, lambda line: line.evenly_spaced_frames(1))
    return (rgb_HWC[::2, ::2].ravel() / 255).astype(np.float32)


def series_vectors(name: str, columns: Sequence[str] = ()) -> dict[str, Vector]:
    """Two views of a series: its numbers at 64 equally distant times; or of each channel and of its differences mean,
    deviation, least and greatest number, and the means of 16 parts, as one who knows such data would choose them.
    """

    def numbers(inputs: Mapping[str, bytes]) -> NDArray[np.float32]:
        x_TC = decode_series(inputs[name], LIMITS.max_values, list(columns))
        return x_TC[np.linspace(0, len(x_TC) - 1, 64).round().astype(int)].ravel().astype(np.float32)

    def statistics(inputs: Mapping[str, bytes]) -> NDArray[np.float32]:
        x_TC = decode_series(inputs[name], LIMITS.max_values, list(columns))
        found = [part.mean(0) for part in np.array_split(x_TC, 16)]
        for values_TC in (x_TC, np.diff(x_TC, axis=0)):
            found += [values_TC.mean(0), values_TC.std(0), values_TC.min(0), values_TC.max(0)]
        return np.concatenate(found).astype(np.float32)

    return {"linear, numbers": numbers, "linear, statistics": statistics}
