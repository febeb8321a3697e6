"""Graphs in RDF: N-Triples, Turtle, N-Quads, TriG or RDF/XML, and so Wikidata's "truthy" file and DBpedia's.

<http://www.wikidata.org/entity/Q23501> <http://www.w3.org/2000/01/rdf-schema#label> "tomato"@en .
<http://www.wikidata.org/entity/Q23501> <http://www.wikidata.org/prop/direct/P462> <http://.../entity/Q3142> .
"""

from __future__ import annotations

import bz2
import gzip
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, TypeGuard
from urllib.parse import unquote

from pydantic import field_validator

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.sources._source import SourcePart, split_in_file_name
from pipelines.knowledge.triples import BadLine, FactFault, Triple, relation_to_phrase
from vlmodel.locations import Location

if TYPE_CHECKING:
    from pyoxigraph import NamedNode, Quad, RdfFormat

_COMPRESSED = (".gz", ".bz2")
_WIKIDATA_PROPERTIES = ("http://www.wikidata.org/prop/direct/", "http://www.wikidata.org/entity/")
"""A property has its label as an entity, and another address where it is used."""
_BATCH = 50_000


class Config(SourcePart):
    """Statements whose subject and object have names.

    Names are the labels in the files; where no file has any label, they are the last parts of addresses. Left out
    without a word are blank nodes, texts of another language, and the statements that are labels and descriptions.
    """

    kind: str = "rdf"
    files: list[Location] = []
    """The files, .nt, .ttl, .nq, .trig or .rdf, as they are or compressed (.gz, .bz2)."""
    language: str = "en"
    """Of labels and of texts that say their language."""
    labels: list[str] = [
        "http://www.w3.org/2000/01/rdf-schema#label",
        "http://www.w3.org/2004/02/skos/core#prefLabel",
        "http://schema.org/name",
        "http://xmlns.com/foaf/0.1/name",
    ]
    """Addresses of the properties that name things; of several the first counts."""
    descriptions: list[str] = [
        "http://schema.org/description",
        "http://www.w3.org/2000/01/rdf-schema#comment",
        "http://www.w3.org/2004/02/skos/core#definition",
    ]
    """Addresses of the properties that describe things. The text of a fact has the description of its head, which tells
    things of one name apart; empty leaves it out."""
    relations: list[str] = []
    """Only these properties, by address or its last part, such as P462; empty takes all."""

    @field_validator("files")
    @classmethod
    def _check_formats(cls, files: list[str]) -> list[str]:
        for file in files:
            _suffix(Path(file))
        return files

    def title(self) -> str:
        return self.name or (Path(self.files[0]).name if self.files else "")

    def read(self) -> Iterator[Triple | BadLine]:
        if not self.files:
            raise KnowledgeError("knowledge.source.files is empty; name the files of the graph")
        with TemporaryDirectory() as folder:
            names = _Names(Path(folder) / "names.sqlite")
            for file in map(Path, self.files):
                names.add(self._iterate_names(file))
            for file in map(Path, self.files):
                split = split_in_file_name(Path(file.name.split(".")[0]))
                for quad in _iterate_quads(file):
                    found = quad if isinstance(quad, BadLine) else self._to_triple(quad, names, split, file.name)
                    if found is not None:
                        yield found
            names.close()

    def _iterate_names(self, file: Path) -> Iterator[tuple[str, str, int, str]]:
        """(address, "label" or "description", rank of the property, text) of each named thing."""
        properties = {address: ("label", rank) for rank, address in enumerate(self.labels)}
        properties |= {address: ("description", rank) for rank, address in enumerate(self.descriptions)}
        for quad in _iterate_quads(file):
            if isinstance(quad, BadLine) or (found := properties.get(quad.predicate.value)) is None:
                continue
            text = self._text_of(quad.object)
            if _is_address(quad.subject) and text is not None:
                yield quad.subject.value, *found, text

    def _to_triple(self, quad: Quad, names: _Names, split: str, file: str) -> Triple | BadLine | None:
        address = quad.predicate.value
        if address in self.labels or address in self.descriptions or not _is_address(quad.subject):
            return None
        if self.relations and address not in self.relations and _last_part(address) not in self.relations:
            return None
        subject = quad.subject.value
        tail, tail_key = self._name_and_key(quad.object, names)
        if not tail_key:
            return None
        head = names.label(subject)
        if not head or not tail:
            return BadLine(file, FactFault.UNKNOWN_NAME, str(quad))
        relation = names.label(address.replace(*_WIKIDATA_PROPERTIES)) or _last_part(address)
        phrase = self.phrases.get(_last_part(address)) or self.phrases.get(relation) or relation_to_phrase(relation)
        described = names.description(subject)
        about = f" ({described})" if described else ""
        key = "\t".join((subject, address, tail_key)) if subject != tail_key else ""
        return Triple(head, relation, tail, split, f"{head}{about} {phrase} {tail}", key)

    def _name_and_key(self, node: object, names: _Names) -> tuple[str, str]:
        """Of an object its name and what tells it from others, "" where it has none."""
        if _is_address(node):
            return names.label(node.value), node.value
        text = self._text_of(node) or ""
        return text, text

    def _text_of(self, node: object) -> str | None:
        """The text of a literal; None where it is of another language, or no literal."""
        from pyoxigraph import Literal

        if not isinstance(node, Literal) or (node.language or self.language).split("-")[0] != self.language:
            return None
        return node.value


