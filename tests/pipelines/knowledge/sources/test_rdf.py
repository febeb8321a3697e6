"""Graphs in RDF: names, filters and what is no statement."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pytest

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.triples import BadLine, FactFault, Triple, find_triple_fault, triple_to_fact
from vlmodel.config import ConfigError, parse_part_config

LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"
ENTITY, DIRECT = "http://www.wikidata.org/entity/", "http://www.wikidata.org/prop/direct/"
WIKIDATA = f"""\
<{ENTITY}Q23501> {LABEL} "tomato"@en .
<{ENTITY}Q23501> {LABEL} "Tomate"@de .
<{ENTITY}Q23501> <http://www.w3.org/2004/02/skos/core#prefLabel> "love apple"@en .
<{ENTITY}Q23501> <http://schema.org/description> "edible berry"@en .
<{ENTITY}Q3142> {LABEL} "red"@en .
<{ENTITY}P462> {LABEL} "color"@en .
<{ENTITY}Q23501> <{DIRECT}P462> <{ENTITY}Q3142> .
<{ENTITY}Q23501> <{DIRECT}P2067> "+0.1"^^<http://www.w3.org/2001/XMLSchema#decimal> .
<{ENTITY}Q23501> <{DIRECT}P1843> "Tomate"@de .
<{ENTITY}Q23501> <{DIRECT}P279> <{ENTITY}Q99> .
_:b <{DIRECT}P462> <{ENTITY}Q3142> .
"""


def read(*files: Path, **settings: object) -> list[Triple | BadLine]:
    source = parse_part_config("pipelines.knowledge.sources", {"kind": "rdf", "files": [*map(str, files)], **settings})
    return list(source.read())


def triples(rows: list[Triple | BadLine]) -> list[tuple[str, str, str]]:
    return [(row.head, row.relation, row.tail) for row in rows if isinstance(row, Triple)]


@pytest.mark.parametrize(("ending", "write"), [(".nt", bytes), (".nt.gz", gzip.compress), (".nt.bz2", bz2.compress)])
def test_wikidata_is_read_by_its_labels(tmp_path: Path, ending: str, write: type[bytes]) -> None:
    file = tmp_path / f"truthy{ending}"
    file.write_bytes(write(WIKIDATA.encode()))
    rows = read(file)
    assert triples(rows) == [("tomato", "color", "red"), ("tomato", "P2067", "+0.1")]
    found = rows[0]
    assert isinstance(found, Triple)
    assert found.text == "tomato (edible berry) color red"
    assert [row.fault for row in rows if isinstance(row, BadLine)] == [FactFault.UNKNOWN_NAME]


def test_relations_phrases_and_languages(tmp_path: Path) -> None:
    file = tmp_path / "truthy.nt"
    file.write_text(WIKIDATA)
    (found,) = read(file, relations=["P462"], phrases={"P462": "is"}, descriptions=[])
    assert isinstance(found, Triple)
    assert found.text == "tomato is red"
    assert triples(read(file, language="de", relations=["P1843"])) == [("Tomate", "P1843", "Tomate")]


def test_two_things_of_one_name_stay_apart(tmp_path: Path) -> None:
    file = tmp_path / "train.ttl"
    file.write_text(
        "@prefix : <http://a.org/> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .\n"
        ':bank1 rdfs:label "bank" ; rdfs:comment "of a river" ; :made_of :sand .\n'
        ':bank2 rdfs:label "bank" ; rdfs:comment "of money" ; :made_of :sand .\n'
        ':sand rdfs:label "sand" .\n'
    )
    rows = [row for row in read(file) if isinstance(row, Triple)]
    assert [row.text for row in rows] == ["bank (of a river) made of sand", "bank (of money) made of sand"]
    assert [row.split for row in rows] == ["train", "train"]
    assert len({triple_to_fact(row, "x").id for row in rows}) == 2


def test_without_labels_addresses_name_things(tmp_path: Path) -> None:
    file = tmp_path / "a.nt"
    file.write_text("<http://a.org/New_York> <http://a.org/shop#liesIn> <http://a.org/caf%C3%A9> .\n")
    (found,) = read(file)
    assert isinstance(found, Triple)
    assert (found.head, found.relation, found.tail, found.text) == (
        "New York", "liesIn", "café", "New York lies in café",
    )  # fmt: skip


def test_reading_goes_on_behind_a_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "a.nt"
    good = "<http://a.org/{}> <http://a.org/p> <http://a.org/y> .\n"
    file.write_text(good.format("x") + "no statement\n" + good.format("z"))
    rows = read(file)
    assert [head for head, _, _ in triples(rows)] == ["x", "z"]
    (bad,) = (row for row in rows if isinstance(row, BadLine))
    assert (bad.where, bad.fault) == ("a.nt:2", FactFault.SYNTAX)


def test_a_thing_that_points_to_itself_is_no_fact(tmp_path: Path) -> None:
    file = tmp_path / "a.nt"
    file.write_text("<http://a.org/x> <http://a.org/p> <http://a.org/x> .\n")
    (found,) = read(file)
    assert isinstance(found, Triple)
    assert find_triple_fault(found) is FactFault.REPEATED_PART


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"gone\.nt cannot be read \(No such file"):
        read(tmp_path / "gone.nt")
    with pytest.raises(KnowledgeError, match=r"knowledge\.source\.files is empty"):
        read()
    (tmp_path / "cut.nt.gz").write_bytes(gzip.compress(WIKIDATA.encode())[:-20])
    with pytest.raises(KnowledgeError, match=r"cut\.nt\.gz cannot be read"):
        read(tmp_path / "cut.nt.gz")
    with pytest.raises(ConfigError, match=r"ends in \.nt"):
        read(tmp_path / "graph.csv")
