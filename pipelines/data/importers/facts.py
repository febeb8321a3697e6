"""Imports the facts of a store as texts to be learned, for models that know them by heart
(``vlmodel/tasks/triples.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from pipelines.data.importers._files import to_valid_key
from pipelines.data.importing.importer import Importer, SourceContents, SourceSample
from pipelines.data.tars.inputs import TEXT, InputNames
from pipelines.data.tars.sample import GROUP
from pipelines.knowledge.store import TEXTS, FactStore
from pipelines.knowledge.triples import relation_to_phrase
from vlmodel.facts import Fact
from vlmodel.locations import Location
from vlmodel.sample import Question, SampleTexts

if TYPE_CHECKING:
    import lance

_SPLITS = ("val", "test")


class Config(Importer):
    """Settings of an import of facts. Each fact becomes a sample without inputs: its text is a caption; head and
    relation are a question, whose answer is the tail. A model learns a changed fact only by a new training, not when
    the store is edited.
    """

    kind: str = "facts"
    inputs: InputNames = (TEXT,)
    """Texts alone; set data.mix.NAME.inputs to the same."""
    store: Location
    """Folder or URI of the store, as knowledge.store."""
    version: int = Field(0, ge=0)
    """Of the store; 0 for the newest."""
    test_fraction: float = Field(default=0, ge=0, lt=1)
    """Share of the facts of no split that becomes split test, all facts of a head together."""

    @field_validator("inputs")
    @classmethod
    def _check_only_texts(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if set(inputs) != {TEXT}:
            raise ValueError(f"{list(inputs)}: facts are texts; leave inputs as it is")
        return inputs

    def fingerprint(self) -> str:
        return FactStore(self.store).hash_of_facts(self.version)

    def read(self) -> SourceContents:
        """Open a version of the fact store for reading its facts.

        Raises:
            KnowledgeError: it does not exist.
        """
        table = FactStore(self.store).table(self.version)
        splits = [name for name in _SPLITS if table.count_rows(f"valid and split = '{name}'")]
        return SourceContents(table.count_rows("valid"), _fact_samples(table), splits=["train", *splits])


def _fact_samples(table: lance.LanceDataset) -> Iterator[SourceSample]:
    batches = table.to_batches(columns=[*TEXTS, "split"], filter="valid")
    for row in chain.from_iterable(batch.to_pylist() for batch in batches):
        split = row.pop("split")
        fact = Fact(**row)
        texts = SampleTexts((fact.text,), (Question(fact_to_question(fact), fact.tail, id=fact.id),))
        yield SourceSample(split or "train", to_valid_key(fact.id), {}, texts, {GROUP: fact.head})


def fact_to_question(fact: Fact) -> str:
    """Make a question of a fact: its head and relation, without the tail.

    >>> fact_to_question(Fact("1", "strawberry", "HasProperty", "red", "strawberry has property red"))
    'strawberry has property'
    """
    asked = fact.text.removesuffix(fact.tail).strip()
    return asked if asked and asked != fact.text else f"{fact.head} {relation_to_phrase(fact.relation)}"
