"""The base class of all sources of facts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.triples import BadLine, FactFault, Triple
from vlmodel.config import PartConfig

SPLITS = {"train": "train", "dev": "val", "valid": "val", "val": "val", "test": "test"}
"""The split of a file by the first word of its name."""


class SourcePart(PartConfig):
    """The base class of the settings of a source of facts. A new format is a file with a subclass ``Config``."""

    name: str = ""
    """What facts carry as their source; "" takes the name of the file or folder."""
    phrases: dict[str, str] = {}
    """Relations in words, such as {HasProperty = "is"}; others are split at capitals and underscores: has property."""

    def title(self) -> str:
        """The name that facts carry as their source."""
        raise NotImplementedError

    def read(self) -> Iterator[Triple | BadLine]:
        """Yield all triples, and the lines from which no triple could be parsed.

        Raises:
            KnowledgeError: a file is missing.
        """
        raise NotImplementedError


def iterate_lines_of_file(file: Path) -> Iterator[tuple[str, str | BadLine]]:
    """Yield (where, line) of a UTF-8 text file, without blank lines.

    Raises:
        KnowledgeError: it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            for number, raw in enumerate(opened, 1):
                where = f"{file.name}:{number}"
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    yield where, BadLine(where, FactFault.BAD_UTF8, raw[:200].decode("ascii", "backslashreplace"))
                    continue
                if line.strip():
                    yield where, line
    except OSError as error:
        reason = error.strerror or error
        raise KnowledgeError(f"{file} cannot be read ({reason}); name another file in knowledge.source") from None


def split_in_file_name(file: Path) -> str:
    """Return the split that a file's name contains; "" if it contains none."""
    return SPLITS.get(file.stem.lower(), "")
