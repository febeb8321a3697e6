"""Imports Flickr8k (Hodosh, Young, Hockenmaier 2013, JAIR 47) and Flickr30k (Young et al. 2014, TACL 2): captions by
file name.

Captions come as a token file (``NAME.jpg#0<TAB>caption``) or as CSV with a header (``image,caption``, or
``image_name| comment_number| comment``). Splits come as lists of image names, one a line.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TextIO

from pipelines.data.importers._delimited import open_text_file, read_csv_rows, split_line_into_cells
from pipelines.data.importers._files import (
    find_file,
    fingerprint_files,
    key_of_image,
    open_regular_file,
    resolve_path,
    source_folder,
)
from pipelines.data.importers._images import (
    NoImages,
    SourceImages,
    is_image,
    open_source_images,
    read_image_sample,
)
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.inputs import TEXT
from pipelines.data.tars.shards import SPLITS
from pipelines.errors import DataError
from vlmodel.locations import Location
from vlmodel.sample import SampleTexts

_CAPTIONS = ("Flickr8k.token.txt", "results_20130124.token", "captions.txt", "captions.csv", "results.csv")
_LISTS = {
    "train": ("Flickr_8k.trainImages.txt", "train.txt"),
    "val": ("Flickr_8k.devImages.txt", "val.txt", "dev.txt"),
    "test": ("Flickr_8k.testImages.txt", "test.txt"),
}
_UNLISTED = "images with captions that are in no list of a split"


class Config(Importer):
    """Settings of an import of Flickr. Without any list of a split all images are of split train; with lists, images in
    none are left out.
    """

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
        files = [self._caption_file(root), *self._split_lists(root).values(), *self._open_images(root).files()]
        return fingerprint_files(root, files)

    def read(self) -> SourceContents:
        root = source_folder(self.folder)
        caption_file = self._caption_file(root)
        captions, rejects = _read_captions(caption_file)
        lists = self._split_lists(root)
        if lists:
            # Some published lists leave the extension out.
            full_names = {PurePosixPath(name).stem: name for name in captions}
            listed = [(split, name) for split, file in lists.items() for name in _read_split_list(file)]
            pictures = [(split, name if name in captions else full_names.get(name, name)) for split, name in listed]
        else:
            pictures = [("train", name) for name in captions]
        images = self._open_images(root)

        def count_skipped_files() -> Counter[str]:
            unlisted = captions.keys() - {name for _, name in pictures}
            return images.count_skipped_files([caption_file, *lists.values()]) + Counter({_UNLISTED: len(unlisted)})

        records = _iterate_samples(pictures, captions, images, rejects, self.imports_input(TEXT))
        return SourceContents(len(pictures), records, count_skipped_files, {split for split, _ in pictures})

    def _open_images(self, root: Path) -> SourceImages | NoImages:
        return open_source_images(self.inputs, resolve_path(self.images, root))

    def _caption_file(self, root: Path) -> Path:
        file = find_file(root, _CAPTIONS, self.captions, "source.captions")
        if file is None:
            raise DataError(f"{root} holds none of {', '.join(_CAPTIONS)}; name the caption file by source.captions")
        return file

    def _split_lists(self, root: Path) -> dict[str, Path]:
        files = {split: find_file(root, _LISTS[split], getattr(self, split), f"source.{split}") for split in SPLITS}
        return {split: file for split, file in files.items() if file is not None}


def _read_captions(file: Path) -> tuple[dict[str, list[str]], list[RejectedSample]]:
    """Read the captions by image name, in the file's order, and a reject for each line without a caption."""
    captions: dict[str, list[str]] = {}
    rejects = []
    with open_text_file(file) as lines:
        for number, row in _iterate_caption_rows(file, lines):
            if isinstance(row, SampleError):
                rejects.append(RejectedSample(f"{file.name}:{number}", row.reason, row.detail))
            else:
                name, caption = row
                captions.setdefault(name, []).append(caption)
    if not captions:
        raise DataError(f"{file} holds no captions: expected NAME.jpg#0<TAB>caption, or CSV with image and caption")
    return captions, rejects


def _iterate_caption_rows(file: Path, lines: TextIO) -> Iterator[tuple[int, tuple[str, str] | SampleError]]:
    """Yield (line number, (image name, caption) or what is wrong with the line).

    A caption that is the last cell may hold the delimiter.
    """
    first = lines.readline()
    delimiter = next((mark for mark in "\t|,;" if mark in first), "")
    header = (
        [cell.strip().lower() for cell in split_line_into_cells(first.rstrip("\r\n"), delimiter)] if delimiter else []
    )
    name_at = next((header.index(name) for name in ("image", "image_name") if name in header), -1)
    caption_at = next((header.index(name) for name in ("caption", "comment") if name in header), -1)
    tokens = delimiter == "\t" and min(name_at, caption_at) < 0
    if tokens:
        name_at, caption_at, columns, offset = 0, 1, 2, 0
    elif not delimiter:
        raise DataError(f"{file}: the first line {first.strip()!r:.60} is neither of a token file nor a CSV header")
    elif min(name_at, caption_at) < 0:
        raise DataError(f"{file}: the header {first.strip()!r:.60} has no columns image and caption")
    else:
        columns, offset = len(header), 1
    # Flickr30k's results.csv separates by | and does not quote.
    rows = read_csv_rows(
        chain([first], lines) if tokens else lines,
        delimiter,
        quoted=not tokens and delimiter != "|",
        is_row=lambda cells: len(cells) >= columns and is_image(cells[name_at].strip()),
    )
    for number, cells in rows:
        if isinstance(cells, SampleError):
            yield number + offset, cells
            continue
        if len(cells) > columns and caption_at == columns - 1:
            cells = [*cells[:caption_at], delimiter.join(cells[caption_at:])]
        name, caption = (cells[at].strip() if at < len(cells) else "" for at in (name_at, caption_at))
        if tokens:
            name = name.rpartition("#")[0] or name
        name = _normalize_image_name(name)
        if name and caption and len(cells) <= columns:
            yield number + offset, (name, caption)
        else:
            detail = f"{delimiter.join(cells)!r:.80} is not an image name and a caption"
            yield number + offset, SampleError(FaultReason.BAD_SCHEMA, detail)


def _read_split_list(file: Path) -> list[str]:
    try:
        with open_regular_file(file) as opened:
            # Not splitlines(), which also splits at characters that names may have.
            lines = re.split(r"\r\n|\r|\n", opened.read().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError, SampleError) as error:
        raise DataError(f"the list {file} cannot be read ({error}); restore it or name another") from None
    return list(dict.fromkeys(_normalize_image_name(line.strip()) for line in lines if line.strip()))


def _normalize_image_name(name: str) -> str:
    """Convert an image's name to the spelling by which captions, lists and files are matched."""
    return unicodedata.normalize("NFC", posixpath.normpath(name)) if name else ""


def _iterate_samples(
    pictures: list[tuple[str, str]],
    captions: dict[str, list[str]],
    images: SourceImages | NoImages,
    rejects: list[RejectedSample],
    needs_captions: bool,
) -> Iterator[SourceSample | RejectedSample]:
    yield from rejects
    for split, name in pictures:
        if name not in captions and needs_captions:
            yield RejectedSample(
                key_of_image(name), FaultReason.MISSING_TEXT, f"image {name!r} of split {split!r} has no caption"
            )
        else:
            yield read_image_sample(images, name, split, key_of_image(name), SampleTexts(tuple(captions.get(name, ()))))
