"""Flickr8k (Hodosh, Young, Hockenmaier 2013, JAIR 47) and Flickr30k (Young et al. 2014, TACL 2): captions by file name.

Captions come as a token file (``NAME.jpg#0<TAB>caption``) or as CSV with a header (``image,caption``, or
``image_name| comment_number| comment``). Splits come as lists of image names, one a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TextIO

from pipelines.data.errors import DataError, Reason, SampleError
from pipelines.data.importer import Importer, Reading, Record, Reject
from pipelines.data.importers._delimited import csv_rows, open_text
from pipelines.data.importers._files import Images, NoImages, find_one, fingerprint, images_for, key_of, source_folder
from pipelines.data.sample import Members, Texts
from pipelines.data.shards import SPLITS
from vlmodel.locations import Location

_CAPTIONS = ("Flickr8k.token.txt", "results_20130124.token", "captions.txt", "captions.csv", "results.csv")
_LISTS = {
    "train": ("Flickr_8k.trainImages.txt", "train.txt"),
    "val": ("Flickr_8k.devImages.txt", "val.txt", "dev.txt"),
    "test": ("Flickr_8k.testImages.txt", "test.txt"),
}


class Config(Importer):
    """Without any list of a split, all images are of split train; an image that is in no list is left out."""

    kind: str = "flickr"
    folder: Location
    """Folder that holds the captions, the lists and the images (in any sub-folder, or in a plain tar)."""
    captions: str = ""
    """Caption file, relative to ``folder``; empty to search for the usual names."""
    images: Location = ""
    """Folder or tar of the images, relative to ``folder``; empty for ``folder`` itself."""
    train: str = ""
    """List of the train images, relative to ``folder``; empty to search for the usual names."""
    val: str = ""
    """List of the validation images."""
    test: str = ""
    """List of the test images."""

    def fingerprint(self) -> str:
        root = source_folder(self.folder)
        return fingerprint(root, [self._captions(root), *self._lists(root).values()], [self._images(root)])

    def read(self) -> Reading:
        root = source_folder(self.folder)
        captions, rejects = _read_captions(self._captions(root))
        lists = self._lists(root)
        if lists:
            # Some published lists leave the extension out.
            full_names = {PurePosixPath(name).stem: name for name in captions}
            listed = [(split, name) for split, file in lists.items() for name in _read_list(file)]
            pictures = [(split, name if name in captions else full_names.get(name, name)) for split, name in listed]
        else:
            pictures = [("train", name) for name in captions]
        return Reading(len(pictures), _records(pictures, captions, self._images(root), rejects, self.members))

    def _images(self, root: Path) -> Images | NoImages:
        return images_for(self.members, root / self.images)

    def _captions(self, root: Path) -> Path:
        file = find_one(root, _CAPTIONS, self.captions, "source.captions")
        if file is None:
            raise DataError(f"{root} holds none of {', '.join(_CAPTIONS)}; name the caption file by source.captions")
        return file

    def _lists(self, root: Path) -> dict[str, Path]:
        found = {split: find_one(root, _LISTS[split], getattr(self, split), f"source.{split}") for split in SPLITS}
        return {split: file for split, file in found.items() if file is not None}


def _read_captions(file: Path) -> tuple[dict[str, list[str]], list[Reject]]:
    """Captions by image name, in the file's order, and the lines that hold none."""
    captions: dict[str, list[str]] = {}
    rejects = []
    with open_text(file) as lines:
        for number, row in _caption_rows(file, lines):
            if isinstance(row, SampleError):
                rejects.append(Reject(f"{file.name}:{number}", row.reason, row.detail))
            else:
                name, caption = row
                captions.setdefault(name, []).append(caption)
    if not captions:
        raise DataError(f"{file} holds no captions: expected NAME.jpg#0<TAB>caption, or CSV with image and caption")
    return captions, rejects


def _caption_rows(file: Path, lines: TextIO) -> Iterator[tuple[int, tuple[str, str] | SampleError]]:
    """(line number, (image name, caption) or what is wrong with the line)."""
    first = lines.readline()
    delimiter = next((mark for mark in "\t|," if mark in first), None)
    if delimiter is None:
        raise DataError(f"{file}: the first line {first.strip()!r:.60} is neither of a token file nor a CSV header")
    if delimiter == "\t":
        name_column, caption_column, offset = 0, 1, 0
        rows = csv_rows(chain([first], lines), delimiter, quoted=False)
    else:
        header = [column.strip().lower() for column in first.split(delimiter)]
        name_column = next((header.index(name) for name in ("image", "image_name") if name in header), -1)
        caption_column = next((header.index(name) for name in ("caption", "comment") if name in header), -1)
        if min(name_column, caption_column) < 0:
            raise DataError(f"{file}: the header {first.strip()!r:.60} has no columns image and caption")
        offset = 1
        # Flickr30k's results.csv separates by | and does not quote.
        rows = csv_rows(lines, delimiter, quoted=delimiter == ",")
    for number, cells in rows:
        if isinstance(cells, SampleError):
            yield number + offset, cells
            continue
        name, caption = (cells[i].strip() if i < len(cells) else "" for i in (name_column, caption_column))
        if delimiter == "\t":
            name = name.rpartition("#")[0] or name
        if name and caption:
            yield number + offset, (name, caption)
        else:
            detail = f"{delimiter.join(cells)!r:.80} is not an image name and a caption"
            yield number + offset, SampleError(Reason.BAD_SCHEMA, detail)


def _read_list(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {file} cannot be read ({error}); restore it or name another") from None
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _records(
    pictures: list[tuple[str, str]],
    captions: dict[str, list[str]],
    images: Images | NoImages,
    rejects: list[Reject],
    members: Members,
) -> Iterator[Record | Reject]:
    yield from rejects
    for split, name in pictures:
        key = key_of(name)
        try:
            if name not in captions and members != "images":
                raise SampleError(Reason.MISSING_TEXT, f"image {name!r} of split {split!r} has no caption")
            image, extension = images.read(name)
        except SampleError as error:
            yield Reject(key, error.reason, error.detail)
        else:
            yield Record(split, key, image, extension, Texts(tuple(captions.get(name, ()))))
