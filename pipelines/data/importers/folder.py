"""A folder or a plain tar of images without texts; for images with texts see ``table``."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Literal

from pipelines.data.importers._files import fingerprint, key_of, resolve_path
from pipelines.data.importers._images import Images, read_sample
from pipelines.data.importing.importer import Importer, Reject, SourceContents, SourceSample
from pipelines.data.tars.sample import GROUP
from vlmodel.locations import Location
from vlmodel.sample import Texts


class Config(Importer):
    """Each image is a sample; its path in the folder, without the extension, is the key.

    Links are followed, to folders elsewhere too, and each folder and each file is read once. Hidden files, and files
    that are no images by their names, are skipped and counted.
    """

    kind: str = "folder"
    members: Literal["images"] = "images"
    """Images alone: a folder has no texts."""
    folder: Location
    """Folder of the images (files at any depth, and plain tars that lie directly in it), or one plain tar."""
    split: Literal["train", "val", "test"] = "train"
    """Split of all of them."""
    group: Literal["", "folder"] = ""
    """"folder" makes one group of the images that lie directly in one folder, such as the frames of a film."""

    def fingerprint(self) -> str:
        images = self._images()
        return fingerprint(images.root, images.files())

    def read(self) -> SourceContents:
        images = self._images()
        return SourceContents(len(images), self._read_samples(images), images.passed_over)

    def _images(self) -> Images:
        return Images(resolve_path(self.folder))

    def _read_samples(self, images: Images) -> Iterator[SourceSample | Reject]:
        for name in images.names():
            extra = {GROUP: posixpath.dirname(name)} if self.group else None
            yield read_sample(images, name, self.split, key_of(name), Texts(), extra)
