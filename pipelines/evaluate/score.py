"""Figures of a table of answers, always beside the floors that need no image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.evaluate.floors import Floors


@dataclass(frozen=True)
class Report:
    """How good the answers are.

    Attributes:
        split: what was answered.
        samples: images.
        texts: questions with a known answer; all of them count.
        correct: right answers.
        accuracy: correct / texts.
        top_k: share of the texts whose right answer is among the ``k`` best.
        k: of ``top_k``.
        unknown: texts whose right answer is outside the model's vocabulary; they count as wrong.
        floors: accuracy without looking, by name.
        by_answer: for each right answer its number of texts and its accuracy, most frequent first.
    """

    split: str
    samples: int
    texts: int
    correct: int
    accuracy: float
    top_k: float
    k: int
    unknown: int
    floors: dict[str, float]
    by_answer: list[tuple[str, int, float]]

    def metrics(self) -> dict[str, float]:
        """As metrics of a tracked run, named by the split."""
        figures = {"accuracy": self.accuracy, f"top{self.k}_accuracy": self.top_k, "texts": float(self.texts)}
        floors = {f"floor_{name}": value for name, value in self.floors.items()}
        return {f"{self.split}/{name}": value for name, value in {**figures, **floors}.items()}

    def __str__(self) -> str:
        lines = [
            f"{self.split}: accuracy {self.accuracy:.4f}  ({self.correct} of {self.texts} questions, "
            f"{self.samples} images)",
            f"  among the {self.k} best {self.top_k:.4f}",
            *(f"  floor, {name.replace('_', ' ')} {value:.4f}" for name, value in self.floors.items()),
        ]
        if self.unknown:
            lines.append(f"  {self.unknown} right answers are outside the model's vocabulary and count as wrong")
        return "\n".join(lines)


def score(answers: pa.Table, split: str, floors: Floors, labels: Sequence[str]) -> Report:
    """Score a table of ``predict.SCHEMA``.

    Args:
        labels: the model's vocabulary.

    Raises:
        ValueError: no row has a right answer.
    """
    answered = answers.filter(pc.is_valid(answers["answer"]))
    if not answered.num_rows:
        raise ValueError(f"no question of split {split!r} has a right answer to score against; choose another split")
    targets = answered["answer"].to_pylist()
    right = [target == predicted for target, predicted in zip(targets, answered["predicted"].to_pylist(), strict=True)]
    ranked = answered["answers"].to_pylist()
    among = [target in best for target, best in zip(targets, ranked, strict=True)]
    totals, hits = Counter(targets), Counter(t for t, ok in zip(targets, right, strict=True) if ok)
    known = set(labels)
    return Report(
        split=split,
        samples=pc.count_distinct(answers["key"]).as_py(),
        texts=len(targets),
        correct=sum(right),
        accuracy=sum(right) / len(targets),
        top_k=sum(among) / len(targets),
        k=max(len(best) for best in ranked),
        unknown=sum(n for answer, n in totals.items() if answer not in known),
        floors=floors.score(answered),
        by_answer=[(answer, n, hits[answer] / n) for answer, n in sorted(totals.items(), key=lambda t: (-t[1], t[0]))],
    )
