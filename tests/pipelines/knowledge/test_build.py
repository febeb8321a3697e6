"""Building a store by the job: what is new is encoded, a build that was stopped continues."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.knowledge import build as building
from pipelines.knowledge import snapshot
from pipelines.knowledge.build import build_fact_store
from pipelines.knowledge.config import KnowledgeConfig
from pipelines.knowledge.encoder import SentenceEncoder
from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.linking import FactLinker, QueryVectorCache
from pipelines.knowledge.store import FactStore
from tests.pipelines.knowledge.conftest import WordEncoder, vectors_of
from tests.real_weights import minilm
from vlmodel.config import parse_config
from vlmodel.facts import FactLinkingConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnowledgeConfig:
    lines = [f"thing {n}\tIs\tvalue {n % 7}" for n in range(50)]
    (tmp_path / "facts.tsv").write_text("\n".join([*lines, lines[0], "a\t\tb"]))
    monkeypatch.setattr(building, "open_encoder", lambda folder: WordEncoder())
    # Ray Data is tested with the real encoder below.
    monkeypatch.setattr(building, "_encode_facts_in_batches", _in_process)
    return parse_config(
        KnowledgeConfig,
        {
            "store": str(tmp_path / "store"),
            "encoder": "words",
            "batch": 8,
            "source": {"files": [str(tmp_path / "facts.tsv")]},
        },
    )


def _in_process(facts, config):
    for start in range(0, len(facts), config.batch):
        batch = facts[start : start + config.batch]
        yield batch, vectors_of([fact.text for fact in batch])


def test_a_build_writes_facts_and_names_what_is_none(config: KnowledgeConfig) -> None:
    built = build_fact_store(config)
    assert (built.written, built.kept, dict(built.faults)) == (50, 0, {"duplicate": 1, "empty_part": 1})
    assert FactStore(config.store).counts() == {"facts": 50, "duplicate": 1, "empty_part": 1}
    assert "2 lines are no facts (1 duplicate, 1 empty_part)" in built.describe()


def test_a_build_that_was_stopped_continues(config: KnowledgeConfig) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise StoppedError

    with pytest.raises(StoppedError):
        build_fact_store(config, stop)
    again = build_fact_store(config)
    assert (again.written, again.kept) == (34, 16)
    assert build_fact_store(config).written == 0


def test_only_changed_facts_are_encoded_again(config: KnowledgeConfig) -> None:
    build_fact_store(config)
    before = FactStore(config.store).hash_of_facts()
    source = config.source.model_copy(update={"phrases": {"Is": "has"}})
    built = build_fact_store(config.model_copy(update={"source": source}))
    assert built.written == 50
    assert FactStore(config.store).hash_of_facts() != before


def test_a_build_without_a_store_says_what_to_set() -> None:
    with pytest.raises(KnowledgeError, match=r"knowledge\.store"):
        build_fact_store(KnowledgeConfig())


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"model\.safetensors"):
        SentenceEncoder(str(tmp_path))


def test_sentences_of_one_meaning_are_near() -> None:
    encoder = SentenceEncoder(str(minilm()))
    texts = ["strawberry has property red", "the sky has property blue", "a dog is an animal"]
    vectors_MF = encoder.encode(texts)
    assert np.allclose(np.linalg.norm(vectors_MF, axis=1), 1, atol=1e-5)
    assert np.argmax(vectors_MF @ encoder.encode(["What colour is a strawberry?"])[0]) == 0
    assert np.allclose(encoder.encode(texts[:1])[0], vectors_MF[0], atol=1e-5), "whatever it is encoded with"


@pytest.mark.slow
def test_the_job_encodes_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs import knowledge

    (tmp_path / "facts.tsv").write_text("strawberry\tHasProperty\tred\nsky\tHasProperty\tblue\n")
    files = json.dumps([str(tmp_path / "facts.tsv")])
    store = str(tmp_path / "store")
    arguments = [f"knowledge.store={store}", f"knowledge.encoder={minilm()}", f"knowledge.source.files={files}"]
    assert knowledge.main(arguments) == 0
    assert "2 facts written" in capsys.readouterr().out
    linker = FactLinker(snapshot.read_snapshot(FactStore(store)), QueryVectorCache(SentenceEncoder(str(minilm()))))
    ((best, *_),) = linker.find_facts(["What colour is the sky?"], FactLinkingConfig(by="dense")).by_text
    assert best.fact.tail == "blue"
