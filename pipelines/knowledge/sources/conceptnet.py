"""Reads ConceptNet 5's assertions: ``conceptnet-assertions-5.7.0.csv[.gz]``, five tab-separated columns.

/a/[...]   /r/HasProperty   /c/en/strawberry/n   /c/en/red   {"weight": 2.0, ...}
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.sources._source import SourcePart
from pipelines.knowledge.triples import BadLine, FactFault, Triple
from vlmodel.locations import Location


class Config(SourcePart):
    """Settings of the ConceptNet source: reads the assertions whose head and tail are both of one language."""

    kind: str = "conceptnet"
    file: Location
    """The assertions, gzip-compressed or not."""
    language: str = "en"
    """Of head and tail, as ConceptNet's addresses name it."""
    least_weight: float = Field(1.0, ge=0)
    """Assertions of a smaller weight are left out: few sources say so."""
    relations: list[str] = []
    """Only these relations, such as HasProperty; empty takes all."""

    def title(self) -> str:
        return self.name or "conceptnet"

    def read(self) -> Iterator[Triple | BadLine]:
        opened = gzip.open if self.file.endswith(".gz") else open
        try:
            with opened(self.file, "rb") as file:
                for number, raw in enumerate(file, 1):
                    found = self._parse(f"{Path(self.file).name}:{number}", raw)
                    if found is not None:
                        yield found
        except (OSError, EOFError) as error:
            raise KnowledgeError(f"{self.file} cannot be read ({error}); download it again, or name another") from None

    def _parse(self, where: str, raw: bytes) -> Triple | BadLine | None:
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            return BadLine(where, FactFault.BAD_UTF8, raw[:200].decode("ascii", "backslashreplace"))
        cells = line.split("\t")
        if len(cells) != 5:
            return BadLine(where, FactFault.COLUMNS, line)
        relation, head, tail = cells[1].removeprefix("/r/"), self._name_of(cells[2]), self._name_of(cells[3])
        if head is None or tail is None or (self.relations and relation not in self.relations):
            return None
        try:
            weight = float(json.loads(cells[4])["weight"])
        except (ValueError, KeyError, TypeError):
            return BadLine(where, FactFault.COLUMNS, line)
        return Triple(head, relation, tail) if weight >= self.least_weight else None

    def _name_of(self, address: str) -> str | None:
        """Return the name in an address such as /c/en/ice_cream/n; None if it is of another language or no concept."""
        parts = address.split("/")
        if len(parts) < 4 or parts[1] != "c" or parts[2] != self.language:
            return None
        return parts[3].replace("_", " ")
