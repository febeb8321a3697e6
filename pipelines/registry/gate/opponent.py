"""Checks that the champion can be compared with a candidate: it must know the answers that the hold-out asks for."""

from __future__ import annotations

from pipelines.data.index.index import Index
from pipelines.data.texts.corpus import count_labels
from pipelines.registry.config import GateConfig
from pipelines.registry.gate.check import GateCheck
from pipelines.registry.versions import LocalModel
from vlmodel.processor import VLProcessor


def check_champion_is_comparable(champion: LocalModel, index: Index, config: GateConfig) -> GateCheck:
    """Check that the champion's labels contain enough of the right answers of the hold-out. Ray must be connected.

    Returns:
        A check that passed if the champion is an opponent (also one that writes its answers, which has no labels), and
        that does not apply if it is none: the candidate is then judged as if there were no champion.
    """
    processor = VLProcessor.from_pretrained(champion.folder)
    counts = count_labels(index, processor.tasks.values(), config.split)
    total = counts.total()
    known = sum(count for answer, count in counts.items() if processor.label_id(answer) >= 0)
    share = known / total if total else 1.0
    required = f"at least {config.known_answers:.0%}"
    return GateCheck(
        name="champion knows the answers",
        passed=True if share >= config.known_answers else None,
        measured=f"version {champion.version} knows {share:.1%} of the {total} right answers"
        + ("" if share >= config.known_answers else f", required {required}: it is no opponent"),
        required=required,
        explanation="a model of other data loses every comparison, which says nothing of the candidate",
        compares=True,
    )
