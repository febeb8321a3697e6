"""The store: versions, edits, writers that compete or are killed, other encoders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.knowledge import snapshot
from pipelines.knowledge.errors import KnowledgeError, UnknownFactError
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import BadLine, FactFault, Triple, triple_to_fact
from tests.pipelines.knowledge.conftest import WIDTH, facts_of, put, vectors_of

ROOT = Path(__file__).resolve().parents[3]


def test_edits_are_versions(store: FactStore) -> None:
    first = put(store, ("strawberry", "Is", "red"), ("sky", "Is", "blue"))
    version = store.version
    edited = triple_to_fact(Triple("strawberry", "Is", "green"), "test", fact_id=first[0].id)
    store.put([edited], vectors_of([edited.text]))
    store.delete([first[1].id])
    assert [fact.tail for fact in store.find_facts_of_entity("Strawberry", 10)] == ["green"]
    assert store.find_facts_of_entity("sky", 10) == []
    assert sorted(
        fact.tail for name in ("sky", "strawberry") for fact in store.find_facts_of_entity(name, 10, version)
    ) == [
        "blue",
        "red",
    ]
    assert store.find_facts_of_entity("GREEN", 10) == [edited], "tails are entities too"


def test_a_fact_that_is_not_there_is_not_deleted(store: FactStore) -> None:
    (fact,) = put(store, ("sky", "Is", "blue"))
    with pytest.raises(UnknownFactError, match="nothing' or"):
        store.delete([fact.id, "nothing' or true --"])
    assert store.find_facts_of_entity("sky", 1) == [fact], "nothing was removed"


def test_contradicting_facts_are_both_shown(store: FactStore) -> None:
    put(store, ("apple", "Is", "red"), ("apple", "Is", "green"))
    assert sorted(fact.tail for fact in store.find_facts_of_entity("apple", 10)) == ["green", "red"]


def test_bad_lines_are_rows_with_reasons(store: FactStore) -> None:
    put(store, ("sky", "Is", "blue"))
    store.put_bad_lines(
        [BadLine("a:1", FactFault.EMPTY_PART, "x\t\ty"), BadLine("a:2", FactFault.BAD_UTF8, "\ud800")], "a"
    )
    assert store.counts() == {"facts": 1, "empty_part": 1, "bad_utf8": 1}
    assert len(snapshot.read_snapshot(store)) == 1


def test_names_with_quotation_marks(store: FactStore) -> None:
    (fact,) = put(store, ("farmer's' or '1'='1", "Is", "busy"))
    assert store.find_facts_of_entity("farmer's' or '1'='1", 5) == [fact]
    assert store.find_facts_of_entity("' or '1'='1", 5) == []


def test_an_encoder_of_another_kind_is_refused(store: FactStore) -> None:
    with pytest.raises(KnowledgeError, match="words"):
        FactStore.create(store.uri, "other", WIDTH)
    with pytest.raises(KnowledgeError, match="none"):
        FactStore.create(store.uri, "", 0)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    import lance
    import pyarrow as pa

    with pytest.raises(KnowledgeError, match=r"jobs\.knowledge"):
        FactStore(str(tmp_path / "nothing"))
    lance.write_dataset(pa.table({"a": [1]}), tmp_path / "other" / "facts.lance")
    with pytest.raises(KnowledgeError, match="did not write"):
        FactStore(str(tmp_path / "other"))


def test_without_pylance_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(KnowledgeError, match=r"raylm\[knowledge\]"):
        FactStore(str(tmp_path))


def test_a_version_that_was_cleaned_up_is_named(store: FactStore) -> None:
    put(store, ("sky", "Is", "blue"))
    early = store.version
    for n in range(4):
        put(store, (f"thing {n}", "Is", "new"))
    store.clean_up(keep=1)
    with pytest.raises(KnowledgeError, match=f"no version {early}"):
        snapshot.read_snapshot(store, early)
    assert len(snapshot.read_snapshot(store)) == 5


def test_a_refreshed_snapshot_is_the_one_that_is_read_anew(store: FactStore) -> None:
    facts = put(store, *((f"thing {n}", "Is", "old") for n in range(20)))
    before = snapshot.read_snapshot(store)
    assert snapshot.refresh_snapshot(store, before) is before
    edited = [triple_to_fact(Triple(f"thing {n}", "Is", "edited"), "test", fact_id=facts[n].id) for n in (3, 4)]
    store.put(edited, vectors_of([fact.text for fact in edited]))
    store.delete([facts[7].id, facts[8].id])
    put(store, ("another", "Is", "added"))
    store.put_bad_lines([BadLine("a:1", FactFault.EMPTY_PART, "")], "a")
    refreshed, anew = snapshot.refresh_snapshot(store, before), snapshot.read_snapshot(store)
    assert refreshed.base is before.base, "what did not change is shared"
    assert refreshed.all_facts.texts.equals(anew.all_facts.texts)
    assert np.array_equal(refreshed.all_facts.vectors_MF, anew.all_facts.vectors_MF)
    assert (len(before), len(refreshed), len(anew), anew.version) == (20, 19, 19, store.version)
    query_NF = vectors_of(["thing 3 is edited", "another is added", "thing 7 is old"])
    found, found_anew = (
        [[one.fact(row).id for row in rows] for rows in one.nearest(query_NF, 5)[0].tolist()]
        for one in (refreshed, anew)
    )
    assert found == found_anew
    assert ("thing 7" in refreshed, "thing 3" in refreshed, "another" in refreshed) == (False, True, True)
    twice = snapshot.refresh_snapshot(store, refreshed)
    assert twice is refreshed
    store.delete([edited[0].id])
    assert snapshot.refresh_snapshot(store, refreshed).all_facts.texts.equals(
        snapshot.read_snapshot(store).all_facts.texts
    )


def test_a_store_of_which_much_changed_is_read_anew(store: FactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_LEAST_CHANGED", 3)
    put(store, *((f"thing {n}", "Is", "old") for n in range(20)))
    before = snapshot.read_snapshot(store)
    put(store, *((f"other {n}", "Is", "new") for n in range(4)))
    refreshed = snapshot.refresh_snapshot(store, before)
    assert (len(refreshed.base), len(refreshed.added)) == (24, 0)


def test_a_store_that_was_built_anew_is_read_anew(store: FactStore, tmp_path: Path) -> None:
    import shutil

    for n in range(3):
        put(store, (f"thing {n}", "Is", "old"))
    before = snapshot.read_snapshot(store)
    shutil.rmtree(store.uri)
    again = FactStore.create(store.uri, store.encoder, WIDTH)
    put(again, ("thing", "Is", "new"))
    assert snapshot.refresh_snapshot(again, before).all_facts.texts["tail"].to_pylist() == ["new"]


WRITER = """
import sys
from pipelines.knowledge.store import FactStore
from tests.pipelines.knowledge.conftest import put
store = FactStore(sys.argv[1])
for n in range(int(sys.argv[3])):
    put(store, (f"{sys.argv[2]} {n}", "Is", "own"), (f"shared {n}", "Is", "both's"))
    print(n, flush=True)
"""


def _writer(store: FactStore, name: str, count: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, store.uri, name, str(count)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_writers_at_once_lose_nothing(store: FactStore) -> None:
    writers = [_writer(store, name, 6) for name in ("one", "two")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    heads = snapshot.read_snapshot(store).all_facts.texts["head"].to_pylist()
    assert sorted(heads) == sorted(f"{name} {n}" for name in ("one", "two", "shared") for n in range(6))


def test_a_killed_writer_leaves_whole_versions(store: FactStore) -> None:
    writer = _writer(store, "one", 1000)
    assert writer.stdout is not None
    for _ in range(3):
        assert writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait(60)
    left = snapshot.read_snapshot(store)
    assert len(left) >= 6
    assert len(left) % 2 == 0, "both facts of a change, or none"
    facts = facts_of(("after", "Is", "written"))
    store.put(facts, vectors_of([facts[0].text]))
    assert len(snapshot.read_snapshot(store)) == len(left) + 1


def test_a_store_without_vectors(tmp_path: Path) -> None:
    store = FactStore.create(str(tmp_path / "names"), "", 0)
    put(store, ("sky", "Is", "blue"))
    assert snapshot.read_snapshot(store).all_facts.vectors_MF.shape == (1, 0)
