"""Every format of facts, and its bad lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.triples import BadLine, FactFault, Triple, find_triple_fault, triple_to_fact
from vlmodel.config import ConfigError, list_part_kinds, parse_part_config

PACKAGE = "pipelines.knowledge.sources"


def read(**settings: object) -> list[Triple | BadLine]:
    return list(parse_part_config(PACKAGE, settings).read())


def faults(rows: list[Triple | BadLine]) -> list[FactFault]:
    return [row.fault for row in rows if isinstance(row, BadLine)]


def test_a_file_a_format() -> None:
    assert list_part_kinds(PACKAGE) == ["conceptnet", "entities", "rdf", "tsv"]


def test_columns_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "valid.txt"
    file.write_bytes("\ufeffIsA\tdog\tanimal\t0.5\r\n\r\nIsA\tcat\n".encode() + b"IsA\t\xff\tx\n")
    rows = read(kind="tsv", files=[str(file)], columns=["relation", "head", "tail"])
    assert rows[0] == Triple("dog", "IsA", "animal", "val")
    assert faults(rows) == [FactFault.COLUMNS, FactFault.BAD_UTF8]


@pytest.mark.parametrize("columns", [["head", "tail"], ["head", "relation", "tail", "tail"]])
def test_an_order_without_a_triple_is_refused(columns: list[str]) -> None:
    with pytest.raises(ConfigError, match="columns"):
        parse_part_config(PACKAGE, {"kind": "tsv", "files": ["x"], "columns": columns})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"gone\.tsv"):
        read(kind="tsv", files=[str(tmp_path / "gone.tsv")])
    with pytest.raises(KnowledgeError, match=r"knowledge\.source\.files"):
        read(kind="tsv")


def test_entities_are_read_by_their_texts(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("01\t_hypernym\t02\n01\t_hypernym\t99\nonly\ttwo\n")
    (tmp_path / "entity2text.txt").write_text("01\tstool, a simple seat\n02\tseat\n")
    (tmp_path / "relation2text.txt").write_text("_hypernym\tis a kind of\n")
    rows = read(kind="entities", folder=str(tmp_path))
    assert rows[0] == Triple(
        "stool", "_hypernym", "seat", "val", "stool (a simple seat) is a kind of seat", "01\t_hypernym\t02"
    )
    assert faults(rows) == [FactFault.UNKNOWN_NAME, FactFault.COLUMNS]


def test_entities_of_one_name_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("01\t_verb_group\t02\n02\t_verb_group\t01\n01\t_verb_group\t01\n")
    (tmp_path / "entity2text.txt").write_text("01\trun, move fast\n02\trun, operate\n")
    one, other, same = (row for row in read(kind="entities", folder=str(tmp_path)) if isinstance(row, Triple))
    assert (find_triple_fault(one), find_triple_fault(other), find_triple_fault(same)) == (
        None,
        None,
        FactFault.REPEATED_PART,
    )
    assert triple_to_fact(one, "").id != triple_to_fact(other, "").id


def test_assertions_of_one_language(tmp_path: Path) -> None:
    lines = [
        ("HasProperty", "/c/en/ice_cream/n", "/c/en/cold", 2.0),
        ("HasProperty", "/c/fr/glace", "/c/fr/froid", 2.0),
        ("HasProperty", "/c/en/fire", "/c/en/wet", 0.5),
        ("ExternalURL", "/c/en/fire", "http://example.org", 1.0),
    ]
    file = tmp_path / "assertions.csv.gz"
    with gzip.open(file, "wt", encoding="utf-8") as out:
        for relation, head, tail, weight in lines:
            out.write(f"/a/x\t/r/{relation}\t{head}\t{tail}\t{json.dumps({'weight': weight})}\n")
        out.write("not an assertion\n/a/x\t/r/IsA\t/c/en/a\t/c/en/b\tnot json\n")
    rows = read(kind="conceptnet", file=str(file))
    assert rows[0] == Triple("ice cream", "HasProperty", "cold")
    assert faults(rows) == [FactFault.COLUMNS, FactFault.COLUMNS]
    assert len(rows) == 3
