"""The data sets of test_media.py, laid out as the importers read them: real ones of shared/data, and drawn films.

``for_choice`` holds back a part of the training samples as the split val, by which settings are chosen; for the last
training, whose model meets the test split, these are trained on as well.
"""

from __future__ import annotations

import csv
import io
import math
import random
import re
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from pipelines.data.importers._scene import Scene, SceneObject, draw_scene
from pipelines.data.importers._scene_image import render_scene
from tests.vlmodel.media_files import saved_video

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ALONE = {"-image": (True, False), "-sound": (False, True)}
"""Of a test pair that lacks its sound, or its image: the end of its key, and which of both it has."""
FRAMES, SIDE, PATH = 13, 32, 0.3
"""Frames of a film, an odd number, so that one of them is the middle; its side in pixels; how far the object moves, as
a share of the side."""


def members(tar: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the files of a tar."""
    with tarfile.open(tar) as opened:
        for member in opened:
            if member.isfile() and (file := opened.extractfile(member)) is not None:
                yield member.name, file.read()


def write(folder: Path, split: str, name: str, data: bytes) -> None:
    file = folder / split / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def split_of_recording(name: str, for_choice: bool) -> str:
    """The official rule: the recordings 0 to 4 of each digit and speaker are the test split. 5 to 9 are held back."""
    number = int(name.removesuffix(".wav").rpartition("_")[2])
    return "test" if number < 5 else "val" if number < 10 and for_choice else "train"


def spoken_digits(data: Path, folder: Path, for_choice: bool, seed: int) -> None:
    for path, sound in members(data / "fsdd" / "fsdd_recordings.tar"):
        name = Path(path).name
        write(folder, split_of_recording(name, for_choice), name, sound)


def unknown_speaker(data: Path, folder: Path, for_choice: bool, seed: int) -> None:
    """One speaker is the test split, another one for each seed, and the next one is held back."""
    test, held_back = (SPEAKERS[(seed + n) % len(SPEAKERS)] for n in range(2))
    for path, sound in members(data / "fsdd" / "fsdd_recordings.tar"):
        name = Path(path).name
        speaker = name.split("_")[1]
        split = "test" if speaker == test else "val" if speaker == held_back and for_choice else "train"
        write(folder, split, name, sound)


def motions(data: Path, folder: Path, for_choice: bool, seed: int) -> None:
    """The archive's splits; the index holds back three tenths of the training series."""
    for split in ("TRAIN", "TEST"):
        shutil.copy(data / "uea-timeseries" / "BasicMotions" / f"BasicMotions_{split}.ts", folder)


def gestures(data: Path, folder: Path, for_choice: bool, seed: int) -> None:
    """By time: the last four recordings of each digit are the test split, the three before them are held back."""
    of_digit: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for path, table in sorted(members(data / "imu-digits" / "imu_digits.tar.gz")):
        of_digit[re.findall(r"_data_(\d)_", path)[0]].append((Path(path).name, table))
    for recordings in of_digit.values():
        for place, (name, table) in enumerate(recordings):
            after = len(recordings) - place
            write(folder, "test" if after <= 4 else "val" if after <= 7 and for_choice else "train", name, table)


def handwritten_digits(data: Path, folder: Path, for_choice: bool, seed: int) -> None:
    """The tar's splits; a tenth of its training images is held back."""
    for number, (path, image) in enumerate(members(data / "mnist-pngs" / "mnist_pngs.tar")):
        split, name = path.split("/", 1)
        write(folder, "val" if split == "train" and number % 10 == 0 and for_choice else split, name, image)


def pairs(data: Path, folder: Path, for_choice: bool, seed: int) -> None:
    """A degraded image and a degraded sound of each digit, 2,000 pairs to train on; each of the 1,000 test pairs is
    there three times: whole, without its sound and without its image.
    """
    rng = np.random.default_rng(0)
    sounds: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    images: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    for path, sound in members(data / "fsdd" / "fsdd_recordings.tar"):
        name = Path(path).name
        sounds[split_of_recording(name, True), name[0]].append(sound)
    for path, image in members(data / "mnist-pngs" / "mnist_pngs.tar"):
        split, digit, _ = path.split("/")
        kept = images[split, digit]
        kept.append(image)
    for digit in "0123456789":
        of_training = images["train", digit]
        images["val", digit], images["train", digit] = of_training[:60], of_training[60:260]
    lines = ["key,image,audio,class,split"]
    for (split, digit), of_digit in images.items():
        for number, image in enumerate(of_digit):
            key = f"{split}-{digit}-{number}"
            sound = sounds[split, digit][number % len(sounds[split, digit])]
            write(folder, "files", f"{key}.png", degraded_image(image, rng))
            write(folder, "files", f"{key}.wav", degraded_sound(sound, rng))
            into = "train" if split == "val" and not for_choice else split
            for ending, has in {"": (True, True), **ALONE}.items():
                if split == "test" or all(has):
                    named = [f"files/{key}.{e}" if there else "" for e, there in zip(("png", "wav"), has, strict=True)]
                    lines.append(f"{key}{ending},{','.join(named)},{digit},{into}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")


def degraded_image(png: bytes, rng: np.random.Generator) -> bytes:
    """Pale, under noise, with half of it covered."""
    pixels_HW = np.asarray(Image.open(io.BytesIO(png)).convert("L"), np.float32)
    noisy_HW = 90 + 0.3 * pixels_HW + rng.normal(0, 60, pixels_HW.shape)
    row, column = rng.integers(0, 15, 2)
    noisy_HW[row : row + 14, column : column + 14] = 90
    file = io.BytesIO()
    Image.fromarray(noisy_HW.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def degraded_sound(wav: bytes, rng: np.random.Generator) -> bytes:
    """Under noise that is twice as loud, from somewhere within on."""
    x_T, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    x_T = x_T[rng.integers(0, len(x_T) // 3) :]
    noisy_T = x_T + rng.normal(0, 2.0 * float(x_T.std()), len(x_T))
    file = io.BytesIO()
    soundfile.write(file, (noisy_T / np.abs(noisy_T).max()).astype(np.float32), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def films(data: Path, folder: Path, for_choice: bool, seed: int) -> None:
    """Drawn scenes as MP4, in which one object moves to the left, to the right, up or down; others stand still."""
    counts = {"train": 1000, "val": 200, "test": 400}
    with (folder / "films.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "video", "question", "answer", "split"])
        for split, count in counts.items():
            for number in range(count):
                way, film = draw_film(random.Random(f"{split}/{number}"))
                write(folder, split, f"{number}.mp4", film)
                into = "train" if split == "val" and not for_choice else split
                path = f"{split}/{number}.mp4"
                table.writerow([f"{split}-{number}", path, "which way does it go?", way, into])


def draw_film(rng: random.Random) -> tuple[str, bytes]:
    """A film, and which way its object goes. Where the middle of the path lies says nothing of the way, nor do the
    objects that stand still: they are outside the circle that holds all four paths.
    """
    way = rng.choice(tuple(WAYS))
    scene = draw_scene(rng)
    reach = 0.13 + 0.03 + PATH / 2
    middle = [rng.uniform(reach, 1 - reach) for _ in range(2)]
    moving = replace(scene.objects[0], size="small", x=middle[0], y=middle[1])
    still = [one for one in scene.objects[1:] if math.dist((one.x, one.y), middle) > reach + one.radius]
    frames = []
    for number in range(FRAMES):
        along = PATH * (number / (FRAMES - 1) - 0.5)
        frames.append(frame_of(scene, [_moved(moving, way, along), *still]))
    return way, saved_video(np.stack(frames), rate=10, key_every=FRAMES)


def _moved(one: SceneObject, way: str, along: float) -> SceneObject:
    x, y = WAYS[way]
    return replace(one, x=one.x + x * along, y=one.y + y * along)


def frame_of(scene: Scene, objects: Sequence[SceneObject]) -> NDArray[np.uint8]:
    png = render_scene(replace(scene, objects=tuple(objects)), SIDE)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
