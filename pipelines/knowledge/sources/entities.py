"""Reads a folder of triples of entity ids and the entities' texts, such as WN18RR and FB15k-237 in KG-BERT's
repository.

train.tsv, dev.tsv, test.tsv   head id, relation, tail id
entity2text.txt                entity id, name[, description]
relation2text.txt              relation, words; may be missing
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.sources._source import SourcePart, iterate_lines_of_file, split_in_file_name
from pipelines.knowledge.triples import BadLine, FactFault, Triple, relation_to_phrase
from vlmodel.locations import Location

_TEXTS, _RELATIONS = "entity2text.txt", "relation2text.txt"


class Config(SourcePart):
    """Settings of a source of triples of ids, whose entities have texts. The name of an entity is its text up to the
    first comma; entities with the same name stay separate.
    """

    kind: str = "entities"
    folder: Location
    """Folder of the files."""
    descriptions: bool = True
    """Whether the text of a fact has the description of its head, which tells entities of one name apart."""

    def title(self) -> str:
        return self.name or Path(self.folder).name

    def read(self) -> Iterator[Triple | BadLine]:
        folder = Path(self.folder)
        files = sorted(folder.glob("*.tsv"))
        if not files:
            raise KnowledgeError(f"{folder} has no .tsv files of triples; name a folder that has, in knowledge.source")
        texts = dict(_read_id_and_text_pairs(folder / _TEXTS))
        words = dict(_read_id_and_text_pairs(folder / _RELATIONS)) if (folder / _RELATIONS).is_file() else {}
        for file in files:
            for where, line in iterate_lines_of_file(file):
                yield (
                    line
                    if isinstance(line, BadLine)
                    else self._parse(where, line, split_in_file_name(file), texts, words)
                )

    def _parse(
        self, where: str, line: str, split: str, texts: dict[str, str], words: dict[str, str]
    ) -> Triple | BadLine:
        cells = line.split("\t")
        if len(cells) != 3:
            return BadLine(where, FactFault.COLUMNS, line)
        head, relation, tail = cells
        if head not in texts or tail not in texts:
            return BadLine(where, FactFault.UNKNOWN_NAME, line)
        (name, _, described), (other, _, _) = (texts[entity].partition(",") for entity in (head, tail))
        phrase = self.phrases.get(relation) or words.get(relation) or relation_to_phrase(relation)
        about = f" ({described.strip()})" if self.descriptions and described.strip() else ""
        key = "\t".join(cells) if head != tail else ""
        return Triple(name, relation, other, split, f"{name}{about} {phrase} {other}", key)


def _read_id_and_text_pairs(file: Path) -> Iterator[tuple[str, str]]:
    for _, line in iterate_lines_of_file(file):
        if not isinstance(line, BadLine):
            key, _, text = line.partition("\t")
            yield key, text