class _Names:
    """Labels and descriptions by address, in a file: those of Wikidata have no room in memory.

    The two have a primary key and a rank, so that of several labels the one of the first property stays.
    """

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE names (address TEXT, role TEXT, rank INTEGER, text TEXT, PRIMARY KEY (address, role)) "
            "WITHOUT ROWID"
        )
        self._any_label = False

    def add(self, rows: Iterator[tuple[str, str, int, str]]) -> None:
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO names VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
            "SET rank = excluded.rank, text = excluded.text WHERE excluded.rank < rank",
            rows,
        )
        self._database.execute("COMMIT")
        found = self._database.execute("SELECT 1 FROM names WHERE role = 'label' LIMIT 1").fetchone()
        self._any_label = found is not None

    def label(self, address: str) -> str:
        """The name of a thing; "" if it has none."""
        return self._find(address, "label") or ("" if self._any_label else _last_part(address))

    def description(self, address: str) -> str:
        return self._find(address, "description")

    def _find(self, address: str, role: str) -> str:
        row = self._database.execute("SELECT text FROM names WHERE address = ? AND role = ?", (address, role))
        found = row.fetchone()
        return str(found[0]) if found else ""

    def close(self) -> None:
        self._database.close()


def _iterate_quads(file: Path) -> Iterator[Quad | BadLine]:
    """The statements of a file; what is no statement is a bad line, and reading goes on behind it.

    Raises:
        KnowledgeError: it cannot be read.
    """
    from pyoxigraph import parse

    try:
        with _open(file) as opened:
            quads = parse(opened, format=_format(file), base_iri=file.resolve().as_uri())
            while True:
                try:
                    yield next(quads)
                except StopIteration:
                    return
                except SyntaxError as error:
                    yield BadLine(f"{file.name}:{error.lineno}", FactFault.SYNTAX, str(error.msg))
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KnowledgeError(f"{file} cannot be read ({reason}); name another file in knowledge.source") from None


def _open(file: Path) -> IO[bytes]:
    if file.suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]  # has all methods of IO that are used
    return bz2.open(file, "rb") if file.suffix == ".bz2" else file.open("rb")


def _suffix(file: Path) -> str:
    """What a file's name says of its format, without that of compression.

    Raises:
        ValueError: it says none.
    """
    name = file.stem if file.suffix in _COMPRESSED else file.name
    suffix = Path(name).suffix
    if suffix not in (".nt", ".ttl", ".nq", ".trig", ".rdf"):
        raise ValueError(f"{file}: a graph's file ends in .nt, .ttl, .nq, .trig or .rdf (and .gz or .bz2); rename it")
    return suffix


def _format(file: Path) -> RdfFormat:
    from pyoxigraph import RdfFormat

    found = RdfFormat.from_extension(_suffix(file)[1:])
    assert found is not None
    return found


def _is_address(node: object) -> TypeGuard[NamedNode]:
    from pyoxigraph import NamedNode

    return isinstance(node, NamedNode)


def _last_part(address: str) -> str:
    """The name in an address.

    >>> _last_part("http://dbpedia.org/resource/New_York"), _last_part("http://a.org/shop#sells")
    ('New York', 'sells')
    """
    return unquote(address.rstrip("/#").replace("#", "/").rpartition("/")[2]).replace("_", " ")
