"""Imports a folder or a plain tar of images, and files of other inputs beside them; for texts other than classes use
``table``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.data.importers._files import class_of_path, fingerprint_files, key_of_image, resolve_path, split_of_path
from pipelines.data.importers._images import SourceImages, read_image_sample
from pipelines.data.importers._inputs import InputFilesBesideImages
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import SampleError
from pipelines.data.tars.inputs import TEXT, InputNames, input_requirements
from pipelines.data.tars.sample import GROUP
from pipelines.errors import DataError
from vlmodel.locations import Location
from vlmodel.sample import SampleTexts


class Config(Importer):
    """Settings of an import of images. Each image becomes a sample, whose key is the image's path in the folder,
    without the extension.

    Links are followed, to folders elsewhere too, and each folder and each file is read once. Hidden files, and files
    that are no images by their names, are skipped and counted. Where ``inputs`` names others than the image, as
    ["image", "imu?"], they are the files beside it: ``STEM.imu.npy`` beside ``STEM.jpg``.
    """

    kind: str = "folder"
    inputs: InputNames = ("image",)
    """The image, and other inputs in files beside it, which may be missing where their name ends in ?, as
    ["image", "imu?"]; and text, for the class, where ``classes`` is set, which is then the default."""
    folder: Location
    """Folder of the images (files at any depth, and plain tars that lie directly in it), or one plain tar."""
    split: Literal["train", "val", "test", "folder"] = "train"
    """Split of all of them; "folder" reads it in the first step of their paths, as in ``train/cat/1.jpg``."""
    classes: Literal["", "folder"] = ""
    """"folder" makes the name of the folder in which an image lies its class, as "cat" of ``train/cat/1.jpg``."""
    group: Literal["", "folder"] = ""
    """"folder" makes one group of the images that lie directly in one folder, such as the frames of a film."""
    test_fraction: float = Field(default=0, ge=0, lt=1)
    """Share of the train samples that becomes split test; none by default, as there are no texts to judge by but
    classes."""

    @model_validator(mode="before")
    @classmethod
    def _require_texts_for_classes(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and settings.get("classes") and "inputs" not in settings:
            return {**settings, "inputs": ("image", TEXT)}
        return settings

    @model_validator(mode="after")
    def _require_image_with_class(self) -> Config:
        has_text = TEXT in input_requirements(self.inputs)
        if "image" not in self.inputs or has_text != bool(self.classes):
            wanted = "name image and text" if self.classes else "name image, and not text, or set source.classes=folder"
            raise ValueError(
                f"inputs = {list(self.inputs)}: each sample of a folder has an image, and its only text is its class; "
                f"{wanted} (source.kind=table reads images with other texts)"
            )
        return self

    def fingerprint(self) -> str:
        images, beside = self._open_images_and_inputs()
        return fingerprint_files(images.root, [*images.files(), *beside.files()])

    def read(self) -> SourceContents:
        images, beside = self._open_images_and_inputs()
        names = [name for name in images.names() if not beside.is_input_beside_image(name)]
        read = self._read_samples(images, beside, names)
        return SourceContents(len(names), read, lambda: images.count_skipped_files(beside.files_read), (self.split,))

    def _open_images_and_inputs(self) -> tuple[SourceImages, InputFilesBesideImages]:
        root = resolve_path(self.folder)
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            problem = "is empty" if root.exists() else "does not exist"
            raise DataError(f"the folder {str(root)!r} {problem}; set source.folder to the folder of the pictures")
        return SourceImages(root), InputFilesBesideImages(
            root, frozenset(input_requirements(self.inputs)) - {"image", TEXT}
        )

    def _read_samples(
        self, images: SourceImages, beside: InputFilesBesideImages, names: list[str]
    ) -> Iterator[SourceSample | RejectedSample]:
        for name in names:
            extra = {GROUP: posixpath.dirname(name)} if self.group else None
            try:
                split = split_of_path(name, self.split)
                texts = SampleTexts(label=class_of_path(name) if self.classes else None)
            except SampleError as error:
                yield RejectedSample(key_of_image(name), error.reason, error.detail)
                continue
            sample = read_image_sample(images, name, split, key_of_image(name), texts, extra)
            if isinstance(sample, SourceSample):
                try:
                    sample = sample._replace(inputs={**sample.inputs, **beside.read(name)})
                except SampleError as error:
                    sample = RejectedSample(sample.key, error.reason, error.detail)
            yield sample
