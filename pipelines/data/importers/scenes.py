"""Generates a data set of drawn scenes: a few objects on a plain background, with captions and questions whose answers
are known.

The default source: it needs no download. A scene is a pure function of (seed, split, number), so any part of a data set
can be drawn again, anywhere. Questions are chosen so that their text alone tells little of the answer: the answer is
drawn first, uniformly, and then a question that has it. Similar to CLEVR (Johnson et al. 2017, arXiv:1612.06890).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from pydantic import Field

from pipelines.data.importers._scene import Scene, draw_scene
from pipelines.data.importers._scene_image import render_scene
from pipelines.data.importers._scene_texts import caption_scene, make_questions
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.shards import SPLITS
from vlmodel.sample import SampleTexts

_VERSION = 2
"""Increased when the same settings give other scenes, pictures or texts than before."""


class Config(Importer):
    """Settings of how many scenes to draw, and how large."""

    kind: str = "scenes"
    seed: int = 0
    """Another seed gives other scenes."""
    train: int = Field(default=2000, ge=0)
    """Scenes in split train."""
    val: int = Field(default=250, ge=0)
    """Scenes in split val."""
    test: int = Field(default=250, ge=0)
    """Scenes in split test."""
    image_size: int = Field(default=64, ge=32, le=1024)
    """Width and height of a picture, in pixels."""

    def fingerprint(self) -> str:
        return f"scenes-{_VERSION}"

    def read(self) -> SourceContents:
        counts = {split: getattr(self, split) for split in SPLITS}
        drawn = {split for split, count in counts.items() if count}
        return SourceContents(sum(counts.values()), self._draw_samples(), splits=drawn)

    def _draw_samples(self) -> Iterator[SourceSample | RejectedSample]:
        for split in SPLITS:
            for number in range(getattr(self, split)):
                yield self.scene_sample(split, number)

    def scene_sample(self, split: str, number: int) -> SourceSample:
        """Draw scene ``number`` of a split and make a sample of it."""
        # Seeding by a string is stable across machines and processes; a tuple's hash is not.
        rng = random.Random(f"{self.seed}/{split}/{number}")
        scene: Scene = draw_scene(rng)
        key = f"{split}-{number:06d}"
        texts = SampleTexts(caption_scene(scene, rng), make_questions(scene, rng, key))
        inputs = {"image": (render_scene(scene, self.image_size), "png")} if self.imports_input("image") else {}
        return SourceSample(split, key, inputs, texts, {"scene": scene.as_dict()})
