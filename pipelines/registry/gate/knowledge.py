"""Checks whether a model uses its facts: if facts are edited, the answers must follow.

That a model with facts is better than one without does not show that it reads them: K-BERT is as good without its
graph, and models that attend to the right fact write wrong values. So facts are edited such that the right answer is
known:

- the answer is what a fact says of its head: it is given another tail, which then is the answer;
- two questions of one sample differ in nothing but whom they are about, and in their answers: one is given the facts of
  the other, and then has its answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from pipelines.registry.config import GateConfig
from pipelines.registry.gate.behaviour import answers_differ, check_answer_share
from pipelines.registry.gate.check import GateCheck
from vlmodel.facts import LinkedFact
from vlmodel.processor import Example, VLProcessor
from vlmodel.sample import Sample
from vlmodel.task import answerable_rows

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


ROWS = 200
"""Rows of the hold-out on which facts are edited."""
_LEAST_ROWS = 20
"""With fewer rows whose right answer after an edit is known, the share of those that follow says nothing."""
_AT_ONCE = 16
_ARTICLES = re.compile(r"\b(a|an|the)\b\s*", re.IGNORECASE)

Facts = tuple[LinkedFact, ...]


@dataclass(frozen=True)
class FactRow:
    """A row of a task for which the store has facts.

    Attributes:
        sample: which one it is about, of those that were drawn.
        target: the right answer.
        edited, then: its facts after an edit, and the answer that is right then; () and "" where none is known.
    """

    sample: int
    text: str
    target: str
    facts: Facts
    edited: Facts = ()
    then: str = ""


@dataclass(frozen=True)
class FactProbeResult:
    """How a model answered rows with their own facts, with edited ones, and with none.

    Attributes:
        rows: that have facts.
        changed: share of answers that changed or lost confidence when the facts were those of another row; None where
            all rows have the same.
        edits: rows whose facts were edited such that the right answer is known.
        followed: share of these whose answer changed to it.
        right, without: share of all rows that is right with the facts, and without any.
    """

    rows: int
    changed: float | None = None
    edits: int = 0
    followed: float = 0.0
    right: float = 0.0
    without: float = 0.0


def draw_fact_rows(
    processor: VLProcessor, samples: Iterable[Sample], task: str, most: int = ROWS
) -> tuple[list[Sample], list[FactRow]]:
    """Draw at most ``most`` rows that have facts, first those with an edit after which the right answer is known; also
    return their samples. Samples are read until there are enough.

    Args:
        processor: with the store that facts are found in.
    """
    kept: list[Sample] = []
    rows: list[FactRow] = []
    for sample in samples:
        if of_sample := _rows_with_facts(processor, sample, task, len(kept)):
            kept.append(sample)
            rows += _edit_entities(of_sample, processor, task)
        if sum(bool(row.then) for row in rows) >= most:
            break
    rows = _edit_tails(rows, processor, task)
    return kept, sorted(rows, key=lambda row: not row.then)[:most]


def run_fact_probe(
    predictor: Predictor, samples: Sequence[Sample], rows: Sequence[FactRow], task: str
) -> FactProbeResult:
    """Ask a model the rows of ``draw_fact_rows``: with their own facts, with edited ones, with another row's, and with
    none.
    """
    if not rows:
        return FactProbeResult(0)
    processor = predictor.processor
    asked_task, reads = processor.tasks[task], processor.input_names

    def answers(asked: Sequence[FactRow], given: Sequence[Facts]) -> list[tuple[str, float]]:
        examples = (
            Example({k: v for k, v in samples[row.sample].inputs.items() if k in reads}, (row.text,), facts=(facts,))
            for row, facts in zip(asked, given, strict=True)
        )
        best: list[tuple[str, float]] = []
        while batch := list(islice(examples, _AT_ONCE)):
            best += [of_sample[0].answers[0] for of_sample in predictor.predict(batch, top_k=1, task=task)]
        return best

    def says(answer: tuple[str, float], right: str) -> bool:
        return asked_task.is_same_answer(answer[0], right, processor)

    known = answers(rows, [row.facts for row in rows])
    without = answers(rows, [()] * len(rows))
    others = _facts_of_other_rows(rows)
    changed = None
    if others is not None:
        exchanged = answers(rows, others)
        changed = sum(map(answers_differ, known, exchanged)) / len(rows)
    edits = [n for n, row in enumerate(rows) if row.then]
    after = answers([rows[n] for n in edits], [rows[n].edited for n in edits])
    followed = [
        says(now, rows[n].then) and not says(known[n], rows[n].then) for n, now in zip(edits, after, strict=True)
    ]
    return FactProbeResult(
        rows=len(rows),
        changed=changed,
        edits=len(edits),
        followed=sum(followed) / max(1, len(edits)),
        right=sum(says(one, row.target) for one, row in zip(known, rows, strict=True)) / len(rows),
        without=sum(says(one, row.target) for one, row in zip(without, rows, strict=True)) / len(rows),
    )


def check_facts_are_used(
    candidate: FactProbeResult, champion: FactProbeResult | None, config: GateConfig, task: str = ""
) -> list[GateCheck]:
    """Make one gate check for edited facts, and one for another row's facts.

    Args:
        champion: on its own rows; None without a champion, or for one that reads no facts.
        task: appended to the checks' names if the model has several.
    """
    suffix = f" ({task})" if task else ""
    names = f"edited facts{suffix}", f"exchanged facts{suffix}"
    if not candidate.rows:
        return [
            GateCheck(name, None, "", "", "no row of the hold-out has both a right answer and facts in the store")
            for name in names
        ]
    beside = f"; of {candidate.rows} rows {candidate.right:.1%} are right with facts, {candidate.without:.1%} without"
    if candidate.edits < _LEAST_ROWS:
        reason = f"of only {candidate.edits} rows the right answer after an edit is known{beside}"
        checks = [GateCheck(names[0], None, "", "", reason)]
    else:
        share = champion.followed if champion and champion.edits >= _LEAST_ROWS else None
        unit = f"of {candidate.edits} answers follow{beside}"
        reason = "an answer must change with the fact that it depends on, to what is right then"
        checks = [check_answer_share(names[0], candidate.followed, share, config.fact_flips, config, unit, reason)]
    if candidate.changed is None:
        return [*checks, GateCheck(names[1], None, "", "", "all rows have the same facts")]
    share = champion.changed if champion else None
    unit, reason = "of the answers change or lose confidence", "answers must depend on the facts"
    return [*checks, check_answer_share(names[1], candidate.changed, share, config.fact_use, config, unit, reason)]


def _rows_with_facts(processor: VLProcessor, sample: Sample, task: str, number: int) -> list[FactRow]:
    (rows,) = answerable_rows(processor.tasks[task], [sample])
    if not rows or not sample.inputs.keys() & set(processor.input_names):
        return []
    (linked,) = processor.link_facts([Example({}, tuple(row.text for row in rows))])
    return [
        FactRow(number, row.text, row.target, facts)
        for row, facts in zip(rows, linked.facts or (), strict=True)
        if facts and row.target is not None
    ]


def _edit_entities(rows: Sequence[FactRow], processor: VLProcessor, task: str) -> list[FactRow]:
    """Return the rows of a sample; a row is edited if another row asks the same of another entity and has another
    answer.
    """
    asked: dict[str, list[tuple[FactRow, tuple[int, int]]]] = {}
    for row in rows:
        for mention in dict.fromkeys(one.mention for one in row.facts if one.mention is not None):
            asked.setdefault(_remove_mention(row.text, mention), []).append((row, mention))
    edited: dict[int, FactRow] = {}
    for of_form in asked.values():
        for row, mention in of_form:
            for other, other_mention in of_form:
                if id(row) in edited or not _can_answer(processor, task, other.target, but=row.target):
                    continue
                if facts := _replace_facts_of_entity(row, mention, other, other_mention):
                    edited[id(row)] = replace(row, edited=facts, then=other.target)
    return [edited.get(id(row), row) for row in rows]


def _replace_facts_of_entity(
    row: FactRow, mention: tuple[int, int], other: FactRow, other_mention: tuple[int, int]
) -> Facts:
    """Return the row's facts, in which those about the entity that it mentions are replaced by the other row's facts
    about its own entity; () if the facts' words do not allow it.
    """
    mine = [one for one in row.facts if one.mention == mention]
    theirs = [one for one in other.facts if one.mention == other_mention]
    head = mine[0].fact.head
    if head == theirs[0].fact.head or any(one.fact.head not in one.fact.text for one in theirs):
        return ()
    said = [
        replace(
            one,
            fact=replace(one.fact, head=head, text=one.fact.text.replace(one.fact.head, head)),
            mention=mention,
        )
        for one in theirs
    ]
    place = row.facts.index(mine[0])
    rest = [one for one in row.facts if one.mention != mention]
    return (*rest[:place], *said, *rest[place:])


def _edit_tails(rows: Sequence[FactRow], processor: VLProcessor, task: str) -> list[FactRow]:
    """Return the rows; a row whose answer is the tail of a fact is edited: the fact gets the tail of another fact with
    the same relation.
    """
    tails: dict[str, dict[str, None]] = {}
    for row in rows:
        for one in row.facts:
            tails.setdefault(one.fact.relation, {})[one.fact.tail] = None
    draw = random.Random(0)
    result = []
    for row in rows:
        saying = [
            one for one in row.facts if processor.tasks[task].is_same_answer(one.fact.tail, row.target, processor)
        ]
        if row.then or not saying or any(one.fact.tail not in one.fact.text for one in saying):
            result.append(row)
            continue
        said = {one.fact.tail for one in row.facts}
        others = [
            tail
            for tail in tails[saying[0].fact.relation]
            if tail not in said and _can_answer(processor, task, tail, but=row.target)
        ]
        if not others:
            result.append(row)
            continue
        then = draw.choice(others)
        edited = tuple(_replace_tail(one, then) if one in saying else one for one in row.facts)
        result.append(replace(row, edited=edited, then=then))
    return result


def _replace_tail(one: LinkedFact, tail: str) -> LinkedFact:
    before, _, behind = one.fact.text.rpartition(one.fact.tail)
    return replace(one, fact=replace(one.fact, tail=tail, text=f"{before}{tail}{behind}"))


def _can_answer(processor: VLProcessor, task: str, answer: str, but: str) -> bool:
    """Whether a model can give this answer, and it differs from ``but``."""
    asked = processor.tasks[task]
    return asked.is_possible_answer(answer, processor) and not asked.is_same_answer(answer, but, processor)


def _facts_of_other_rows(rows: Sequence[FactRow]) -> list[Facts] | None:
    """Return for each row the facts of the next row that has different ones, without mentions; None if all have the
    same.
    """
    said = [tuple(one.fact.text for one in row.facts) for row in rows]
    found: list[Facts] = []
    for n in range(len(rows)):
        other = next((m % len(rows) for m in range(n + 1, n + len(rows)) if said[m % len(rows)] != said[n]), None)
        if other is None:
            return None
        found.append(tuple(replace(one, mention=None) for one in rows[other].facts))
    return found


def _remove_mention(text: str, mention: tuple[int, int]) -> str:
    """Remove from a text the words that name an entity, and articles, which another name may need differently."""
    return _ARTICLES.sub("", f"{text[: mention[0]]}\0{text[mention[1] :]}").casefold()
