"""Reads tab-separated triples, one on each line, from one file, or from all ``.tsv`` and ``.txt`` files of a folder or
those that are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.sources._source import SPLITS, SourcePart, iterate_lines_of_file, split_in_file_name
from pipelines.knowledge.triples import BadLine, FactFault, Triple
from vlmodel.locations import Location

Column = Literal["head", "relation", "tail", "text", "split", "-"]


class Config(SourcePart):
    """Settings of a source of tab-separated triples. Facts from files called train, dev, valid, val or test get that
    split.
    """

    kind: str = "tsv"
    files: list[Location] = []
    """The files."""
    columns: list[Column] = ["head", "relation", "tail"]
    """What the columns are, in their order; "-" is one that is not read. ConceptNet-100K has relation, head, tail."""

    @field_validator("columns")
    @classmethod
    def _check_names_triple_files(cls, columns: list[Column]) -> list[Column]:
        named = [column for column in columns if column != "-"]
        if missing := [part for part in ("head", "relation", "tail") if part not in named]:
            raise ValueError(f"{columns} names no {' and no '.join(missing)}; say which columns they are")
        if len(set(named)) != len(named):
            raise ValueError(f"{columns} names a column twice; name each once")
        return columns

    def title(self) -> str:
        return self.name or (Path(self.files[0]).name if self.files else "")

    def read(self) -> Iterator[Triple | BadLine]:
        if not self.files:
            raise KnowledgeError("knowledge.source.files is empty; name the files of triples")
        for file in map(Path, self.files):
            for where, line in iterate_lines_of_file(file):
                yield line if isinstance(line, BadLine) else self._parse(where, line, split_in_file_name(file))

    def _parse(self, where: str, line: str, split: str) -> Triple | BadLine:
        cells = line.split("\t")
        if len(cells) < len(self.columns):
            return BadLine(where, FactFault.COLUMNS, line)
        named = {column: cell for column, cell in zip(self.columns, cells, strict=False) if column != "-"}
        named["split"] = SPLITS.get(named.get("split", "").strip().lower(), split)
        return Triple(**named)
